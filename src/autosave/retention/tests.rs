use super::*;
use crate::error::ErrorKind;
use crate::manifest::CheckpointState;

/// An automatic checkpoint `s<step>` with `loss`.
fn saved(step: u64, loss: Option<f64>) -> CheckpointInfo {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&step.to_le_bytes());
    CheckpointInfo {
        save_id: Some(SaveId::from_bytes(id)),
        step,
        automatic: true,
        metrics: loss.map(|loss| ("loss".to_owned(), loss)).into_iter().collect(),
        ..CheckpointInfo::unknown(&format!("s{step}"), CheckpointState::Committed)
    }
}

fn steps(steps: impl IntoIterator<Item = u64>) -> Vec<CheckpointInfo> {
    steps.into_iter().map(|step| saved(step, None)).collect()
}

fn count(n: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(n)
}

fn last(n: u64) -> Retention {
    Retention { last: count(n), ..Retention::default() }
}

fn best(n: u64, mode: Mode) -> Retention {
    let count = count(n).unwrap();
    let best = Some(KeepBest { count, monitor: "loss".to_owned(), mode });
    Retention { best, ..Retention::default() }
}

fn removed_but(
    retention: &Retention,
    found: &[CheckpointInfo],
    protected: &[SaveId],
) -> Vec<String> {
    let remove = retention.decide(found, protected).remove;
    remove.into_iter().map(|(name, _)| name.to_string()).collect()
}

fn removed(retention: &Retention, found: &[CheckpointInfo]) -> Vec<String> {
    removed_but(retention, found, &[])
}

#[test]
fn without_a_rule_nothing_goes_and_pins_are_no_rule() {
    let pinned = Retention { pinned: vec!["s1".to_owned()], ..Retention::default() };
    for none in [Retention::default(), pinned] {
        assert_eq!(removed(&none, &steps(1..9)), [""; 0]);
    }
}

#[test]
fn the_oldest_go_first_and_age_is_step_then_epoch_then_time() {
    assert_eq!(removed(&last(2), &steps([3, 1, 5, 4, 2])), ["s1", "s2", "s3"]);
    let mut found = steps([7]);
    for (name, epoch, created_unix_ms) in [("late", 1, 9u8), ("early", 1, 8), ("epoch2", 2, 1)] {
        let save_id = Some(SaveId::from_bytes([created_unix_ms; 16]));
        let (name, created_unix_ms) = (name.to_owned(), created_unix_ms.into());
        found.push(CheckpointInfo { name, epoch, created_unix_ms, save_id, ..found[0].clone() });
    }
    assert_eq!(removed(&last(1), &found), ["s7", "early", "late"]);
}

#[test]
fn rules_add_up() {
    let mut union = best(1, Mode::Min);
    union.last = count(2);
    union.every_steps = count(4);
    let loss = |step: u64| Some((step as f64 - 3.0).abs());
    let found: Vec<_> = (0..=10).map(|step| saved(step, loss(step))).collect();
    // 3 is the best; 4 and 8 are multiples, 0 is none; 9 and 10 are the newest.
    assert_eq!(removed(&union, &found), ["s0", "s1", "s2", "s5", "s6", "s7"]);
}

#[test]
fn the_best_need_a_finite_number() {
    let losses = [Some(f64::NAN), Some(f64::NEG_INFINITY), None, Some(2.0), Some(-1.0), None];
    let found: Vec<_> = (1..).zip(losses).map(|(step, loss)| saved(step, loss)).collect();
    assert_eq!(removed(&best(1, Mode::Min), &found), ["s1", "s2", "s3", "s4"]);
    assert_eq!(removed(&best(1, Mode::Max), &found), ["s1", "s2", "s3", "s5"]);
    // A count that finite numbers cannot fill is not filled by others.
    assert_eq!(removed(&best(9, Mode::Max), &found), ["s1", "s2", "s3"]);
}

#[test]
fn of_equals_the_first_to_reach_it_is_best() {
    let found: Vec<_> = [4, 2, 3, 9].map(|step| saved(step, Some(0.0))).to_vec();
    let mut zeros = found.clone();
    zeros[0].metrics.insert("loss".to_owned(), -0.0);
    for found in [found, zeros] {
        assert_eq!(removed(&best(1, Mode::Min), &found), ["s3", "s4"]);
        assert_eq!(removed(&best(1, Mode::Max), &found), ["s3", "s4"]);
        let best = best(1, Mode::Min).best.unwrap();
        assert_eq!(best.best_of(&found).unwrap().step, 2);
    }
}

#[test]
fn the_best_of_all_may_be_one_saved_by_hand_but_not_an_attempt() {
    let mut found: Vec<_> = (1..=4).map(|step| saved(step, Some(step as f64))).collect();
    found[0].state = CheckpointState::Damaged;
    found[1].automatic = false;
    let best = best(1, Mode::Min).best.unwrap();
    assert_eq!(best.best_of(&found).unwrap().name, "s2");
    assert_eq!(best.best_of(&steps(1..3)), None);
}

#[test]
fn of_an_epoch_the_first_stays() {
    let at = |step: u64| CheckpointInfo { epoch: step / 10, ..saved(step, None) };
    let found: Vec<_> = (0..=11).map(|n| at(n * 5)).collect();
    let every = Retention { every_epochs: count(2), ..Retention::default() };
    // 20 and 40 end epochs 2 and 4; 25 and 45 are saved within the next; 55 is the newest.
    let gone: Vec<_> = removed(&every, &found);
    assert_eq!(gone, ["s0", "s5", "s10", "s15", "s25", "s30", "s35", "s45", "s50"]);
}

/// A run that went back made the same epochs anew: its own ends of epochs stay, and those before
/// the place to which it went back.
#[test]
fn of_an_epoch_that_was_made_twice_the_end_made_last_stays() {
    let of = |generation: u64, step: u64| CheckpointInfo {
        name: format!("g{generation}s{step}"),
        generation,
        epoch: step / 10,
        ..saved(100 * generation + step, None)
    };
    let made = [(0, 10), (0, 20), (0, 25), (0, 30), (1, 28), (1, 30), (1, 35)];
    let found: Vec<_> =
        made.map(|(generation, step)| CheckpointInfo { step, ..of(generation, step) }).into();
    let every = Retention { every_epochs: count(1), ..Retention::default() };
    assert_eq!(removed(&every, &found), ["g0s25", "g0s30", "g1s28"]);
}

#[test]
fn a_copy_fills_no_place_of_another_one() {
    let copied = |name: &str| CheckpointInfo { name: name.to_owned(), ..saved(9, Some(0.0)) };
    let mut found: Vec<_> = (5..9).map(|step| saved(step, Some(1.0))).collect();
    found.extend(["s9", "mine", "zzz"].map(copied));
    assert_eq!(removed(&last(3), &found), ["s5", "s6"]);
    assert_eq!(removed(&best(2, Mode::Min), &found), ["s6", "s7", "s8"]);
}

/// Also beside a newer run in the same directory.
#[test]
fn what_is_of_another_line_neither_counts_nor_goes() {
    let of = |line: u64, step: u64| CheckpointInfo {
        name: format!("l{line}s{step}"),
        generation: line,
        line,
        ..saved(100 * line + step, None)
    };
    let found: Vec<_> = (0..3).flat_map(|line| (1..5).map(move |step| of(line, step))).collect();
    let gone = |line: Option<u64>| -> Vec<String> {
        let remove = last(2).decide_in_line(&found, line, &[]).remove;
        remove.into_iter().map(|(name, _)| name.to_string()).collect()
    };
    assert_eq!(gone(Some(1)), ["l1s1", "l1s2"]);
    assert_eq!(gone(Some(7)), [""; 0]);
    assert_eq!(gone(None).len(), 10);
}

#[test]
fn pins_of_every_kind_hold() {
    let mut found = steps(1..=6);
    found[0].pinned = true;
    found[3].name = "odd{4}[".to_owned();
    let mut retention = last(1);
    retention.pinned = vec!["s[2-3]".to_owned(), "odd{4}[[]".to_owned()];
    assert_eq!(removed(&retention, &found), ["odd{4}[", "s5"]);
    found[3].name = "odd{4}".to_owned();
    retention.pinned = vec!["odd{4}".to_owned()];
    assert_eq!(removed(&retention, &found), ["s2", "s3", "s5"], "meant literally too");
}

#[test]
fn a_bad_glob_is_an_error_and_until_it_is_seen_nothing_goes() {
    for bad in ["s[", "{a", "s[z-a]", "a\\"] {
        let mut retention = last(1);
        retention.pinned = vec!["fine*".to_owned(), bad.to_owned()];
        let error = retention.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains(&format!("`{bad}`")), "{error}");
        assert_eq!(removed(&retention, &steps(1..5)), [""; 0]);
    }
    assert_eq!(last(1).check(), Ok(()));
}

#[test]
fn what_is_not_committed_neither_counts_nor_goes() {
    let mut found: Vec<_> = (1..=6).map(|step| saved(step, Some(-(step as f64)))).collect();
    found[0].state = CheckpointState::Damaged;
    found[4].state = CheckpointState::Damaged;
    found[5].state = CheckpointState::Partial;
    assert_eq!(removed(&last(2), &found), ["s2"]);
    assert_eq!(removed(&best(2, Mode::Min), &found), ["s2"]);
}

#[test]
fn what_was_saved_by_hand_neither_counts_nor_goes() {
    let mut found: Vec<_> = (1..=6).map(|step| saved(step, Some(-(step as f64)))).collect();
    found[1].automatic = false;
    found[5].automatic = false;
    assert_eq!(removed(&last(2), &found), ["s1", "s3"]);
    assert_eq!(removed(&best(3, Mode::Min), &found), ["s1"]);
}

#[test]
fn the_newest_and_the_protected_stay_whatever_the_rules_say() {
    let found: Vec<_> = (1..=5).map(|step| saved(step, Some(step as f64))).collect();
    let protected = [found[2].save_id.unwrap(), SaveId::from_bytes([9; 16])];
    assert_eq!(removed_but(&best(1, Mode::Min), &found, &protected), ["s2", "s4"]);
}

#[test]
fn a_copied_checkpoint_stays_with_its_copies() {
    let mut found = steps(1..=4);
    found.push(CheckpointInfo { name: "backup".to_owned(), ..found[1].clone() });
    assert_eq!(removed(&last(1), &found), ["s1", "s3"]);
}

#[test]
fn what_stays_has_its_reasons_and_what_goes_has_none() {
    let mut found = vec![saved(1, Some(0.1)), saved(2, Some(0.5)), saved(3, None), saved(4, None)];
    found[1].pinned = true;
    found.push(CheckpointInfo { automatic: false, ..saved(5, None) });
    found.push(CheckpointInfo::unknown("s6", CheckpointState::Partial));
    let rules = Retention { last: count(1), every_steps: count(4), ..best(1, Mode::Min) };
    let protected = [found[0].save_id.unwrap()];
    let reasons = rules.reasons(&found, &protected);
    let reasons: Vec<Vec<Reason>> = reasons.into_iter().map(|r| r.into_iter().collect()).collect();
    assert_eq!(
        reasons,
        [
            vec![Reason::Best, Reason::Protected],
            vec![Reason::Pinned],
            vec![],
            vec![Reason::Last, Reason::EverySteps],
            vec![Reason::NotAutomatic, Reason::Newest],
            vec![Reason::NotCommitted],
        ]
    );
    assert_eq!(removed_but(&rules, &found, &protected), ["s3"]);
    let none = Retention::default().reasons(&found, &[]);
    assert!(none.iter().all(|reasons| reasons.contains(&Reason::NoRules)));
}
