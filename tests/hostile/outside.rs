//! What must not be touched: everything around a checkpoint, and the checkpoint itself.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// Files up to this are compared by content, larger ones (they are sparse) by their times.
const COMPARED_MAX: u64 = 1 << 20;

/// Everything below a directory, links not followed: kind and mode, times, length, content.
pub type Snapshot = BTreeMap<PathBuf, (u32, [i64; 4], u64, Vec<u8>)>;

pub fn snapshot(top: &Path) -> Snapshot {
    let mut all = Snapshot::new();
    look(top, &mut all);
    all
}

fn look(path: &Path, all: &mut Snapshot) {
    let meta = path.symlink_metadata().unwrap();
    let content = if meta.is_symlink() {
        let target = std::fs::read_link(path).unwrap();
        target.into_os_string().into_encoded_bytes()
    } else if meta.is_file() && meta.len() <= COMPARED_MAX {
        std::fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
    all.insert(path.to_owned(), (meta.mode(), times, meta.size(), content));
    if meta.is_dir() {
        let Ok(entries) = std::fs::read_dir(path) else { return };
        entries.for_each(|entry| look(&entry.unwrap().path(), all));
    }
}

/// Sees whoever opens, reads, changes or makes anything in a directory or one below it.
pub struct Watch(OwnedFd);

impl Watch {
    pub fn over(top: &Path) -> Self {
        let watch = Self(init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap());
        watch.add(top);
        // What it did itself to find all of them.
        let mut buffer = [0; 4096];
        while rustix::io::read(&watch.0, &mut buffer).is_ok() {}
        watch
    }

    fn add(&self, dir: &Path) {
        add_watch(&self.0, dir, WatchFlags::ALL_EVENTS).unwrap();
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                self.add(&entry.path());
            }
        }
    }

    /// What was seen since.
    pub fn seen(self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.0, &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            seen.push(format!("{:?} {:?}", event.events(), event.file_name()));
        }
        seen
    }
}
