//! Images with file systems, mounts, and the power cut.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::tier;

/// What is in an image, and how it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 that writes data before the metadata that leads to it.
    Ext4Ordered,
    /// ext4 that writes data whenever it likes, and uses freed blocks at once.
    Ext4Writeback,
    Xfs,
}

impl FileSystem {
    pub const ALL: [Self; 3] = [Self::Ext4Ordered, Self::Ext4Writeback, Self::Xfs];

    fn options(self) -> &'static str {
        match self {
            Self::Ext4Ordered => "loop,data=ordered",
            Self::Ext4Writeback => "loop,data=writeback",
            Self::Xfs => "loop",
        }
    }

    /// Bytes that it believes a device to write as a whole or not at all: XFS takes a block of which
    /// some sectors are old for damage, ext4 writes all of it again from its journal.
    pub fn never_torn(self) -> usize {
        if self == Self::Xfs { 4096 } else { 512 }
    }

    /// Makes an image of this many MiB (XFS wants 300), with nothing left to be initialised later.
    pub fn make(self, image: &Path, ext4_mib: u64) {
        let mib = if self == Self::Xfs { 300 } else { ext4_mib };
        File::create(image).unwrap().set_len(mib << 20).unwrap();
        let mut command = match self {
            Self::Xfs => tier::program("mkfs.xfs"),
            _ => tier::program("mkfs.ext4"),
        };
        match self {
            Self::Xfs => command.args(["-q", "-f"]),
            _ => command.args(["-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
        };
        done(command.arg(image)).unwrap();
    }
}

/// Something that is mounted; gone when dropped.
pub struct Mounted {
    at: PathBuf,
    image: Option<PathBuf>,
    up: bool,
}

impl Mounted {
    pub fn memory(at: &Path) -> Self {
        done(tier::program("mount").args(["-t", "tmpfs", "memory"]).arg(at)).unwrap();
        Self::adopt(at)
    }

    /// Mounts an image, or a file that is a device, by a loop device that goes with the mount.
    ///
    /// # Errors
    /// What `mount` says.
    pub fn image(file_system: FileSystem, image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        done(tier::program("mount").args(["-o", file_system.options()]).arg(image).arg(at))?;
        let mut mounted = Self::adopt(at);
        mounted.image = Some(image.canonicalize().unwrap());
        Ok(mounted)
    }

    /// A file system in user space that is mounted already.
    pub fn adopt(at: &Path) -> Self {
        Self { at: at.to_owned(), image: None, up: true }
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts, now: the image can be mounted again afterwards.
    pub fn unmount(mut self) {
        for attempt in 1.. {
            match done(tier::program("umount").arg(&self.at)) {
                Ok(()) => break,
                // Somebody's last descriptor is being closed.
                Err(why) => assert!(attempt < 100, "{why}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.up = false;
        self.image.as_deref().map(wait_until_detached);
    }

    /// Takes the power away: nothing is written any more, and what the journal holds in memory is
    /// lost.
    ///
    /// # Errors
    /// If the file system cannot, or has given up by itself.
    #[allow(unsafe_code)]
    pub fn cut(&self) -> std::io::Result<()> {
        /// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`, and its flag not to flush the journal.
        const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let dir = File::open(&self.at)?;
        // SAFETY: the call reads one `u32`, to which it is given a pointer.
        unsafe {
            let flag = rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH);
            rustix::ioctl::ioctl(&dir, flag)?;
        }
        Ok(())
    }
}

/// Waits until no loop device is over this image: one that another process happens to look at stays
/// for a moment, with blocks in memory that the disk does not hold.
fn wait_until_detached(image: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    let is_over_image = |device: std::fs::DirEntry| {
        let over = std::fs::read_to_string(device.path().join("loop/backing_file"));
        over.is_ok_and(|over| Path::new(over.trim_end()) == image)
    };
    while std::fs::read_dir("/sys/block").unwrap().flatten().any(is_over_image) {
        assert!(Instant::now() < until, "{image:?} stays attached");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.up {
            drop(done(tier::program("umount").arg("-l").arg(&self.at)));
        }
    }
}

/// Runs a program to its end.
///
/// # Errors
/// What it says, if it fails.
pub fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}: {said}", output.status))
}
