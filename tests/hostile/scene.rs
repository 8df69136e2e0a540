//! A place with a checkpoint that is about to be made hostile, and what must not be touched beside
//! it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, mknodat};

use crate::forge::{CODE_NAME, Forge, data_name, header_of, sums_name};

pub const SECRET: &str = "CANARY-outside-of-everything";

pub struct Scene {
    top: tempfile::TempDir,
}

impl Scene {
    /// `in/`, which is read, and `outside/`, where everything is good: a checkpoint, a file of
    /// tensors, a pointer, an index, and a secret.
    pub fn new() -> Self {
        let scene = Self { top: tempfile::tempdir().unwrap() };
        fs::create_dir(scene.dir()).unwrap();
        Forge::honest(2, 0x55).write(&scene.outside().join("ck"));
        fs::write(scene.outside().join("secret"), SECRET).unwrap();
        fs::write(scene.outside().join("x.safetensors"), plain()).unwrap();
        fs::write(scene.outside().join("manifest.bin"), Forge::honest(2, 0).sealed()).unwrap();
        scene
    }

    pub fn top(&self) -> &Path {
        self.top.path()
    }

    pub fn dir(&self) -> PathBuf {
        self.top().join("in")
    }

    pub fn outside(&self) -> PathBuf {
        self.top().join("outside")
    }

    /// The checkpoint.
    pub fn a(&self) -> PathBuf {
        self.dir().join("a")
    }

    pub fn forge(&self, version: u32, change: fn(&mut Forge)) {
        let mut forge = Forge::honest(version, 0);
        change(&mut forge);
        forge.write(&self.a());
    }

    pub fn honest(&self) {
        self.forge(2, |_| ());
    }

    /// An entry of the directory of checkpoints.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Of the honest checkpoint.
    pub fn file(&self, which: Which) -> PathBuf {
        self.a().join(which.name())
    }

    pub fn remove(&self, which: Which) {
        fs::remove_file(self.file(which)).unwrap();
    }

    /// An honest checkpoint whose file leads to the same bytes outside.
    pub fn linked(&self, which: Which) {
        self.honest();
        let target = self.outside().join("moved");
        fs::rename(self.file(which), &target).unwrap();
        symlink(target, self.file(which)).unwrap();
    }

    pub fn node(&self, which: Which, kind: FileType) {
        self.honest();
        self.remove(which);
        // A device that would answer: /dev/zero.
        let device = if kind == FileType::CharacterDevice { rustix::fs::makedev(1, 5) } else { 0 };
        mknodat(CWD, self.file(which), kind, 0o666.into(), device).unwrap();
    }

    pub fn directory(&self, which: Which) {
        self.honest();
        self.remove(which);
        fs::create_dir(self.file(which)).unwrap();
    }

    pub fn cut(&self, which: Which, len: impl FnOnce(u64) -> u64) {
        self.honest();
        let file = fs::OpenOptions::new().write(true).open(self.file(which)).unwrap();
        file.set_len(len(file.metadata().unwrap().len())).unwrap();
    }

    pub fn flip(&self, which: Which, at: usize) {
        self.honest();
        let mut bytes = fs::read(self.file(which)).unwrap();
        bytes[at] ^= 1;
        fs::write(self.file(which), bytes).unwrap();
    }
}

/// A file of the honest checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    Manifest,
    Data,
    Sums,
    Code,
}

impl Which {
    fn name(self) -> String {
        match self {
            Self::Manifest => "manifest.bin".to_owned(),
            Self::Data => data_name(),
            Self::Sums => sums_name(),
            Self::Code => CODE_NAME.to_owned(),
        }
    }
}

/// A good file of another tool, with the tensors that readers here want.
pub fn plain() -> Vec<u8> {
    let forge = Forge::honest(2, 0x55);
    [forge.header, forge.data].concat()
}

/// The same tensors under any header.
pub fn with_header(json: &str) -> Vec<u8> {
    [header_of(json), Forge::honest(2, 0).data].concat()
}
