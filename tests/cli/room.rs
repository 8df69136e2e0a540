//! `du` and `prune`: what takes space, and what goes.

use std::fs;

use crate::snapshot::{Made, assert_snapshot, verb};
use crate::{Folder, assert_code, run};

/// Five checkpoints of a run, the third the best; none of them large.
fn run_of_five(folder: &Folder) {
    for (step, loss) in [(1, 0.9), (2, 0.5), (3, 0.1), (4, 0.3), (5, 0.4)] {
        let made = Made::new(step * 100, step).metric("val_loss", loss).automatic();
        made.floats("w", &[512], &[0.5; 512]).save(folder);
    }
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
    assert_snapshot("prune_dry", &verb("prune", folder.path(), &dry), &folder);
    let json = [&dry[..], &["--json"]].concat();
    assert_snapshot("prune_dry_json", &verb("prune", folder.path(), &json), &folder);
    assert_eq!(folder.entries(), before);
    assert_snapshot("prune", &verb("prune", folder.path(), &rules), &folder);
    assert_eq!(checkpoints(&folder), ["step-0100", "step-0300", "step-0500"]);
    assert!(folder.entries().contains(&"wandb".to_owned()));
    let again = verb("prune", folder.path(), &rules);
    assert!(again.stdout.contains("0 removed (0 B), 4 kept"), "{}", again.stdout);
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
    assert_eq!(of("step-0001")["shared"], size);
    let partial = of(".step-2.00112233445566778899aabbccddeeff.partial");
    assert_eq!(
        (&partial["bytes"], &partial["unreferenced"]),
        (&(size + 10_000).into(), &true.into())
    );
    let total = lines.last().unwrap();
    assert_eq!((&total["kind"], &total["foreign"]), (&"total".into(), &1.into()));
    let sum: u64 =
        lines.iter().filter(|l| l["kind"] == "entry").map(|l| l["on_disk"].as_u64().unwrap()).sum();
    assert_eq!(total["on_disk"], sum);
    // The name that is first by its letters has the bytes that both share.
    assert!(of("step-0001")["on_disk"].as_u64().unwrap() < size);
    assert_code(&verb("du", &folder.at("missing"), &[]), 7);
}
