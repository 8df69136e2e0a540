//! A file system that lives through many power cuts.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Ack, Saver};
use crate::disk::{FileSystem, Mounted};

/// Little more than what is saved takes, so that freed blocks are soon used again.
const IMAGE_MIB: u64 = 16;

pub struct Machine {
    pub file_system: FileSystem,
    /// Every save that was acknowledged while the power was there, oldest first.
    pub acked: Vec<Ack>,
    image: PathBuf,
    scratch: PathBuf,
    mounted: Mounted,
}

impl Machine {
    pub fn new(file_system: FileSystem, scratch: &Path) -> Self {
        let image = scratch.join("image");
        file_system.make(&image, IMAGE_MIB);
        let mounted = Mounted::image(file_system, &image, &scratch.join("mounted")).unwrap();
        Self { file_system, image, scratch: scratch.to_owned(), mounted, acked: Vec::new() }
    }

    /// The directory of checkpoints.
    pub fn dir(&self) -> PathBuf {
        self.mounted.path().join("ck")
    }

    /// Starts `command`, which saves, waits for so many acknowledgements and then for the `moment`,
    /// and takes the power away. Afterwards the file system is there again, as it is on the disk.
    pub fn cut(mut self, command: Command, acks: u64, moment: impl FnOnce(&Self, &Saver)) -> Self {
        let saver = Saver::start(command, &self.scratch, |_| ());
        saver.wait_for_acks(usize::try_from(acks).unwrap());
        moment(&self, &saver);
        // An acknowledgement that comes while the power goes may be of either side.
        let heard = saver.acks();
        self.mounted.cut().unwrap();
        saver.end();
        self.acked.extend(heard);
        let at = self.mounted.path().to_owned();
        self.mounted.unmount();
        self.mounted = Mounted::image(self.file_system, &self.image, &at).unwrap();
        self
    }

    /// Another program's fsync, which makes durable what it can of everybody's.
    pub fn neighbour(&self) {
        let mut file = File::create(self.mounted.path().join("neighbour")).unwrap();
        file.write_all(b"x").unwrap();
        file.sync_all().unwrap();
    }
}
