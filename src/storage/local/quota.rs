//! Quotas of the user and group that ask, by `quotactl_fd` (Linux 5.14).

use std::os::fd::AsRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fd::BorrowedFd;
use rustix::fs::Mode;

use crate::storage::Space;

/// `struct if_dqblk` of `<linux/quota.h>`: limits in blocks of 1 KiB, 0 for none; usage in bytes;
/// times in seconds since 1970, at which what is over the soft limit is no longer borne with.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Limits {
    blocks_hard: u64,
    blocks_soft: u64,
    bytes_used: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes_used: u64,
    blocks_until: u64,
    inodes_until: u64,
    valid: u32,
}

const BLOCK_BYTES: u64 = 1024;

#[derive(Debug, Clone, Copy)]
enum Of {
    User(u32),
    Group(u32),
}

/// `space`, as far as the quotas let this process have it.
pub(super) fn narrow(space: Space, fd: BorrowedFd<'_>) -> Space {
    let user = rustix::process::geteuid();
    // Root is above quotas.
    if user.is_root() {
        return space;
    }
    let whose = [Of::User(user.as_raw()), Of::Group(group_of_new_files(fd))];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    whose.into_iter().filter_map(|of| ask(fd, of)).fold(space, |space, l| l.narrow(space, now))
}

/// A directory may hand its own group down.
fn group_of_new_files(fd: BorrowedFd<'_>) -> u32 {
    match rustix::fs::fstat(fd) {
        Ok(stat) if Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID) => stat.st_gid,
        _ => rustix::process::getegid().as_raw(),
    }
}

impl Limits {
    fn narrow(&self, space: Space, now: u64) -> Space {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES);
        let (hard, soft) = (bytes(self.blocks_hard), bytes(self.blocks_soft));
        let bytes = left(hard, soft, self.bytes_used, self.blocks_until, now);
        let (hard, soft) = (self.inodes_hard, self.inodes_soft);
        let files = left(hard, soft, self.inodes_used, self.inodes_until, now);
        Space {
            quota_bytes: least(space.quota_bytes, bytes),
            available_files: least(space.available_files, files),
            ..space
        }
    }
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// What a quota leaves: up to the hard limit, nothing once the soft one was exceeded for too long.
fn left(hard: u64, soft: u64, used: u64, until: u64, now: u64) -> Option<u64> {
    if soft > 0 && used > soft && until > 0 && until <= now {
        return Some(0);
    }
    (hard > 0).then(|| hard.saturating_sub(used))
}

/// `None` without a quota, and where it is not known: an old kernel, no quotas on this file
/// system, or no permission to ask.
fn ask(fd: BorrowedFd<'_>, of: Of) -> Option<Limits> {
    let (kind, id) = match of {
        Of::User(id) => (0, id),
        Of::Group(id) => (1, id),
    };
    let mut limits = Limits::default();
    match get_quota(fd, kind, id, &mut limits) {
        Ok(()) => Some(limits),
        Err(error) => {
            tracing::trace!(?of, %error, "no quota is known");
            None
        }
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn get_quota(
    fd: BorrowedFd<'_>,
    kind: u32,
    id: u32,
    limits: &mut Limits,
) -> Result<(), std::io::Error> {
    use std::ffi::{c_int, c_long};

    // The same number on every architecture but alpha and MIPS, where it means nothing.
    const SYS_QUOTACTL_FD: c_long = 443;
    const Q_GETQUOTA: u32 = 0x0080_0007;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    let fd: c_int = fd.as_raw_fd();
    // SAFETY: the kernel reads three numbers and writes one `if_dqblk`, whose layout `Limits` has,
    // to the last argument, which lives and is ours alone during the call.
    let code = unsafe {
        syscall(SYS_QUOTACTL_FD, fd, Q_GETQUOTA << 8 | kind, id, std::ptr::from_mut(limits))
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn get_quota(
    _fd: BorrowedFd<'_>,
    _kind: u32,
    _id: u32,
    _limits: &mut Limits,
) -> Result<(), std::io::Error> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const FREE: Space =
        Space { available_bytes: 1 << 30, quota_bytes: None, available_files: Some(1000) };

    fn narrowed(limits: Limits) -> (Option<u64>, Option<u64>) {
        let space = limits.narrow(FREE, 500);
        (space.quota_bytes, space.available_files)
    }

    #[test]
    fn the_hard_limit_counts_and_the_soft_one_when_its_time_is_over() {
        let limits = Limits { blocks_hard: 100, blocks_soft: 10, bytes_used: 20 << 10, ..NONE };
        assert_eq!(narrowed(NONE), (None, Some(1000)));
        assert_eq!(narrowed(limits), (Some(80 << 10), Some(1000)));
        assert_eq!(narrowed(Limits { blocks_until: 501, ..limits }), (Some(80 << 10), Some(1000)));
        assert_eq!(narrowed(Limits { blocks_until: 500, ..limits }), (Some(0), Some(1000)));
        assert_eq!(narrowed(Limits { bytes_used: u64::MAX, ..limits }).0, Some(0));
        assert_eq!(narrowed(Limits { inodes_hard: 7, inodes_used: 4, ..NONE }), (None, Some(3)));
    }

    const NONE: Limits = Limits {
        blocks_hard: 0,
        blocks_soft: 0,
        bytes_used: 0,
        inodes_hard: 0,
        inodes_soft: 0,
        inodes_used: 0,
        blocks_until: 0,
        inodes_until: 0,
        valid: 0,
    };

    #[test]
    fn the_tightest_of_several_quotas_counts() {
        let user = Limits { blocks_hard: 50, ..NONE };
        let group = Limits { blocks_hard: 20, ..NONE };
        let both = group.narrow(user.narrow(FREE, 0), 0);
        assert_eq!(both, user.narrow(group.narrow(FREE, 0), 0));
        assert_eq!((both.quota_bytes, both.usable_bytes()), (Some(20 << 10), 20 << 10));
    }

    #[test]
    fn the_kernel_is_asked_with_the_layout_that_it_knows() {
        assert_eq!(std::mem::size_of::<Limits>(), 72);
        let place = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(place.path()).unwrap();
        // Whatever the answer, asking is harmless.
        let id = rustix::process::geteuid().as_raw();
        let mut limits = Limits::default();
        if let Err(error) = get_quota(dir.as_fd(), 0, id, &mut limits) {
            let known = [1, 2, 3, 19, 22, 38, 95, 25];
            assert!(error.raw_os_error().is_some_and(|code| known.contains(&code)), "{error}");
        }
    }
}
