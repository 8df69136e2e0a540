//! File systems in memory, of a size that a test chooses.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

pub const PAGE: u64 = 4096;

/// A mounted tmpfs; unmounted when dropped.
pub struct Tmpfs {
    at: TempDir,
}

/// What a file system has, in pages and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used_pages: u64,
    pub free_pages: u64,
    pub used_inodes: u64,
}

impl Tmpfs {
    /// With room for anything that tests write.
    pub fn mounted() -> Self {
        let at = tempfile::tempdir().unwrap();
        mount("tmpfs", at.path(), "tmpfs", MountFlags::empty(), c"size=64m,mode=755").unwrap();
        Self { at }
    }

    /// Whether it could be made read-only, or writable again.
    pub fn make_read_only(&self, read_only: bool) -> bool {
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(self.at.path(), flags, "").is_ok()
    }

    fn set(&self, options: &str) {
        mount_remount(self.at.path(), MountFlags::empty(), options).unwrap();
    }

    /// Room for `pages` and `inodes` more than are in use; for as much as anybody wants if not.
    pub fn leave(&self, pages: Option<u64>, inodes: Option<u64>) {
        self.set("size=64m,nr_inodes=100k");
        let usage = self.usage();
        let size = pages.map_or(64 << 20, |pages| (usage.used_pages + pages) * PAGE);
        let inodes = inodes.map_or(100_000, |inodes| usage.used_inodes + inodes);
        self.set(&format!("size={size},nr_inodes={inodes}"));
    }

    pub fn usage(&self) -> Usage {
        let stat = rustix::fs::statvfs(self.at.path()).unwrap();
        assert_eq!(stat.f_frsize, PAGE);
        Usage {
            used_pages: stat.f_blocks - stat.f_bfree,
            free_pages: stat.f_bavail,
            used_inodes: stat.f_files - stat.f_ffree,
        }
    }

    pub fn path(&self) -> &Path {
        self.at.path()
    }

    /// Where checkpoints lie.
    pub fn runs(&self) -> PathBuf {
        self.at.path().join("runs")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: what a failed test still holds open goes with it.
        let _ = unmount(self.at.path(), UnmountFlags::DETACH);
    }
}
