//! Files and directories that somebody swaps, cuts and grows while they are opened and read.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tch_checkpoint::ErrorKind;
use tch_checkpoint::catalog::Wanted;
use tch_checkpoint::load::read_tensor;
use tch_checkpoint::storage::LocalStorage;

use crate::forge::{Forge, W_BYTES, data_name, sums_name};
use crate::judge::unfit;
use crate::outside::{Watch, snapshot};
use crate::scene::Scene;
use crate::{alone, tier};

/// How long each race goes on: as long as it takes to meet every window many times.
fn race_time() -> Duration {
    Duration::from_millis(tier::count(300, 10_000))
}

/// Loads over and over while `disturb` goes on; what is loaded is what was saved, or an error.
fn race(what: &str, scene: &Scene, disturb: impl Fn(u64) + Sync) {
    let expected = Forge::honest(2, 0).data[..W_BYTES as usize].to_vec();
    let wanted = Wanted::parse(scene.a()).unwrap();
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    let (mut good, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0.. {
                if over.load(Relaxed) {
                    break;
                }
                disturb(turn);
            }
        });
        while begun.elapsed() < race_time() {
            match read_tensor(&LocalStorage::new(), &wanted, "w") {
                Ok((_, bytes)) => {
                    assert!(bytes == expected, "{what}: bytes from elsewhere were loaded");
                    good += 1;
                }
                Err(error) => {
                    let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound, ErrorKind::Superseded];
                    assert!(kinds.contains(&error.kind()), "{what}: {error}");
                    assert_eq!(unfit(&error.to_string()), None);
                    refused += 1;
                }
            }
        }
        over.store(true, Relaxed);
    });
    tier::figure(what, format!("{good} loads, {refused} errors"));
    assert!(good + refused > 20, "{what}: hardly a race");
}

/// Exchanges two names.
fn exchange(one: &Path, other: &Path) {
    let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
    rustix::fs::renameat_with(cwd, one, cwd, other, flags).unwrap();
}

#[test]
fn files_that_become_links_while_they_are_opened_are_not_followed() {
    let _alone = alone();
    for name in ["manifest.bin".to_owned(), data_name(), sums_name()] {
        let scene = Scene::new();
        scene.honest();
        let link = scene.top().join("link");
        symlink(scene.outside().join("ck").join(&name), &link).unwrap();
        let before = snapshot(&scene.outside());
        let watch = Watch::over(&scene.outside());
        let path = scene.a().join(&name);
        race(&format!("{name} and a link in turn"), &scene, |_| exchange(&path, &link));
        assert_eq!(watch.seen(), [""; 0], "{name}");
        assert_eq!(snapshot(&scene.outside()), before, "{name}");
    }
}

/// The directory of the checkpoint and a link to another good one, exchanged over and over.
#[test]
fn a_directory_that_becomes_a_link_is_not_followed() {
    let _alone = alone();
    let scene = Scene::new();
    scene.honest();
    let link = scene.dir().join(".link");
    symlink(scene.outside().join("ck"), &link).unwrap();
    let before = snapshot(&scene.outside());
    let watch = Watch::over(&scene.outside());
    race("a directory and a link in turn", &scene, |_| exchange(&scene.a(), &link));
    assert_eq!(watch.seen(), [""; 0]);
    assert_eq!(snapshot(&scene.outside()), before);
}

/// Nothing is mapped: a file that ends early while it is read is an error, not a signal.
#[test]
fn files_that_are_cut_and_grow_while_they_are_read_are_errors() {
    let _alone = alone();
    for name in ["manifest.bin".to_owned(), data_name(), sums_name()] {
        let scene = Scene::new();
        scene.honest();
        let path = scene.a().join(&name);
        let good = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        race(&format!("{name} of every length"), &scene, |turn| {
            let len = good.len() as u64;
            file.set_len([0, len / 2, len, len + 4096][turn as usize % 4]).unwrap();
            file.write_all_at(&good, 0).unwrap();
        });
    }
}
