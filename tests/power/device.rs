//! A block device of our own: it writes down what is written to it, and fails when it is told to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::disk::Mounted;
use crate::tier;

const HUNG: Duration = Duration::from_secs(20);
const PLUGIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power/device.py");

/// A file that is such a device, over an image.
pub struct Device {
    /// Before the process, so that it is unmounted while that lives.
    mounted: Mounted,
    server: Server,
}

impl Device {
    /// Serves `image` in a directory below `scratch`. Requests go to `log`; while the file `fails`
    /// is there, writes and flushes are errors, or as many of them as is written in it.
    pub fn start(image: &Path, log: &Path, fails: &Path, scratch: &Path) -> Self {
        let at = scratch.join("device");
        std::fs::create_dir_all(&at).unwrap();
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let mut command = tier::program("nbdfuse");
        command.arg(&at).args(["--command", "nbdkit", "-s", "python", PLUGIN]);
        command.args([option("image", image), option("log", log), option("fails", fails)]);
        // It speaks of every request that it fails.
        let said = File::create(scratch.join("device-errors")).unwrap();
        let server = Server(command.stdout(Stdio::null()).stderr(said).spawn().unwrap());
        let until = Instant::now() + HUNG;
        while !at.join("nbd").exists() {
            assert!(Instant::now() < until, "nbdfuse does not serve");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { mounted: Mounted::adopt(&at), server }
    }

    pub fn path(&self) -> PathBuf {
        self.mounted.path().join("nbd")
    }

    /// Ends it; what was written is in the image.
    pub fn stop(mut self) {
        self.mounted.unmount();
        let until = Instant::now() + HUNG;
        while self.server.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "nbdfuse hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}
