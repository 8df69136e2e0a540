//! A test in namespaces of its own: its mounts, its loop devices and every process that it started
//! go with it, also when it panics, hangs or is killed.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::tier::{self, Need};

const INSIDE: &str = "TCH_CHECKPOINT_TEST_ALONE";
/// A hang is a failure.
const HUNG: Duration = Duration::from_secs(300);
const HUNG_FULL: Duration = Duration::from_secs(1800);

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Loop,
    Need::Program("setpriv"),
    Need::Program("unshare"),
    Need::Program("mount"),
    Need::Program("mkfs.ext4"),
    Need::Program("mkfs.xfs"),
    Need::Program("strace"),
];
const DEVICE_NEEDS: &[Need] = &[Need::Fuse, Need::Program("nbdkit"), Need::Program("nbdfuse")];

/// Runs `body`, the test called `test` (its whole path), with an empty directory in memory.
pub fn alone(test: &str, body: impl FnOnce(&Path)) {
    if std::env::var_os(INSIDE).is_some() {
        inside(body);
    } else if tier::has(NEEDS) {
        outside(test);
    }
}

/// As [`alone`], for a test that brings a block device of its own.
pub fn alone_with_device(test: &str, body: impl FnOnce(&Path)) {
    if std::env::var_os(INSIDE).is_some() || tier::has(DEVICE_NEEDS) {
        alone(test, body);
    }
}

/// Whether tests can run so, with devices of their own; `false` only if the user has opted out.
#[cfg(feature = "sabotage")]
pub fn can_be_alone() -> bool {
    tier::has(NEEDS) && tier::has(DEVICE_NEEDS)
}

fn inside(body: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    // In memory: what is tested is the file system in the image, not the disk below.
    let _memory = crate::disk::Mounted::memory(dir.path());
    body(dir.path());
}

/// Starts this test binary again for one test, as the first process of its namespaces: the kernel
/// ends all others with it, and it with this one.
fn outside(test: &str) {
    let mut command = tier::program("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"]);
    command.arg("--mount-proc").arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let child = command.env(INSIDE, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut child = KilledOnDrop(child);
    let mut stdout = child.0.stdout.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).map(|_| said)
    });
    let until = Instant::now() + if tier::is_full() { HUNG_FULL } else { HUNG };
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < until, "{test} hangs");
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = said.join().unwrap().unwrap();
    assert!(status.success(), "{test} failed ({status}): see its output above\n{said}");
    assert!(said.contains("1 passed"), "no test is called {test}: {said}");
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
