//! What a directory holds, and which checkpoint of it is meant.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch_checkpoint::autosave::Mode;
use tch_checkpoint::catalog::{self, Order, Wanted, find_checkpoints, find_checkpoints_on};
use tch_checkpoint::layout::{self, CheckpointName, SaveId};
use tch_checkpoint::manifest::{CheckpointInfo, CheckpointState};
use tch_checkpoint::storage::{Fault, FaultyStorage, LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, ErrorKind, OnExisting, ProcessGroup, SaveOptions, save};

use super::harness::{name, on_ranks, one_error, path, wanted};
use super::hooked::Hooked;

/// A small checkpoint `runs/<at>` with these metrics.
fn put(storage: &dyn Storage, at: &str, step: u64, metrics: &[(&str, f64)]) -> Checkpoint {
    put_in(storage, "runs", at, step, metrics)
}

fn put_in(
    storage: &dyn Storage,
    directory: &str,
    at: &str,
    step: u64,
    metrics: &[(&str, f64)],
) -> Checkpoint {
    let mut state = tch_checkpoint::state::StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, [3]).unwrap();
    state.add(&Component::model(), name("w"), spec, Arc::new(vec![1u8, 2, 3])).unwrap();
    for (metric, value) in metrics {
        state.values.set(format!("metrics.{metric}"), *value);
    }
    let on_existing = OnExisting::Replace;
    let options = SaveOptions {
        step,
        epoch: step / 10,
        on_existing,
        copy_unchanged: true,
        ..SaveOptions::default()
    };
    let at = path(&format!("{directory}/{at}"));
    save(&ProcessGroup::solo(), storage, &at, &state, &options).unwrap()
}

fn listed(storage: &dyn Storage, order: &Order) -> Vec<CheckpointInfo> {
    find_checkpoints(storage, Path::new("runs"), order).unwrap()
}

fn names(infos: &[CheckpointInfo]) -> Vec<&str> {
    infos.iter().map(|info| info.name.as_str()).collect()
}

fn found(storage: &dyn Storage, wanted: &Wanted) -> String {
    catalog::find(storage, wanted).unwrap().name.to_string()
}

fn refused(storage: &dyn Storage, wanted: &Wanted) -> tch_checkpoint::Error {
    catalog::find(storage, wanted).unwrap_err()
}

fn by(monitor: &str, mode: Mode) -> Order {
    Order::Best { monitor: monitor.to_owned(), mode }
}

fn data_file(storage: &dyn Storage, at: &str) -> String {
    let found = catalog::find(storage, &wanted(&format!("runs/{at}"))).unwrap();
    format!("runs/{at}/{}", found.manifest.data_files()[0].name)
}

/// Metrics come from manifests: what a name rounds, cuts or cannot hold does not matter.
#[test]
fn orders_go_by_what_manifests_hold() {
    let storage = MemoryStorage::new();
    let metrics = [
        ("loss_0.0000", 30, 1e-9),
        ("loss_-0.0000", 20, -1e-9),
        ("loss_nan", 90, f64::NAN),
        ("loss_inf", 70, f64::INFINITY),
        ("loss_-inf", 60, f64::NEG_INFINITY),
        ("loss_-2.0000", 10, -2.0),
        ("tie_later", 50, -2.0),
    ];
    for (at, step, loss) in metrics {
        put(&storage, at, step, &[("loss", loss), ("accuracy", -loss)]);
    }
    put(&storage, "none", 80, &[]);
    let newest_first = listed(&storage, &Order::Latest);
    let steps: Vec<u64> = newest_first.iter().map(|info| info.step).collect();
    assert_eq!(steps, [90, 80, 70, 60, 50, 30, 20, 10]);
    for (at, _, loss) in metrics {
        let info = newest_first.iter().find(|info| info.name == at).unwrap();
        assert_eq!(info.metrics["loss"].to_bits(), loss.to_bits(), "{at}");
    }
    let last = ["loss_nan", "none", "loss_inf", "loss_-inf"];
    let low = ["loss_-2.0000", "tie_later", "loss_-0.0000", "loss_0.0000"];
    let high = ["loss_0.0000", "loss_-0.0000", "loss_-2.0000", "tie_later"];
    for (order, best) in [
        (by("loss", Mode::Min), low),
        (by("loss", Mode::Max), high),
        (by("accuracy", Mode::Max), low),
    ] {
        assert_eq!(names(&listed(&storage, &order)), [&best[..], &last[..]].concat(), "{order:?}");
        let Order::Best { monitor, mode } = order else { unreachable!() };
        assert_eq!(found(&storage, &Wanted::best_by("runs", monitor, mode)), best[0]);
    }
    assert_eq!(found(&storage, &Wanted::latest("runs")), "loss_nan");
}

#[test]
fn a_listing_says_what_is_committed_partial_and_damaged() {
    let storage = MemoryStorage::new();
    let runs = storage.create_dir_all(Path::new("runs")).unwrap();
    for (at, step) in [("good", 1), ("cut", 9), ("lost", 8), ("flipped", 7), ("old", 2)] {
        put(&storage, at, step, &[("loss", 1.0)]);
    }
    let cut = data_file(&storage, "cut");
    let whole = storage.read(Path::new(&cut)).unwrap();
    storage.write(Path::new(&cut), &whole[..100]).unwrap();
    let lost = data_file(&storage, "lost");
    let (_, file) = lost.rsplit_once('/').unwrap();
    runs.open_dir("lost").unwrap().remove_file(file).unwrap();
    storage.corrupt(Path::new("runs/flipped/manifest.bin"), 40, 1).unwrap();
    let id = SaveId::from_bytes([7; 16]);
    let named = |text: &str| CheckpointName::new(text).unwrap();
    // An interrupted replacement, and one whose name is taken again.
    let rename = tch_checkpoint::storage::Rename::NoReplace;
    runs.rename("old", &layout::old_dir(&named("old"), &id), rename).unwrap();
    put(&storage, "twice", 3, &[]);
    runs.rename("twice", &layout::old_dir(&named("good"), &id), rename).unwrap();
    runs.create_dir(&layout::partial_dir(&named("next"), &id)).unwrap();
    // Nothing of ours.
    runs.create_dir("mine").unwrap();
    let foreign = runs.create_dir("theirs").unwrap();
    foreign.create_file("manifest.bin").unwrap().finish().unwrap();
    runs.create_link("link", "good").unwrap();
    runs.create_file("good.txt").unwrap().finish().unwrap();
    runs.create_file(&layout::pin_file(&named("good"))).unwrap().finish().unwrap();

    for order in [Order::Latest, by("loss", Mode::Min)] {
        let all = listed(&storage, &order);
        let mut committed = vec!["old", "good"];
        if order != Order::Latest {
            committed.reverse();
        }
        committed.extend(["cut", "lost", "flipped", "next"]);
        assert_eq!(names(&all), committed, "{order:?}");
        let states: Vec<CheckpointState> = all.iter().map(|info| info.state).collect();
        let (committed, damaged) = (CheckpointState::Committed, CheckpointState::Damaged);
        let partial = CheckpointState::Partial;
        assert_eq!(states, [committed, committed, damaged, damaged, damaged, partial]);
        for info in &all {
            assert_eq!(info.pinned, info.name == "good", "{}", info.name);
            assert_eq!(info.fault.is_some(), info.state == damaged, "{}", info.name);
        }
    }
    let all = listed(&storage, &Order::Latest);
    let fault = |at: usize| all[at].fault.clone().unwrap();
    assert!(fault(2).contains("truncated: 100 bytes"), "{}", fault(2));
    assert!(fault(3).contains(file) && fault(4).contains("manifest.bin"), "{all:?}");
    assert_eq!((all[2].step, all[4].step, all[5].save_id), (9, 0, Some(id)));
    let good = &all[1];
    assert_eq!((good.step, good.world_size, good.tensor_bytes), (1, 1, 3));
    assert!(!good.automatic && good.created_unix_ms > 0);
}

#[test]
fn a_listing_that_fails_hides_nothing() {
    let memory = Arc::new(MemoryStorage::new());
    put(memory.as_ref(), "a", 1, &[]);
    put(memory.as_ref(), "b", 2, &[]);
    let storage = FaultyStorage::new(memory);
    let all = listed(&storage, &Order::Latest);
    let operations = storage.operations();
    for operation in 1..=operations {
        storage.reset();
        storage.fail_at(operation, Fault::Error(5), false);
        let failed = find_checkpoints(&storage, Path::new("runs"), &Order::Latest);
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Storage, "{:?}", storage.log().last());
    }
    storage.reset();
    assert_eq!(listed(&storage, &Order::Latest), all);
    let error = find_checkpoints(&storage, Path::new("nowhere"), &Order::Latest).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::NotFound, Some("nowhere")));
    assert!(error.help().is_some());
}

/// A save takes the name, and its predecessor is unlinked, between a look at the manifest and one
/// at the files: the list tells of the successor.
#[test]
fn what_is_replaced_while_it_is_listed_is_not_called_damaged() {
    let memory = MemoryStorage::new();
    put(&memory, "a", 1, &[]);
    let (other, once) = (memory.clone(), AtomicBool::new(false));
    let hooked = Hooked::new(&memory, move |call| {
        let is_data = call.path.extension().is_some_and(|extension| extension == "safetensors");
        if call.operation == "open_file" && is_data && !once.swap(true, Ordering::SeqCst) {
            put(&other, "a", 2, &[]);
        }
        Ok(())
    });
    let all = listed(&hooked, &Order::Latest);
    assert_eq!(all, listed(&memory, &Order::Latest));
    assert_eq!((all[0].step, all[0].state), (2, CheckpointState::Committed));
}

#[test]
fn every_rank_is_told_what_the_coordinator_found() {
    let storage = MemoryStorage::new();
    put(&storage, "a", 1, &[("loss", f64::NAN)]);
    put(&storage, "b", 2, &[("loss", 0.5)]);
    let order = by("loss", Mode::Min);
    let told = on_ranks(3, move |group| {
        let directory = if group.rank().get() == 0 { "runs" } else { "elsewhere" };
        let list = |at: &str| find_checkpoints_on(&group, &storage, Path::new(at), &order);
        (list(directory).unwrap(), list("nowhere"))
    });
    for (listed, _) in &told {
        assert_eq!(names(listed), ["b", "a"]);
        assert!(listed[1].metrics["loss"].is_nan());
    }
    let errors: Vec<_> = told.into_iter().map(|(_, error)| error).collect();
    assert_eq!(one_error(&errors, "no directory").kind(), ErrorKind::NotFound);
}

#[test]
fn a_step_is_found_or_the_steps_there_are_are_named() {
    let storage = MemoryStorage::new();
    for (at, step) in [("a", 10), ("b", 20), ("b2", 20), ("c", 5)] {
        put(&storage, at, step, &[]);
    }
    assert_eq!(found(&storage, &Wanted::step("runs", 10)), "a");
    assert_eq!(found(&storage, &Wanted::step("runs", 20)), "b2", "the newest of several");
    let error = refused(&storage, &Wanted::step("runs", 7));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("step 7"), "{error}");
    assert_eq!(error.help(), Some("there are the steps 20, 10, 5"));
    storage.corrupt(Path::new("runs/c/manifest.bin"), 40, 1).unwrap();
    let error = refused(&storage, &Wanted::step("runs", 5));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.help(), Some("there are the steps 20, 10, and 1 damaged"));
    for step in 100..150 {
        put(&storage, &format!("s{step}"), step, &[]);
    }
    let error = refused(&storage, &Wanted::step("runs", 7));
    assert!(error.help().unwrap().contains("111, 110 and 12 more"), "{error}");
}

#[test]
fn a_metric_that_no_checkpoint_has_is_named_with_those_there_are() {
    let storage = MemoryStorage::new();
    put(&storage, "a", 1, &[("loss", f64::NAN), ("accuracy", 0.5)]);
    for monitor in ["loss", "f1"] {
        let error = refused(&storage, &Wanted::best_by("runs", monitor, Mode::Min));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains(&format!("`{monitor}`")), "{error}");
        assert_eq!(error.help(), Some("there are the metrics `accuracy`, `loss`"));
    }
    for wanted in [Wanted::best_by("other", "f1", Mode::Max), Wanted::step("other", 1)] {
        storage.create_dir_all(Path::new("other")).unwrap();
        let error = refused(&storage, &wanted);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.help(), Some("the directory holds no checkpoint"));
    }
}

/// Without being asked, another checkpoint never stands in for a damaged one.
#[test]
fn falling_back_leaves_out_what_is_damaged_and_never_ends_in_nothing() {
    let storage = MemoryStorage::new();
    let id = |at: &str| catalog::find(&storage, &wanted(&format!("runs/{at}"))).unwrap();
    for (at, step, loss) in [("a", 1, 0.3), ("b", 2, 0.2), ("c", 3, 0.1), ("b2", 2, 0.4)] {
        put(&storage, at, step, &[("loss", loss)]);
    }
    let ids = ["a", "b", "b2", "c"].map(|at| id(at).manifest.save_id());
    let runs = storage.open_dir(Path::new("runs")).unwrap();
    let lost = data_file(&storage, "b2");
    let (_, file) = lost.rsplit_once('/').unwrap();
    runs.open_dir("b2").unwrap().remove_file(file).unwrap();

    let latest = || Wanted::latest("runs");
    let best = || Wanted::best_by("runs", "loss", Mode::Min);
    assert_eq!(found(&storage, &Wanted::step("runs", 2)), "b2", "its load says what is lost");
    assert_eq!(found(&storage, &latest().except(vec![ids[3]])), "b", "b2 has lost a file");
    assert_eq!(found(&storage, &best().except(vec![ids[3]])), "b");
    assert_eq!(found(&storage, &Wanted::step("runs", 2).except(vec![ids[2]])), "b");
    assert_eq!(found(&storage, &latest().except(vec![ids[3], ids[1]])), "a");
    let all = ids.to_vec();
    for nothing in [
        latest().except(all.clone()),
        best().except(all.clone()),
        Wanted::step("runs", 2).except(vec![ids[1]]),
        Wanted::step("runs", 3).except(vec![ids[3]]),
        wanted("runs/c").except(vec![ids[3]]),
    ] {
        let error = refused(&storage, &nothing);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{nothing}: {error}");
    }
}

/// Paths that end in `best` go by the link, which is read as text and never followed.
#[test]
fn the_best_is_what_the_link_names() {
    let storage = MemoryStorage::new();
    let runs = storage.create_dir_all(Path::new("runs")).unwrap();
    let one = put(&storage, "a", 1, &[]);
    put(&storage, "b", 2, &[]);
    put_in(&storage, "outside", "x", 3, &[]);
    let best = wanted("runs/best");
    let error = refused(&storage, &best);
    assert_eq!((error.kind(), error.path()), (ErrorKind::NotFound, Some("runs/best")));
    assert_eq!(error.help(), Some("the directory holds: a, b"));

    let json = |name: &str| {
        let text = format!(
            "{{\"tch_checkpoint_pointer\":1,\"name\":{name:?},\"save_id\":\"{}\",\"step\":1,\
             \"epoch\":0,\"metrics\":{{\"loss\":\"NaN\"}},\"created_unix_ms\":0,\"more\":[]}}",
            one.save_id
        );
        let _ = runs.remove_file("best.json");
        let file = runs.create_file("best.json").unwrap();
        file.write_at(0, text.as_bytes()).unwrap();
        file.finish().unwrap();
    };
    json("a");
    assert_eq!(found(&storage, &best), "a");
    for hostile in ["../outside/x", "latest", ".hidden", "a/..", ""] {
        json(hostile);
        assert_eq!(refused(&storage, &best).kind(), ErrorKind::NotFound, "{hostile}");
    }
    json("a");
    let link = |text: &str| {
        let _ = runs.remove_file("best");
        runs.create_link("best", text).unwrap();
    };
    link("b");
    assert_eq!(found(&storage, &best), "b", "the link comes first");
    assert_eq!(found(&storage, &Wanted::best("runs")), "b");
    runs.create_link("alias", "a").unwrap();
    let hostile = ["../outside/x", "/outside/x", "a/", "./a", "a/../b", ".", "..", "latest"];
    for text in hostile.into_iter().chain(["alias", "gone", "a\nb"]) {
        link(text);
        let error = refused(&storage, &best);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{text}: {error}");
        // On one line, whatever it says.
        assert!(error.message().contains(&text.replace('\n', "\\n")), "{error}");
        assert_eq!(error.help(), Some("the directory holds: a, b"));
    }
}

#[test]
fn the_same_on_a_real_file_system() {
    let disk = tempfile::tempdir().unwrap();
    let (local, root) = (LocalStorage::new(), disk.path().to_str().unwrap().to_owned());
    put_in(&local, &root, "a", 1, &[("loss", -1e-300)]);
    put_in(&local, &root, "b", 2, &[("loss", 0.0)]);
    let order = by("loss", Mode::Min);
    let listed = find_checkpoints(&local, disk.path(), &order).unwrap();
    assert_eq!(names(&listed), ["a", "b"]);
    std::os::unix::fs::symlink("a", disk.path().join("best")).unwrap();
    assert_eq!(found(&local, &wanted(&format!("{root}/best"))), "a");
    let data = disk.path().join("a").join(
        &catalog::find(&local, &wanted(&format!("{root}/a"))).unwrap().manifest.data_files()[0]
            .name,
    );
    std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(4097).unwrap();
    let listed = find_checkpoints(&local, disk.path(), &order).unwrap();
    assert_eq!(names(&listed), ["b", "a"]);
    assert_eq!(listed[1].state, CheckpointState::Damaged);
}
