//! A directory in which one good checkpoint lies among hostile ones: whoever looks at all of it
//! finds the good one, and nothing of the others is touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tch_checkpoint::ProcessGroup;
use tch_checkpoint::autosave::Retention;
use tch_checkpoint::catalog::{Order, Wanted, find, find_checkpoints};
use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig, Location, Parts};
use tch_checkpoint::manifest::CheckpointState;
use tch_checkpoint::retain::keep;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::sweep::Pace;

use crate::alone;
use crate::forge::{Forge, data_name};
use crate::judge::{unfit, without_a_trace};
use crate::outside::{Watch, snapshot};
use crate::scene::Scene;

const STORAGE: LocalStorage = LocalStorage::new();

/// Ten hostile ones beside `good`, all of which say that they are newer.
fn scene() -> Scene {
    let scene = Scene::new();
    let dir = scene.dir();
    let put = |name: &str, change: fn(&mut Forge)| {
        let mut forge = Forge::honest(2, 0);
        forge.body.step = 100;
        change(&mut forge);
        forge.write(&dir.join(name));
    };
    put("good", |forge| forge.body.step = 7);
    put("bad-path", |forge| forge.body.data_files[0].name = "../../outside/secret".into());
    put("bad-len", |forge| forge.body.data_files[0].len = u64::MAX);
    put("bad-shape", |forge| forge.body.tensors[1].shape = vec![1 << 60, 1 << 60]);
    put("bad-sum", |_| ());
    fs::write(dir.join("bad-sum/manifest.bin"), b"TCHCKPT\n\x02\0\0\0").unwrap();
    put("bad-fifo", |_| ());
    fs::remove_file(dir.join("bad-fifo/manifest.bin")).unwrap();
    let (fifo, mode) = (rustix::fs::FileType::Fifo, 0o600.into());
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("bad-fifo/manifest.bin"), fifo, mode, 0).unwrap();
    put("bad-link", |_| ());
    fs::remove_file(dir.join("bad-link").join(data_name())).unwrap();
    symlink(scene.outside().join("secret"), dir.join("bad-link").join(data_name())).unwrap();
    put("bad-sparse", |_| ());
    let sparse = fs::OpenOptions::new().write(true).open(dir.join("bad-sparse/manifest.bin"));
    sparse.unwrap().set_len(1 << 40).unwrap();
    symlink(scene.outside().join("ck"), dir.join("linked")).unwrap();
    symlink("../outside/ck", dir.join("latest")).unwrap();
    scene.put("best.json", "[".repeat(10_000));
    fs::create_dir(dir.join("odd\u{1b}[2J\nLATEST 999 forged")).unwrap();
    fs::write(dir.join("x\nLATEST 999 forged"), b"").unwrap();
    scene
}

#[test]
fn the_good_one_among_them_is_found() {
    let _alone = alone();
    let scene = scene();
    let ((), trace) = without_a_trace(&scene, || {
        let listed = find_checkpoints(&STORAGE, &scene.dir(), &Order::Latest).unwrap();
        let committed: Vec<&str> = listed
            .iter()
            .filter(|info| info.state == CheckpointState::Committed)
            .map(|info| info.name.as_str())
            .collect();
        assert_eq!(committed, ["good"]);
        assert_eq!(listed.len(), 8, "{listed:#?}");
        for info in &listed {
            assert_eq!(unfit(info.fault.as_deref().unwrap_or_default()), None, "{}", info.name);
        }
        // By manifests alone: that of which only a file is a link is the newest that can be read.
        let wanted = Wanted::latest(scene.dir());
        assert_eq!(find(&STORAGE, &wanted).unwrap().name.as_str(), "bad-link");
        assert_eq!(find(&STORAGE, &Wanted::step(scene.dir(), 7)).unwrap().name.as_str(), "good");
    });
    assert_eq!(trace, None);
}

fn said(arguments: &[&str], dir: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let output = command.args(arguments).arg(dir).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Whoever reads these lines by program is told one newest checkpoint, whatever entries are called.
#[test]
fn no_name_of_an_entry_adds_a_line_to_what_is_said() {
    let _alone = alone();
    let scene = scene();
    let ((), trace) = without_a_trace(&scene, || {
        for arguments in [&["verify", "--all", "--dir"][..], &["latest", "--dir"]] {
            let (code, text) = said(arguments, &scene.dir());
            assert_eq!(code, Some(3), "{text}");
            assert_eq!(unfit(&text), None);
            let newest: Vec<_> = text.lines().filter(|line| line.starts_with("LATEST")).collect();
            assert_eq!(newest, [format!("LATEST 7 {}", "ab".repeat(16))], "{text}");
        }
        for arguments in
            [&["verify", "--json", "--all", "--dir"][..], &["latest", "--json", "--dir"]]
        {
            let (_, text) = said(arguments, &scene.dir());
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    });
    assert_eq!(trace, None);
}

/// A rule that keeps one removes nothing that it does not understand, and a run that resumes there
/// takes the good one.
#[test]
fn retention_and_resuming_leave_them_alone() {
    let _alone = alone();
    let scene = scene();
    fs::remove_dir_all(scene.dir().join("bad-link")).unwrap();
    let dir = STORAGE.open_dir(&scene.dir()).unwrap();
    let before = snapshot(&scene.outside());
    let watch = Watch::over(&scene.outside());
    let names = || {
        let mut names: Vec<_> = dir.list().unwrap().into_iter().map(|e| e.name).collect();
        names.retain(|name| name != ".tch-checkpoint.lock");
        names.sort();
        names
    };
    let there = names();
    let retention = Retention { last: std::num::NonZeroU64::new(1), ..Retention::default() };
    keep(dir.as_ref(), &retention, &[], &Pace::of(&ProcessGroup::solo())).unwrap();
    assert_eq!(names(), there);
    let config = CheckpointerConfig {
        location: Location::Path(scene.top().to_path_buf()),
        experiment: "in".to_owned(),
        save_on_signal: false,
        save_before_time_limit: false,
        resume_fall_back: true,
        ..CheckpointerConfig::default()
    };
    let group = ProcessGroup::solo();
    let mut checkpointer = Checkpointer::with_storage(&group, Arc::new(STORAGE), config).unwrap();
    // Nothing here was saved by a Checkpointer: found, and refused for what it does not hold.
    let error = checkpointer.resume(&mut Parts::new()).unwrap_err();
    assert_eq!(unfit(&error.to_string()), None);
    assert_eq!(names(), there);
    assert_eq!(watch.seen(), [""; 0]);
    assert_eq!(snapshot(&scene.outside()), before);
}

/// What a crash left is removed, whatever it is called; what is no checkpoint at all, level under
/// level, stays and is told, and neither ends the process nor its save.
#[test]
fn debris_of_any_depth_ends_no_save() {
    let _alone = alone();
    let top = tempfile::tempdir().unwrap();
    let shallow = top.path().join(format!(".trash-{}", "ab".repeat(16)));
    let deep = top.path().join(format!(".trash-{}", "cd".repeat(16)));
    fs::create_dir_all(shallow.join("code/a/b/c")).unwrap();
    fs::create_dir_all(deep.join("d/".repeat(1500))).unwrap();
    symlink(top.path(), shallow.join("code/link")).unwrap();
    let mut save = Command::new("sh");
    let line = "ulimit -n 20000; exec \"$0\" stress save --step 1 --bytes 100 --dir \"$1\"";
    save.args(["-c", line, env!("CARGO_BIN_EXE_tch-checkpoint")]).arg(top.path());
    let output = save.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!shallow.exists());
    assert!(deep.join("d/".repeat(100)).exists(), "part of it was removed");
    assert!(top.path().join("step-00000001/manifest.bin").exists());
}
