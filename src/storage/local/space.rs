//! What the file system has left, by `fstatvfs` and the quotas of who asks.

use std::path::{Component, Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{CWD, StatVfs};
use rustix::io::Errno;

use super::{failed, open_dir_fd, quota};
use crate::error::Result;
use crate::storage::Space;

/// `None` where the file system says nothing, as some in user space do.
pub(super) fn of_directory(fd: BorrowedFd<'_>) -> Result<Option<Space>, Errno> {
    let space = of_statistics(&rustix::fs::fstatvfs(fd)?);
    Ok(space.map(|space| quota::narrow(space, fd)))
}

fn of_statistics(stat: &StatVfs) -> Option<Space> {
    if stat.f_blocks == 0 {
        return None;
    }
    // Without what is reserved for root: it is there so that the system goes on.
    let available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let available_files = (stat.f_files > 0).then_some(stat.f_favail);
    Some(Space { available_files, ..Space::of_bytes(available_bytes) })
}

/// The space of the nearest existing directory on the way to `path`.
pub(in crate::storage) fn of_path(path: &Path) -> Result<Option<Space>> {
    let mut nearest: PathBuf = path.to_owned();
    let fd = loop {
        match open_dir_fd(CWD, &nearest) {
            Err(Errno::NOENT | Errno::NOTDIR) if shorten(&mut nearest) => {}
            opened => break opened.map_err(|e| failed(e, "opening the directory", &nearest))?,
        }
    };
    of_directory(fd.as_fd()).map_err(|e| failed(e, "asking for free space", &nearest))
}

/// False at the root or the working directory, which have nothing above them in the path, and in
/// front of `..`, which leads elsewhere once what is before it is gone.
fn shorten(path: &mut PathBuf) -> bool {
    matches!(path.components().next_back(), Some(Component::Normal(_))) && path.pop()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir, write};

    use super::*;
    use crate::storage::{LocalStorage, Storage, free_space};

    fn statistics() -> StatVfs {
        rustix::fs::fstatvfs(File::open("/").unwrap()).unwrap()
    }

    #[test]
    fn blocks_and_inodes_are_what_an_ordinary_process_may_have() {
        let stat = StatVfs {
            f_frsize: 512,
            f_bsize: 4096,
            f_blocks: 100,
            f_bfree: 90,
            f_bavail: 80,
            f_files: 10,
            f_ffree: 9,
            f_favail: 8,
            ..statistics()
        };
        let space = of_statistics(&stat).unwrap();
        assert_eq!((space.available_bytes, space.available_files), (80 * 512, Some(8)));
        let countless = StatVfs { f_files: 0, f_favail: 0, ..stat };
        assert_eq!(of_statistics(&countless).unwrap().available_files, None);
        assert_eq!(of_statistics(&StatVfs { f_blocks: 0, ..stat }), None);
        let huge = StatVfs { f_bavail: u64::MAX, ..stat };
        assert_eq!(of_statistics(&huge).unwrap().available_bytes, u64::MAX);
    }

    #[test]
    fn a_directory_and_what_would_lie_in_it_have_the_same_space() {
        let place = tempfile::tempdir().unwrap();
        let dir = LocalStorage::new().open_dir(place.path()).unwrap();
        let space = dir.space().unwrap().unwrap();
        assert!(space.usable_bytes() > 0);
        create_dir(place.path().join("there")).unwrap();
        write(place.path().join("file"), b"x").unwrap();
        for below in ["there", "there/not/yet", "file", "file/below"] {
            let free = free_space(&place.path().join(below)).unwrap();
            // Others write to this disk at the same time.
            assert!(free.abs_diff(space.usable_bytes()) < 1 << 33, "{below}: {free} {space:?}");
        }
        assert!(free_space(Path::new("not-yet/either")).is_some());
        assert_eq!(free_space(Path::new("missing/../..")), None);
    }
}
