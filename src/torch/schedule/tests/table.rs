//! Learning rates against PyTorch's.

use super::*;

/// settings, metrics, base, learning rates; made by `lr_schedules.py`.
const TABLE: &str = include_str!("../../../../tests/data/lr_schedules.tsv");

struct Row {
    base: f64,
    lrs: Vec<f64>,
}

/// The scheduler of some lines of the table, and a line for each parameter group.
struct Case {
    settings: &'static str,
    metrics: Vec<f64>,
    groups: Vec<Row>,
}

fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut last = ("", "");
    for line in TABLE.lines() {
        let columns: Vec<&'static str> = line.split('\t').collect();
        let [settings, metrics, base, lrs] = columns[..] else { panic!("{line}") };
        if (settings, metrics) != last {
            last = (settings, metrics);
            cases.push(Case { settings, metrics: numbers(metrics), groups: Vec::new() });
        }
        let row = Row { base: base.parse().unwrap(), lrs: numbers(lrs) };
        cases.last_mut().unwrap().groups.push(row);
    }
    cases
}

impl Case {
    fn check(&self) {
        let config: SchedulerConfig = serde_json::from_str(self.settings).unwrap();
        let bases: Vec<f64> = self.groups.iter().map(|row| row.base).collect();
        let mut optimizer = optimizer(&bases);
        let mut scheduler = Scheduler::new(config, SchedulerUnit::Epoch, &mut optimizer).unwrap();
        for position in 0..self.groups[0].lrs.len() {
            if position > 0 {
                let metric = self.metrics.get(position - 1).copied();
                scheduler.advance(&mut optimizer, metric).unwrap();
            }
            for (lr, row) in lrs(&optimizer).into_iter().zip(&self.groups) {
                let expected = row.lrs[position];
                let near = (lr - expected).abs() <= 1e-12 * lr.abs().max(expected.abs());
                assert!(near, "{} at {position}: {lr}, not {expected}", self.settings);
            }
        }
    }
}

#[test]
fn learning_rates_equal_pytorchs() {
    let cases = cases();
    assert!(cases.len() >= 38 && cases.iter().all(|case| case.groups.len() == 2));
    cases.iter().for_each(Case::check);
}

#[test]
fn the_table_knows_every_kind() {
    for (config, _) in every_kind() {
        let text = serde_json::to_value(&config).unwrap();
        let kind = format!("{{\"scheduler\": {}", text["scheduler"]);
        assert!(TABLE.lines().any(|line| line.starts_with(&kind)), "{kind}");
    }
}
