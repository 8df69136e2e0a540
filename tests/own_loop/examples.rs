//! The other examples, each of which runs as its head says.

use rustix::process::Signal;

use crate::jobs::{ALONE, Ended, Place, Program, TORCHRUN};
use crate::{link, name};

const MULTI_METRIC: Program = Program {
    example: "multi_metric",
    flags: &["--experiment", "both"],
    directory: "--dir",
    experiment: "both",
    prefix: "checkpoint_step_",
};
const PREEMPT: Program = Program {
    example: "preempt",
    flags: &["--step-ms", "1", "--margin-seconds", "30", "--print-state-hash"],
    directory: "--dir",
    experiment: "preempt",
    prefix: "checkpoint_step_",
};
const FROM_CONFIG: Program = Program {
    example: "from_config",
    flags: &[],
    directory: "",
    experiment: "from-config",
    prefix: "checkpoint_step_",
};

/// Runs with this file, but saves under `place`.
fn from_config(place: &Place, file: &str, steps: &str, variables: &[(&str, &str)]) -> Ended {
    let location = format!("path:{}", place.runs().parent().unwrap().display());
    let own = [("TCH_CHECKPOINT_CONFIG_LOCATION", location.as_str())];
    place.start(ALONE, &["--config", file, "--steps", steps], &[&own, variables].concat()).end()
}

#[test]
fn from_config_reads_both_files_and_variables() {
    for file in ["examples/checkpoint.toml", "examples/checkpoint.yaml"] {
        let place = Place::of(&FROM_CONFIG);
        let ended = from_config(&place, file, "200", &[]);
        assert!(ended.status.success(), "{file}: {}", ended.output);
        let saved = place.saved();
        assert!(saved.ends_with(&[150, 200]) && saved.len() <= 3, "{file}: {saved:?}");
        assert_eq!(ended.output.lines().count(), saved.len(), "{file}: {}", ended.output);
        assert!(ended.output.contains(&name(200)), "{file}: {}", ended.output);

        // Of the two of last time, one is the one that it goes on from; nobody monitors anything.
        let variables = [("KEEP_LAST", "1"), ("KEEP_BEST", ""), ("MONITOR", "")]
            .map(|(field, value)| (format!("TCH_CHECKPOINT_CONFIG_{field}"), value));
        let variables: Vec<_> = variables.iter().map(|(name, value)| (&**name, *value)).collect();
        let ended = from_config(&place, file, "250", &variables);
        assert!(ended.status.success(), "{file}: {}", ended.output);
        assert_eq!(place.saved(), [200, 250], "{file}");
    }
    let place = Place::of(&FROM_CONFIG);
    let off = [("TCH_CHECKPOINT_CONFIG_ENABLED", "no")];
    let ended = from_config(&place, "examples/checkpoint.yaml", "20", &off);
    assert!(ended.status.success() && ended.output.is_empty(), "{}", ended.output);
    assert!(!place.runs().exists());
}

/// Name, step, loss and accuracy of each line of the table.
fn table(ended: &Ended) -> Vec<(String, u64, f64, f64)> {
    assert!(ended.status.success(), "{}", ended.output);
    let rows = ended.output.lines().skip_while(|line| !line.starts_with("kept")).skip(1);
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse().unwrap();
        (words[0].to_owned(), words[1].parse().unwrap(), number(2), number(3))
    };
    rows.map(row).collect()
}

#[test]
fn multi_metric_keeps_the_best_of_what_improved_and_shows_it() {
    let place = Place::of(&MULTI_METRIC);
    let flags = ["--steps", "210", "--keep-best", "2"];
    let rows = table(&place.start(TORCHRUN, &flags, &[]).end());
    let steps: Vec<u64> = rows.iter().rev().map(|row| row.1).collect();
    assert_eq!(place.saved(), steps);
    assert_eq!(steps.last(), Some(&210), "the end");
    assert!((2..=3).contains(&rows.len()), "{rows:?}");
    let best = rows.iter().min_by(|a, b| a.2.total_cmp(&b.2)).unwrap();
    assert_eq!(link(&place, "best"), best.0, "{rows:?}");
    assert!(rows.iter().all(|row| row.1 == 210 || row.1 % 25 == 0), "{rows:?}");

    // What was reached is a part of the checkpoint: nothing that is worse is saved after a resume.
    let flags = ["--steps", "235", "--keep-best", "9"];
    for row in table(&place.start(TORCHRUN, &flags, &[]).end()) {
        let improved = row.2 < best.2 && row.3 > best.3;
        assert!(improved || row.1 == 235 || steps.contains(&row.1), "{row:?} after {rows:?}");
    }
}

#[test]
fn preempt_saves_when_told_and_goes_on() {
    let place = Place::of(&PREEMPT);
    let mut job = place.start(TORCHRUN, &["--steps", "1000000"], &[]);
    job.wait_for_output("begins at step 0");
    job.signal(Signal::USR1);
    let ended = job.end();
    assert_eq!(ended.status.code(), Some(75), "{}", ended.output);
    let said = ended.output.split("saved at step ").nth(1).unwrap();
    let (step, rest) = said.split_once(": ").unwrap();
    assert!(rest.starts_with("SIGUSR1"), "{}", ended.output);
    let step: u64 = step.parse().unwrap();
    assert_eq!(place.saved(), [step]);

    let steps = (step + 5).to_string();
    let ended = place.start(TORCHRUN, &["--steps", &steps], &[]).end();
    assert!(ended.output.contains(&format!("begins at step {step}\n")), "{}", ended.output);
    let whole = Place::of(&PREEMPT).start(TORCHRUN, &["--steps", &steps], &[]).end();
    assert_eq!(ended.state(), whole.state());
}
