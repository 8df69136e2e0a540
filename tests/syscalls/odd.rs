//! File systems that lack something, do less than asked, or lose answers.

use crate::scene::{Scene, Stage, Try, whole};
use crate::tracer::{Act, Call};
use crate::{scenes, tier};

/// Plays the scene once for each of its calls that `act` gives something else than
/// [`Act::Pass`]; what `check` says of it must be nothing.
fn once_each(
    scene: &'static Scene,
    act: &dyn Fn(&Call) -> Act,
    check: &dyn Fn(&Stage, &Try) -> Option<String>,
) {
    let stage = Stage::set(scene);
    let mut faults = Vec::new();
    let calls = stage.undisturbed();
    let hit: Vec<_> = calls.iter().filter(|c| act(c) != Act::Pass).map(Call::label).collect();
    assert!(!hit.is_empty(), "{}: nothing to do", scene.title);
    for label in &hit {
        let tried = stage.play(&mut |c| if c.label() == *label { act(c) } else { Act::Pass });
        let said = tried.run.stderr.trim();
        faults.extend(check(&stage, &tried).map(|fault| format!("{label}: {fault}\n    {said}")));
    }
    tier::figure(&format!("{}: calls that were odd", scene.title), hit.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn succeeds(stage: &Stage, tried: &Try) -> Option<String> {
    match tried.run.code {
        Some(0) => stage.fault_of(tried),
        code => Some(format!("it exits {code:?}")),
    }
}

fn fails(stage: &Stage, tried: &Try) -> Option<String> {
    match tried.run.code {
        Some(3) => stage.fault_of(tried),
        code => Some(format!("it exits {code:?}")),
    }
}

#[test]
fn short_writes_are_completed() {
    let half = |call: &Call| match call.name {
        "pwrite64" => Act::Shorten(call.arguments[2] / 2),
        _ => Act::Pass,
    };
    once_each(&scenes::BESIDE, &half, &succeeds);
    let none = |call: &Call| match call.name {
        "pwrite64" => Act::Pretend(0),
        _ => Act::Pass,
    };
    once_each(&scenes::BESIDE, &none, &fails);
}

/// Large writes go past the page cache. (The temporary directory is to lie on a disk for this.)
#[test]
fn direct_writes_are_completed_done_without_or_fail() {
    let each = |act: &dyn Fn(&Call) -> Act, check: &dyn Fn(&Stage, &Try) -> Option<String>| {
        let act = |call: &Call| match call.name {
            "pwrite64" if call.is_direct => act(call),
            _ => Act::Pass,
        };
        once_each(&scenes::LARGE, &act, check);
    };
    each(&|call| Act::Shorten(call.arguments[2] / 8192 * 4096), &succeeds);
    each(&|call| Act::Shorten(call.arguments[2] / 2 + 1), &succeeds);
    each(&|_| Act::Fail(libc::EINTR), &succeeds);
    each(&|_| Act::Fail(libc::EINVAL), &succeeds);
    each(&|_| Act::Fail(libc::ENOSPC), &fails);
    each(&|_| Act::Fail(libc::EIO), &fails);
    let is_direct = |call: &Call| call.name == "pwrite64" && call.is_direct;
    let tried = without(&scenes::LARGE, &is_direct, libc::EINVAL, &succeeds);
    assert_eq!(tried.run.calls.iter().filter(|call| is_direct(call)).count(), 1, "asked again");
}

/// What the page cache has taken is brought to the device now and then, which may fail long before
/// the fsync at the end: pages are lost then that a later fsync could call clean. (Where direct
/// writes are done they are refused for this, so that everything goes through the page cache.)
#[test]
fn bytes_that_are_lost_on_their_way_to_the_device_fail_the_save() {
    for scene in [&scenes::CACHED, &scenes::CACHED_PROCESSES] {
        let stage = Stage::set(scene);
        let refuse_direct = |call: &Call| match call.name {
            "pwrite64" if call.is_direct => Act::Fail(libc::EINVAL),
            _ => Act::Pass,
        };
        let tried = stage.play(&mut |call| refuse_direct(call));
        assert_eq!((tried.run.code, stage.fault_of(&tried)), (Some(0), None), "{}", scene.title);
        let settled: Vec<_> = tried.run.calls.iter().filter(|c| c.name == "fdatasync").collect();
        assert!(settled.len() >= 2, "{}: {} times", scene.title, settled.len());
        for nth in 0..2 {
            let mut seen = 0;
            let tried = stage.play(&mut |call| match call.name {
                "fdatasync" => {
                    seen += 1;
                    if seen - 1 == nth { Act::Fail(libc::EIO) } else { Act::Pass }
                }
                _ => refuse_direct(call),
            });
            let what = format!("{}, number {nth}: {}", scene.title, tried.run.stderr.trim());
            assert_eq!(fails(&stage, &tried), None, "{what}");
            assert!(!stage.has_committed(&tried), "{what}");
            assert!(tried.run.stderr.contains("writing back"), "{what}");
            let lost = tried.run.calls.iter().position(|c| c.injected && c.name == "fdatasync");
            let (hit, later) = tried.run.calls.split_at(lost.expect("nothing has failed") + 1);
            let is_lost = |c: &&Call| c.path == hit[hit.len() - 1].path;
            let again = later.iter().filter(is_lost).any(|c| c.name.ends_with("sync"));
            assert!(!again, "{what}: fsynced again");
        }
    }
}

/// Nobody can keep a device from lying, but what it makes of a checkpoint is found.
#[test]
fn writes_that_are_not_done_are_found() {
    let found = |_: &Stage, tried: &Try| match (tried.run.code, whole(&tried.dir, 2)) {
        (Some(3), _) | (Some(0), Err(_)) => whole(&tried.dir, 1).err(),
        outcome => Some(format!("{outcome:?}")),
    };
    for divisor in [1, 2] {
        let lie = |call: &Call| match call.name {
            "pwrite64" => Act::Pretend(i64::try_from(call.arguments[2] / divisor).unwrap()),
            _ => Act::Pass,
        };
        once_each(&scenes::BESIDE, &lie, &found);
    }
}

#[test]
fn errors_of_closing_count() {
    for errno in [libc::EDQUOT, libc::EIO, libc::ENOSPC] {
        let close = |call: &Call| match call.name {
            "close" if call.nth == 0 && call.path.contains(".partial/") => Act::LoseAnswer(errno),
            _ => Act::Pass,
        };
        once_each(&scenes::BESIDE, &close, &fails);
    }
}

/// What a network file system does when its answer is lost, and when the repeated question is
/// answered by what the first one did.
#[test]
fn lost_answers_lose_nothing() {
    for scene in [&scenes::FIRST, &scenes::REPLACING, &scenes::RETENTION] {
        let lost = |call: &Call| match call.name {
            "close" | "flock" | "write" => Act::Pass,
            _ if call.changes => Act::LoseAnswer(libc::EIO),
            _ => Act::Pass,
        };
        once_each(scene, &lost, &|stage, tried| stage.fault_of(tried));
        let repeated = |call: &Call| match call.name {
            "mkdirat" | "symlinkat" => Act::LoseAnswer(libc::EEXIST),
            "openat" if call.creates() && call.path.contains(".partial/") => {
                Act::LoseAnswer(libc::EEXIST)
            }
            "renameat2" | "renameat" | "unlinkat" => Act::LoseAnswer(libc::ENOENT),
            _ => Act::Pass,
        };
        once_each(scene, &repeated, &|stage, tried| stage.fault_of(tried));
    }
}

/// A second exchange of names would undo the first one, and a second directory is not needed.
#[test]
fn an_answer_that_a_signal_interrupts_is_found_out() {
    for scene in [&scenes::FIRST, &scenes::REPLACING, &scenes::RETENTION] {
        let interrupted = |call: &Call| match call.name {
            "mkdirat" | "renameat2" | "renameat" => Act::LoseAnswer(libc::EINTR),
            _ => Act::Pass,
        };
        let is_saved = |stage: &Stage, tried: &Try| match stage.has_committed(tried) {
            true => succeeds(stage, tried),
            false => Some("nothing was saved".to_owned()),
        };
        once_each(scene, &interrupted, &is_saved);
    }
}

/// Plays the scene with all calls failing that `lacks` names.
fn without(
    scene: &'static Scene,
    lacks: &dyn Fn(&Call) -> bool,
    errno: i32,
    check: &dyn Fn(&Stage, &Try) -> Option<String>,
) -> Try {
    let stage = Stage::set(scene);
    let act = |call: &Call| if lacks(call) { Act::Fail(errno) } else { Act::Pass };
    let tried = stage.play(&mut |call| act(call));
    assert!(tried.run.calls.iter().any(|call| call.injected), "{}: not called", scene.title);
    assert_eq!(check(&stage, &tried), None, "{} {errno}: {}", scene.title, tried.run.stderr);
    tried
}

#[test]
fn what_can_be_done_without_is_done_without() {
    const MISSING: [i32; 2] = [libc::ENOSYS, libc::EOPNOTSUPP];
    for scene in [&scenes::FIRST, &scenes::BESIDE, &scenes::REPLACING] {
        for errno in MISSING.into_iter().chain([libc::ENOLCK]) {
            without(scene, &|c| c.name == "flock", errno, &succeeds);
        }
        for errno in MISSING.into_iter().chain([libc::EINVAL]) {
            without(scene, &|c| c.name == "renameat2", errno, &succeeds);
            without(scene, &|c| c.name == "fallocate", errno, &succeeds);
        }
    }
    for errno in MISSING.into_iter().chain([libc::EPERM]) {
        without(&scenes::RETENTION, &|c| c.name == "symlinkat", errno, &succeeds);
    }
}

#[test]
fn where_directories_cannot_be_fsynced_nothing_is_saved() {
    let of_dir = |c: &Call| c.name == "fsync" && !c.path.contains(".partial/");
    for scene in [&scenes::FIRST, &scenes::BESIDE, &scenes::REPLACING] {
        for errno in [libc::EINVAL, libc::ENOSYS] {
            let tried = without(scene, &of_dir, errno, &fails);
            let said = &tried.run.stderr;
            assert!(said.contains("choose another"), "{said}");
        }
    }
}
