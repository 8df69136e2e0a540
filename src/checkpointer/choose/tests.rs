use super::*;

fn good(name: &str, generation: u64, step: u64) -> CheckpointInfo {
    CheckpointInfo {
        save_id: Some(id(name)),
        generation,
        step,
        ..CheckpointInfo::unknown(name, CheckpointState::Committed)
    }
}

fn id(name: &str) -> SaveId {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    SaveId::from_bytes(bytes)
}

fn loss(info: CheckpointInfo, loss: f64) -> CheckpointInfo {
    CheckpointInfo { metrics: [("loss".to_owned(), loss)].into(), ..info }
}

/// Lengths that are wrong: the manifest can be read.
fn short(info: CheckpointInfo) -> CheckpointInfo {
    CheckpointInfo { state: CheckpointState::Damaged, fault: Some("short".to_owned()), ..info }
}

fn unreadable(name: &str) -> CheckpointInfo {
    CheckpointInfo::unknown(name, CheckpointState::Damaged)
}

fn partial(name: &str) -> CheckpointInfo {
    CheckpointInfo::unknown(name, CheckpointState::Partial)
}

fn question(resume: &Resume) -> Question<'_> {
    Question {
        resume,
        monitor: Some(("loss", Mode::Min)),
        damaged: &[],
        fall_back: false,
        loaded: None,
        latest: None,
        best: None,
    }
}

/// The name chosen, and those passed over; or the kind of the error.
fn ask(
    found: &[CheckpointInfo],
    question: &Question<'_>,
) -> std::result::Result<Option<(String, Vec<String>)>, ErrorKind> {
    let names = |choice: Choice<'_>| {
        let passed = choice.passed_over.iter().map(|info| info.name.clone()).collect();
        (choice.chosen.name.clone(), passed)
    };
    choose(found, question).map(|choice| choice.map(names)).map_err(|e| e.kind())
}

fn some(name: &str, passed_over: &[&str]) -> Option<(String, Vec<String>)> {
    Some((name.to_owned(), passed_over.iter().map(|name| (*name).to_owned()).collect()))
}

#[test]
fn nothing_or_attempts_alone_are_a_fresh_start_but_damage_alone_is_not() {
    for found in [vec![], vec![partial("a"), partial("b")]] {
        assert_eq!(ask(&found, &question(&Resume::Latest)), Ok(None));
        assert_eq!(ask(&found, &question(&Resume::Best)), Ok(None));
        assert_eq!(ask(&found, &question(&Resume::Step(1))), Err(ErrorKind::NotFound));
    }
    for found in [[unreadable("a"), partial("b")], [short(good("a", 0, 1)), partial("b")]] {
        for fall_back in [false, true] {
            let latest = Question { fall_back, ..question(&Resume::Latest) };
            assert_eq!(ask(&found, &latest), Err(ErrorKind::Corrupt));
        }
    }
}

#[test]
fn a_fresh_start_loads_nothing() {
    let found = [good("a", 0, 1)];
    assert_eq!(ask(&found, &question(&Resume::Fresh)), Err(ErrorKind::InvalidInput));
}

#[test]
fn damage_that_is_newer_is_refused_or_passed_over_and_older_damage_does_not_matter() {
    let latest = question(&Resume::Latest);
    let falling = Question { fall_back: true, ..question(&Resume::Latest) };
    for (best, newer, older) in [((0, 20), (0, 30), (0, 10)), ((1, 20), (2, 5), (0, 90))] {
        let named = |name, (generation, step)| good(name, generation, step);
        let found = [named("a", best), short(named("x", newer))];
        assert_eq!(ask(&found, &latest), Err(ErrorKind::Corrupt));
        assert_eq!(ask(&found, &falling), Ok(some("a", &["x"])));
        let found = [named("a", best), short(named("x", older))];
        assert_eq!(ask(&found, &latest), Ok(some("a", &[])));
        assert_eq!(ask(&found, &falling), Ok(some("a", &[])));
    }
}

#[test]
fn of_a_manifest_that_cannot_be_read_the_link_to_the_latest_tells() {
    let found = [good("a", 0, 20), good("b", 0, 10), unreadable("x"), unreadable("y")];
    let with = |latest, fall_back| Question { latest, fall_back, ..question(&Resume::Latest) };
    // The link leads to a good one: both are older.
    assert_eq!(ask(&found, &with(Some("a"), false)), Ok(some("a", &[])));
    for latest in [None, Some("x"), Some("gone")] {
        assert_eq!(ask(&found, &with(latest, false)), Err(ErrorKind::Corrupt), "{latest:?}");
    }
    assert_eq!(ask(&found, &with(Some("a"), true)), Ok(some("a", &[])));
    assert_eq!(ask(&found, &with(None, true)), Ok(some("a", &["x", "y"])));
    // Whoever asks for a step gets it.
    assert_eq!(ask(&found, &question(&Resume::Step(10))), Ok(some("b", &[])));
}

#[test]
fn damage_that_is_better_is_refused_or_passed_over() {
    let best = question(&Resume::Best);
    let falling = Question { fall_back: true, ..question(&Resume::Best) };
    let a = || loss(good("a", 0, 20), 0.5);
    let found = [a(), short(loss(good("x", 0, 30), 0.25))];
    assert_eq!(ask(&found, &best), Err(ErrorKind::Corrupt));
    assert_eq!(ask(&found, &falling), Ok(some("a", &["x"])));
    for worse in [0.75, 0.5, f64::NAN] {
        let found = [a(), short(loss(good("x", 0, 30), worse))];
        assert_eq!(ask(&found, &best), Ok(some("a", &[])), "{worse}");
    }
    let found = [a(), unreadable("x")];
    assert_eq!(ask(&found, &best), Ok(some("a", &[])));
    let linked = Question { best: Some("x"), ..question(&Resume::Best) };
    assert_eq!(ask(&found, &linked), Err(ErrorKind::Corrupt));
}

#[test]
fn what_proved_to_be_damaged_is_left_out_until_nothing_is_left() {
    let found = [loss(good("a", 0, 20), 0.5), loss(good("b", 0, 10), 0.75)];
    for resume in [Resume::Latest, Resume::Best] {
        let left_out = |damaged: &[SaveId]| {
            ask(&found, &Question { damaged, fall_back: true, ..question(&resume) })
        };
        assert_eq!(left_out(&[id("a")]), Ok(some("b", &[])));
        assert_eq!(left_out(&[id("a"), id("b")]), Err(ErrorKind::Corrupt));
    }
}

#[test]
fn without_a_number_there_is_no_best_whatever_the_link_says() {
    let found = [loss(good("a", 0, 20), f64::NAN), good("b", 0, 10)];
    let linked = Question { best: Some("a"), ..question(&Resume::Best) };
    assert_eq!(ask(&found, &linked), Err(ErrorKind::NotFound));
    let found = [good("b", 0, 10), unreadable("x")];
    let linked = Question { best: Some("x"), ..question(&Resume::Best) };
    assert_eq!(ask(&found, &linked), Err(ErrorKind::Corrupt));
}

/// The link to the best is moved by the run's own rules; the question gives the same answer.
#[test]
fn the_best_is_one_of_the_newest_run_and_no_save_beside_it() {
    let of_line = |info, line| CheckpointInfo { line, ..info };
    let earlier = of_line(loss(good("earlier", 0, 900), 0.1), 7);
    let aside = CheckpointInfo { aside: true, ..of_line(loss(good("aside", 1, 950), 0.05), 8) };
    let own = [10, 20]
        .map(|step| of_line(loss(good(&format!("own{step}"), 1, step), 1.0 / step as f64), 8));
    let found = [&[earlier.clone(), aside], &own[..]].concat();
    assert_eq!(ask(&found, &question(&Resume::Best)), Ok(some("own20", &[])));
    let damaged = [&found[1..], &[short(earlier)]].concat();
    assert_eq!(ask(&damaged, &question(&Resume::Best)), Ok(some("own20", &[])));
}
