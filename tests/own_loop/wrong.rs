//! Other world sizes, and jobs that are told what cannot be.

use std::net::TcpListener;

use tch_checkpoint::catalog::{Order, find_checkpoints};
use tch_checkpoint::storage::LocalStorage;

use crate::OWN_LOOP;
use crate::jobs::{ALONE, Place, TORCHRUN};

const EVERY_TEN: &[&str] = &["--every-steps", "10", "--print-state-hash"];

/// What two ranks have saved after step 20.
fn of_two_ranks() -> Place {
    let place = Place::of(&OWN_LOOP);
    let ended = place.start(TORCHRUN, &[&["--steps", "20"], EVERY_TEN].concat(), &[]).end();
    assert!(ended.status.success(), "{}", ended.output);
    place
}

/// Two ranks train to step 20, others from there to step 40: the place in the data follows from
/// the step, so nothing is trained twice and nothing left out.
#[test]
fn torchrun_goes_on_at_other_world_sizes() {
    let two = of_two_ranks();
    for ranks in [1, 3] {
        let place = two.copy();
        let flags = [&["--steps", "40"], EVERY_TEN].concat();
        let log = [("RUST_LOG", "info")];
        let ended = place.start_on(ranks, TORCHRUN, &flags, &log).end();
        assert!(!ended.state().is_empty());
        for rank_resumed in ended.output.lines().filter(|line| line.contains(" resumed ")) {
            assert!(rank_resumed.contains("step=20"), "{rank_resumed}");
        }
        assert_eq!(place.saved(), [10, 20, 30, 40]);
        let found = find_checkpoints(&LocalStorage::new(), &place.runs(), &Order::Latest).unwrap();
        let sizes: Vec<u32> = found.iter().map(|info| info.world_size).collect();
        assert_eq!(sizes, [ranks, ranks, 2, 2]);
    }
}

#[test]
fn torchrun_a_step_that_is_not_there_is_an_error_that_lists_what_there_is() {
    let place = of_two_ranks();
    let flags = [&["--steps", "40", "--resume", "15"], EVERY_TEN].concat();
    let ended = place.start(TORCHRUN, &flags, &[]).end();
    assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
    let errors: Vec<_> =
        ended.output.lines().filter(|line| line.starts_with("error: not found")).collect();
    assert_eq!(errors.len(), 2, "one from each rank, in one piece: {}", ended.output);
    for error in errors {
        for words in ["no checkpoint of step 15", "step 20 (`checkpoint_step_00000020`)", "step 10"]
        {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
    assert_eq!(place.saved(), [10, 20], "nothing was trained");
}

#[test]
fn flags_that_cannot_be_are_refused() {
    for (flags, code, words) in [
        (&["--keep-best", "1"][..], 2, "--monitor"),
        (&["--overlap"], 2, "--async"),
        (&["--resume", "yesterday"], 2, "yesterday"),
        (&["--keep-last", "0"], 7, "`keep_last`"),
        (&["--every-minutes", "0"], 7, "`save_every_minutes`"),
        (&["--resume", "best"], 7, "`resume`"),
    ] {
        let place = Place::of(&OWN_LOOP);
        let ended = place.start(ALONE, &[flags, &["--steps", "20"]].concat(), &[]).end();
        assert_eq!(ended.status.code(), Some(code), "{flags:?}: {}", ended.output);
        assert!(ended.output.contains(words), "{flags:?}: {}", ended.output);
        assert!(!place.runs().exists(), "{flags:?}");
    }
}

/// Below the range from which the system takes ports for outgoing connections.
fn free_port() -> u32 {
    let mut ports = (0..12_000).map(|n| 20_000 + (std::process::id() + n) % 12_000);
    let free = ports.find(|port| TcpListener::bind(format!("127.0.0.1:{port}")).is_ok());
    free.unwrap()
}

#[test]
fn ranks_with_different_rules_hear_which_field_differs() {
    let place = Place::of(&OWN_LOOP);
    let port = free_port().to_string();
    let start = |rank, keep_last| {
        let variables = [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", port.as_str()),
            ("TCH_CHECKPOINT_TOKEN", "of these two"),
        ];
        place.start(ALONE, &["--steps", "20", "--keep-last", keep_last], &variables)
    };
    let jobs = [start("0", "2"), start("1", "3")];
    for ended in jobs.map(crate::jobs::Job::end) {
        assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
        let words = "`keep_last` is 3 on this rank, 2 on the coordinator";
        assert!(ended.output.contains(words), "{}", ended.output);
        assert!(ended.output.contains("rank 1"), "{}", ended.output);
    }
    assert!(!place.runs().exists(), "not even its directory");
}
