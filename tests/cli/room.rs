//! `du` and `prune`: what takes space, and what goes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::snapshot::{Made, assert_snapshot, verb, verb_lines};
use crate::{Folder, Ran, assert_code, run};

/// Five checkpoints of a run, the third the best; none of them large.
fn run_of_five(folder: &Folder) {
    for (step, loss) in [(1, 0.9), (2, 0.5), (3, 0.1), (4, 0.3), (5, 0.4)] {
        let made = Made::new(step * 100, step).metric("val_loss", loss).automatic();
        made.floats("w", &[512], &[0.5; 512]).save(folder);
    }
}

/// What the files of a checkpoint take on the device.
fn on_disk(at: &str) -> u64 {
    let files = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum()
}

/// The objects of `prune --json`: what each checkpoint frees, by its name.
fn freed(ran: &Ran) -> BTreeMap<String, u64> {
    let of = |line: serde_json::Value| {
        (line["name"].as_str().unwrap().to_owned(), line["freed"].as_u64().unwrap())
    };
    verb_lines(ran).into_iter().map(of).collect()
}

/// What becomes free depends on the file system.
fn without_sizes(mut ran: Ran) -> Ran {
    let lines = ran.stdout.lines().map(|line| match (line.find(" ("), line.find("), ")) {
        (Some(begin), Some(end)) => format!("{} (SIZE{}\n", &line[..begin], &line[end..]),
        _ => format!("{line}\n"),
    });
    ran.stdout = lines.collect();
    ran
}

fn checkpoints(folder: &Folder) -> Vec<String> {
    folder.entries().into_iter().filter(|name| name.starts_with("step")).collect()
}

#[test]
fn prune_says_why_and_removes_what_no_rule_keeps() {
    let folder = Folder::new();
    run_of_five(&folder);
    Made::new(150, 1).floats("w", &[1], &[0.5]).save_as(&folder, "by-hand");
    fs::write(folder.at(".step-0100.pin"), "").unwrap();
    fs::create_dir(folder.at("wandb")).unwrap();
    let rules = ["--keep-last", "1", "--keep-best", "1", "--monitor", "val_loss"];
    let dry = [&rules[..], &["--dry-run"]].concat();
    let before = folder.entries();
    let text = verb("prune", folder.path(), &dry);
    assert_snapshot("prune_dry", &without_sizes(text), &folder);
    let json = verb("prune", folder.path(), &[&dry[..], &["--json"]].concat());
    let of_any_size = |mut line: serde_json::Value| {
        line["freed"] = (line["freed"] != 0).into();
        format!("{line}\n")
    };
    let shown = verb_lines(&json).into_iter().map(of_any_size).collect();
    assert_snapshot("prune_dry_json", &Ran { stdout: shown, ..json.clone() }, &folder);
    let sizes = ["step-0400", "step-0200"].map(|name| on_disk(&folder.at(name)));
    for (name, freed) in freed(&json) {
        let goes = ["step-0400", "step-0200"].iter().position(|gone| *gone == name);
        assert_eq!(freed, goes.map_or(0, |index| sizes[index]), "{name}");
    }
    assert_eq!(folder.entries(), before);
    let done = verb("prune", folder.path(), &rules);
    assert_snapshot("prune", &without_sizes(done), &folder);
    assert_eq!(checkpoints(&folder), ["step-0100", "step-0300", "step-0500"]);
    assert!(folder.entries().contains(&"wandb".to_owned()));
    let again = verb("prune", folder.path(), &rules);
    assert!(again.stdout.contains("0 removed (0 B), 4 kept"), "{}", again.stdout);
}

/// A file is freed with its last name: by the last of three that go, and by none if one stays.
#[test]
fn prune_counts_what_becomes_free_and_not_what_has_another_name() {
    for stays in [false, true] {
        let folder = Folder::new();
        run_of_five(&folder);
        let trunk = crate::shard(&folder.at("step-0100"));
        let shared = fs::metadata(&trunk).unwrap().blocks() * 512;
        let more: &[&str] = if stays { &["step-0200", "step-0500"] } else { &["step-0200"] };
        for other in more {
            let file = crate::shard(&folder.at(other));
            fs::remove_file(&file).unwrap();
            fs::hard_link(&trunk, file).unwrap();
        }
        let expected = |name: &str| {
            let is_kept = name == "step-0100" || name == "step-0200" && stays;
            on_disk(&folder.at(name)) - if is_kept { shared } else { 0 }
        };
        let going = ["step-0100", "step-0200", "step-0300", "step-0400"];
        let expected: BTreeMap<_, _> =
            going.iter().map(|name| (name.to_string(), expected(name))).collect();
        for more in [&["--dry-run"][..], &[]] {
            let asked = [&["--keep-last", "1", "--json"], more].concat();
            let mut freed = freed(&verb("prune", folder.path(), &asked));
            assert_eq!(freed.remove("step-0500"), Some(0));
            assert_eq!(freed, expected, "one stays: {stays}, {more:?}");
        }
        assert_eq!(checkpoints(&folder), ["step-0500"]);
    }
}

/// What could not be removed has freed nothing.
#[test]
fn prune_does_not_count_what_it_could_not_remove() {
    let folder = Folder::new();
    run_of_five(&folder);
    fs::write(folder.at("step-0200/notes.txt"), "text").unwrap();
    let freed = freed(&verb("prune", folder.path(), &["--keep-last", "3", "--json"]));
    assert_eq!(freed["step-0200"], 0);
    assert!(freed["step-0100"] > 0);
}

/// What links name stays, whatever the rules say.
#[test]
fn prune_never_removes_what_a_link_names() {
    let folder = Folder::new();
    run_of_five(&folder);
    std::os::unix::fs::symlink("step-0200", folder.at("best")).unwrap();
    std::os::unix::fs::symlink("step-0400", folder.at("latest")).unwrap();
    let ran = verb("prune", folder.path(), &["--keep-last", "1"]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("a link names it"), "{}", ran.stdout);
    assert_eq!(checkpoints(&folder), ["step-0200", "step-0400", "step-0500"]);
}

/// One that holds a file of somebody else stays, and that is told.
#[test]
fn prune_tells_what_it_could_not_remove() {
    let folder = Folder::new();
    run_of_five(&folder);
    fs::write(folder.at("step-0200/notes.txt"), "text").unwrap();
    let ran = verb("prune", folder.path(), &["--keep-last", "2", "--keep", "step-*1*"]);
    assert_code(&ran, 7);
    assert!(
        ran.stdout.contains("not removed") && ran.stdout.contains("notes.txt"),
        "{}",
        ran.stdout
    );
    assert_eq!(checkpoints(&folder), ["step-0100", "step-0200", "step-0400", "step-0500"]);
}

#[test]
fn prune_keeps_damaged_ones_and_wants_rules_that_make_sense() {
    let folder = Folder::new();
    run_of_five(&folder);
    fs::remove_file(folder.at("step-0100/manifest.bin")).unwrap();
    fs::write(crate::shard(&folder.at("step-0200")), "short").unwrap();
    assert_code(&verb("prune", folder.path(), &["--keep-last", "1"]), 0);
    assert_eq!(checkpoints(&folder), ["step-0100", "step-0200", "step-0500"]);
    for rules in [
        &[][..],
        &["--dry-run"],
        &["--mode", "max"],
        &["--keep-last", "0"],
        &["--keep-best", "1"],
        &["--keep-last", "1", "--monitor", "x"],
        &["--keep-best", "1", "--monitor", "x", "--mode", "up"],
    ] {
        assert_code(&verb("prune", folder.path(), rules), 2);
    }
    assert_code(&verb("prune", folder.path(), &["--keep-last", "1", "--keep", "[a"]), 7);
    assert_code(&verb("prune", &folder.at("missing"), &["--keep-last", "1"]), 7);
}

#[test]
fn du_counts_checkpoints_and_what_none_refers_to() {
    let folder = Folder::new();
    let made = Made::new(1, 1).floats("w", &[100_000], &vec![0.5; 100_000]).save(&folder);
    let attempt = folder.at(".step-2.00112233445566778899aabbccddeeff.partial");
    fs::create_dir(&attempt).unwrap();
    fs::write(format!("{attempt}/x"), vec![1; 10_000]).unwrap();
    let file = crate::shard(&made);
    fs::hard_link(&file, format!("{attempt}/y")).unwrap();
    fs::write(folder.at("notes.txt"), "text").unwrap();
    let text = verb("du", folder.path(), &[]);
    assert_code(&text, 0);
    for words in ["step-0001", "committed", "an attempt", "no checkpoint refers to", "1 foreign"] {
        assert!(text.stdout.contains(words), "{words} is not in {}", text.stdout);
    }
    let json = run(&["du", "--json", folder.path()]);
    let lines: Vec<serde_json::Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap();
    let size = fs::metadata(&file).unwrap().len();
    let (whole, file) = (on_disk(&made), fs::metadata(&file).unwrap().blocks() * 512);
    let entry = of("step-0001");
    assert_eq!(
        [&entry["on_disk"], &entry["unique"], &entry["shared"]],
        [whole, whole - file, file]
    );
    let partial = of(".step-2.00112233445566778899aabbccddeeff.partial");
    assert_eq!(
        (&partial["bytes"], &partial["unreferenced"]),
        (&(size + 10_000).into(), &true.into())
    );
    let own = partial["unique"].as_u64().unwrap();
    let total = lines.last().unwrap();
    assert_eq!((&total["kind"], &total["foreign"]), (&"total".into(), &1.into()));
    assert_eq!(total["unreferenced"], own, "the checkpoint has the rest");
    let unique = lines.iter().filter_map(|line| line["unique"].as_u64()).sum::<u64>();
    assert_eq!(total["on_disk"], unique + file, "what both have counts once");
    assert_code(&verb("du", &folder.at("missing"), &[]), 7);
}
