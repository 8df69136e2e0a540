use super::*;

/// One rank of `sh -c script`.
fn job(script: &str) -> Job {
    let program = Program {
        path: "/bin/sh".into(),
        arguments: ["-c", script].map(Into::into).to_vec(),
        ranks: 1,
        max_restarts: 0,
        token: "token".to_owned(),
    };
    Job::start(&program, 0, 1, Duration::ZERO).unwrap()
}

fn until(mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "it does not come to an end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A launcher that was stopped in the meantime has not tried to kill anything yet.
#[test]
fn it_gives_up_long_after_the_kill_and_not_long_after_the_deadline() {
    let mut job = job("exec sleep 300");
    let now = Instant::now() + 10 * UNKILLABLE;
    job.deadline = Some(Instant::now());
    job.end_what_has_to(now);
    assert!(!job.gives_up(now + UNKILLABLE));
    let later = now + 2 * UNKILLABLE;
    job.end_what_has_to(later);
    assert!(job.gives_up(later));
}

/// What is made while `/proc` is read may be missed there.
#[test]
fn nothing_of_a_group_outlives_its_number() {
    let mut job = job("sleep 300 & exit 0");
    let mut rank = job.ranks.pop().unwrap();
    until(|| rank.newly_ended().is_some());
    let group = rank.group().as_raw_pid();
    assert!(live_groups().contains(&group));
    rank.reap();
    until(|| !live_groups().contains(&group));
}
