//! Disks that are slow: a save that takes several times the deadline is no failure, and training
//! does not wait for one beside it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::job::{Job, Notes, Plan, Random, behind, plainly};
use crate::looks::{owner, steps};
use crate::tier::{self, Need, program};

const NEEDS: [Need; 4] = [Need::Root, Need::Loop, Need::Blkio, Need::Program("mkfs.ext4")];
const BYTES_PER_SECOND: u64 = 1 << 20;
const DEADLINE_MS: u64 = 1500;
const GROUPS: &str = "/sys/fs/cgroup/blkio";
/// Before the program starts, it enters the group that is slow.
const ENTER: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";

/// A disk on which the processes of one control group write so many bytes a second.
struct SlowDisk {
    place: TempDir,
    group: PathBuf,
}

fn done(name: &str, arguments: &[&std::ffi::OsStr]) {
    let output = program(name).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
}

impl SlowDisk {
    fn mounted() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let place = tempfile::tempdir().unwrap();
        let (image, at) = (place.path().join("image"), place.path().join("disk"));
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        done("mkfs.ext4", &["-qF".as_ref(), image.as_ref()]);
        done("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()]);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = Path::new(GROUPS).join(format!("slow-{}-{number}", std::process::id()));
        let disk = Self { place, group };
        std::fs::create_dir(&disk.group).unwrap();
        let device = std::fs::metadata(&at).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let limit = format!("{major}:{minor} {BYTES_PER_SECOND}");
        for what in ["read", "write"] {
            let file = format!("blkio.throttle.{what}_bps_device");
            std::fs::write(disk.group.join(file), &limit).unwrap();
        }
        disk
    }

    fn dir(&self) -> PathBuf {
        self.place.path().join("disk/runs")
    }

    /// Starts a job in which this rank alone is slow, so that the others have to wait for it.
    fn start(&self, plan: &Plan, slow: u32, random: &mut Random) -> Job {
        let group = self.group.to_str().unwrap();
        Job::start(plan, random, |rank, program| match rank == slow {
            true => behind(&["sh", "-c", ENTER, group], program),
            false => plainly(program),
        })
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = program("umount").arg("-l").arg(self.place.path().join("disk")).status();
        let _ = std::fs::remove_dir(&self.group);
    }
}

/// From one note of rank 0 to another, in milliseconds.
fn between(notes: &Notes, from: &str, to: &str) -> u64 {
    let at = |word| notes.find(0, word).unwrap_or_else(|| panic!("no {word}: {notes:?}")).at;
    at(to) - at(from)
}

/// Saves one step, which is to take several times the deadline.
fn save_slowly(what: &str, slow: u32, change: impl Fn(&mut Plan)) -> Option<Notes> {
    if !tier::has(&NEEDS) {
        return None;
    }
    let disk = SlowDisk::mounted();
    let mib = tier::count(5, 20);
    let bytes = mib << 20;
    let mut plan = Plan { last: 1, bytes, deadline_ms: DEADLINE_MS, ..Plan::of(&disk.dir()) };
    change(&mut plan);
    let job = disk.start(&plan, slow, &mut Random::seeded());
    let notes = job.end();
    assert_eq!(steps(&disk.dir()), [1], "{notes:?}");
    let saved = [(1, owner(&disk.dir(), 1).0)];
    assert!((0..2).all(|rank| notes.committed(rank) == saved), "{notes:?}");
    let took = between(&notes, "BEGIN", "COMMITTED");
    assert!(took > 2 * DEADLINE_MS, "{what}: the disk is not slow, {took} ms");
    tier::figure(
        &format!("ms to save {mib} MiB of one rank {what} at 1 MiB/s, deadline {DEADLINE_MS}"),
        took,
    );
    Some(notes)
}

#[test]
fn a_disk_that_is_slow_is_not_dead() {
    save_slowly("past the page cache", 1, |_| ());
}

#[test]
fn a_disk_that_is_slow_behind_the_page_cache_is_not_dead() {
    save_slowly("through the page cache", 1, |plan| plan.cached = true);
}

#[test]
fn training_does_not_wait_for_a_save_beside_it_on_a_slow_disk() {
    let Some(notes) = save_slowly("beside training", 0, |plan| plan.beside = true) else { return };
    let stall = between(&notes, "HOLDS", "TRAINS");
    tier::figure("ms that training waited for that", stall);
    assert!(stall < between(&notes, "TRAINS", "COMMITTED") / 2, "{notes:?}");
}
