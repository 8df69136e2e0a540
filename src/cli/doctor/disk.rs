//! The directory of checkpoints: what it lies on, what fits, how fast it is, whether it locks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Advice, Mode, OFlags};

use super::Finding;
use crate::cli::bounded::told_within;
use crate::cli::format::bytes;
use crate::layout::SaveId;

/// All of it: a storage that takes longer is told as such.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long is written, and at most how much.
const WRITING: Duration = Duration::from_secs(1);
const BYTES_MAX: usize = 64 << 20;
const BLOCK: usize = 4 << 20;
/// What is left after any look, times what is written for it.
const SPARE: u64 = 4;
/// Less than this is little, and too little.
const FREE_LITTLE: u64 = 10 << 30;
const FREE_MIN: u64 = 256 << 20;
/// Slower writes make every save a long one.
const SLOW: f64 = 50e6;
/// How far the clock of the storage may be from ours, in seconds.
const APART_S: f64 = 2.0;

pub(super) fn disk(dir: &Path) -> Vec<Finding> {
    let dir = dir.to_path_buf();
    let shown = dir.display().to_string();
    let (mut found, is_all) = told_within(DEADLINE, move |tell| look(&dir, tell));
    if !is_all {
        let seconds = DEADLINE.as_secs();
        let said = format!("{shown} does not answer, or is so slow that {seconds} s are too few");
        let fix = "see whether its server or disk is well: saves would end with a deadline";
        found.push(Finding::problem("disk", said, fix));
    }
    found
}

fn look(dir: &Path, tell: &mut dyn FnMut(Finding)) {
    let there = match nearest(dir) {
        Ok(there) => there,
        Err(said) => return tell(Finding::problem("disk", said, "correct it, or its permissions")),
    };
    if !there.is_dir() {
        let said = format!("{} is no directory", there.display());
        return tell(Finding::problem("disk", said, "name a directory"));
    }
    if there != dir {
        let said = format!("{} is not there yet; looked at {}", dir.display(), there.display());
        tell(Finding::ok("disk", said));
    }
    let opened = match File::open(&there) {
        Ok(opened) => opened,
        Err(e) => {
            let said = format!("{} cannot be opened: {e}", there.display());
            return tell(Finding::problem("disk", said, "correct its permissions"));
        }
    };
    tell(kind(&opened, &there));
    let free = space(&opened, tell);
    measure(&there, free, tell);
}

/// The directory itself, or the nearest above it that there is: a save makes the rest. Else what
/// is in its way.
fn nearest(dir: &Path) -> Result<PathBuf, String> {
    let whole = std::path::absolute(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for above in whole.ancestors() {
        match above.metadata() {
            Ok(_) if above == whole => return Ok(dir.to_path_buf()),
            Ok(_) => return Ok(above.to_path_buf()),
            Err(_) if above.is_symlink() => {
                return Err(format!("{} is a link to nothing", above.display()));
            }
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(format!("{} cannot be looked at: {e}", above.display())),
        }
    }
    Err(format!("nothing of {} is there", dir.display()))
}

fn kind(dir: &File, path: &Path) -> Finding {
    let shown = path.display();
    let Ok(found) = rustix::fs::fstatfs(dir) else {
        let said = format!("{shown} lies on an unknown file system");
        return Finding::warning("disk", said, "see that it survives a power cut");
    };
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "of any sign by platform")]
    let number = found.f_type as u64 & 0xFFFF_FFFF;
    let (name, fix) = known(number);
    let said = format!("{shown} lies on {name}");
    fix.map_or_else(
        || Finding::ok("disk", said.clone()),
        |fix| Finding::warning("disk", &*said, fix),
    )
}

/// By its number, see statfs(2): the name, and what to think of.
fn known(number: u64) -> (&'static str, Option<&'static str>) {
    const MEMORY: &str = "it is memory: checkpoints are gone with the machine; choose a disk";
    const NETWORK: &str = "all hosts must have mounted it, with locks; a rank on another host may \
         see files late";
    match number {
        0xEF53 => ("ext4", None),
        0x5846_5342 => ("XFS", None),
        0x9123_683E => ("Btrfs", None),
        0x2FC1_2FC1 => ("ZFS", None),
        0xF2F5_2010 => ("F2FS", None),
        0xCA45_1A4E => ("bcachefs", None),
        0x0BD0_0BD0 => ("Lustre", None),
        0x4750_4653 => ("GPFS", None),
        0x00C3_6400 => ("CephFS", None),
        0x0102_1994 => ("tmpfs", Some(MEMORY)),
        0x8584_58F6 => ("ramfs", Some(MEMORY)),
        0x794C_7630 => {
            ("an overlay", Some("it is a container's own layer and goes with it; choose a volume"))
        }
        0x6969 => ("NFS", Some(NETWORK)),
        0xFF53_4D42 | 0xFE53_4D42 | 0x517B => ("SMB", Some(NETWORK)),
        0x6573_5546 => (
            "a FUSE file system",
            Some("whether a save survives a power cut depends on the program behind it"),
        ),
        0x0102_1997 => ("9p", Some("what it promises depends on the host behind it")),
        _ => ("another file system", None),
    }
}

/// Says what fits; how many bytes.
fn space(dir: &File, tell: &mut dyn FnMut(Finding)) -> u64 {
    let Ok(stat) = rustix::fs::fstatvfs(dir) else {
        tell(Finding::warning(
            "disk",
            "free space is not known here",
            "every save is taken to fit: see that there is enough",
        ));
        return u64::MAX;
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems have no number of files.
    let files = (stat.f_files > 0).then_some(stat.f_favail);
    let inodes = files.map_or(String::new(), |files| format!(", {files} files"));
    let said = format!("{} free{inodes}", bytes(free));
    let fix = "remove old checkpoints (tch-checkpoint prune), or choose another directory";
    tell(if free < FREE_MIN || files.is_some_and(|files| files < 100) {
        Finding::problem("disk", said, fix)
    } else if free < FREE_LITTLE || files.is_some_and(|files| files < 10_000) {
        Finding::warning("disk", said, fix)
    } else {
        Finding::ok("disk", said)
    });
    free
}

/// Writes and reads a file that has no name, locks it, and compares its time with ours.
fn measure(dir: &Path, free: u64, tell: &mut dyn FnMut(Finding)) {
    let file = match scratch(dir) {
        Ok(file) => file,
        Err(e) => {
            let said = format!("no file can be made in {}: {e}", dir.display());
            tell(Finding::problem("disk", said, "correct its permissions, or remount it"));
            return;
        }
    };
    tell(locks(&file));
    let apart = time_apart(&file);
    let most = usize::try_from(free / SPARE).unwrap_or(usize::MAX).min(BYTES_MAX);
    tell(match rates(&file, most) {
        Ok((written, write, read)) => speed(written, write, read),
        Err(e) => {
            let said = format!("writing fails: {e}");
            Finding::problem(
                "disk",
                said,
                "see what the system's log says of the disk; is it full?",
            )
        }
    });
    apart.into_iter().for_each(tell);
}

/// So little is written where there is little room that the rate is that of the latency alone.
fn speed(written: usize, write: f64, read: f64) -> Finding {
    let said = format!(
        "writes {}/s with fsync, reads {}/s ({} tried)",
        bytes(whole(write)),
        bytes(whole(read)),
        bytes(written as u64)
    );
    if write < SLOW && written >= BLOCK {
        let fix = "saves take long here: tch-checkpoint bench --dir measures more";
        return Finding::warning("disk", said, fix);
    }
    Finding::ok("disk", said)
}

/// A file that goes with this process, whatever becomes of it.
fn scratch(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o600)) {
        return Ok(File::from(file));
    }
    let id = SaveId::random().map_err(io::Error::other)?;
    let path = dir.join(format!(".tch-checkpoint-doctor.{id}"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn locks(file: &File) -> Finding {
    match file.try_lock() {
        Ok(()) => Finding::ok("disk", "files can be locked"),
        Err(e) => Finding::warning(
            "disk",
            format!("files cannot be locked: {e}"),
            "mount it with locks (flock on Lustre, lockd on NFS), or let one job at a time save",
        ),
    }
}

/// Bytes that were tried, and bytes a second of writing and reading.
fn rates(mut file: &File, most: usize) -> io::Result<(usize, f64, f64)> {
    let block: Vec<u8> =
        (0..BLOCK).map(|i| u8::try_from(i * 31 % 251).unwrap_or_default()).collect();
    file.seek(SeekFrom::Start(0))?;
    let (begun, mut written) = (Instant::now(), 0);
    while written < most.max(1) && begun.elapsed() < WRITING {
        let part = block.get(..(most - written).clamp(1, BLOCK)).unwrap_or(&block);
        file.write_all(part)?;
        written += part.len();
    }
    file.sync_all()?;
    let write = written as f64 / begun.elapsed().as_secs_f64();
    // The device is to be asked, where the system forgets.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    file.seek(SeekFrom::Start(0))?;
    let (begun, mut read, mut buffer) = (Instant::now(), 0, vec![0; BLOCK]);
    while begun.elapsed() < WRITING {
        match file.read(&mut buffer)? {
            0 => break,
            count => read += count,
        }
    }
    Ok((written, write, read as f64 / begun.elapsed().as_secs_f64()))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
fn whole(rate: f64) -> u64 {
    rate as u64
}

fn time_apart(mut file: &File) -> Option<Finding> {
    let before = SystemTime::now();
    // The time of a server is that of what has reached it.
    file.write_all(b"!").and_then(|()| file.sync_all()).ok()?;
    let after = SystemTime::now();
    let changed = file.metadata().and_then(|found| found.modified()).ok()?;
    let apart = apart(before, changed, after).as_secs_f64();
    let said = format!("its clock is {apart:.0} s from ours");
    let fix = "set the clocks of this host and of the storage by NTP";
    (apart > APART_S).then(|| Finding::warning("clock", said, fix))
}

/// How far a time is from those between which it should be.
fn apart(before: SystemTime, changed: SystemTime, after: SystemTime) -> Duration {
    let behind = before.duration_since(changed).unwrap_or_default();
    behind.max(changed.duration_since(after).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_that_is_slow_has_no_wrong_clock() {
        let second = Duration::from_secs(1);
        let before = SystemTime::now();
        let after = before + 9 * second;
        assert_eq!(apart(before, before + second, after), Duration::ZERO);
        assert_eq!(apart(before, before - 3 * second, after), 3 * second);
        assert_eq!(apart(before, after + 4 * second, after), 4 * second);
    }

    #[test]
    fn only_what_was_long_enough_is_called_slow() {
        assert_eq!(speed(BLOCK, SLOW / 2.0, 1e9).level.as_str(), "warning");
        assert_eq!(speed(BLOCK, SLOW, 1e9).level.as_str(), "ok");
        assert_eq!(speed(1000, 1e5, f64::INFINITY).level.as_str(), "ok");
    }
}
