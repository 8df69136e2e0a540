//! The scenes that are played.

use crate::scene::{Scene, stress, stress_bytes};
use crate::{driver, tier};

/// The first save of all, into directories that are made on the way.
pub static FIRST: Scene = Scene {
    title: "first save",
    older: &[],
    made_with: &[],
    stays: &[],
    below: "not/yet",
    step: 1,
    command: |dir, step| stress(dir, step, 2, &[]),
    is_command: true,
};

/// A save beside an older one.
pub static BESIDE: Scene = Scene {
    title: "save beside an older one",
    older: &[1],
    made_with: &[],
    stays: &[1],
    below: "runs",
    step: 2,
    command: |dir, step| stress(dir, step, 2, &[]),
    is_command: true,
};

/// The same by four ranks.
pub static FOUR_RANKS: Scene =
    Scene { title: "save by four ranks", command: |dir, step| stress(dir, step, 4, &[]), ..BESIDE };

/// A save whose files are large enough for direct I/O, by several threads.
pub static LARGE: Scene = Scene {
    title: "large save",
    command: |dir, step| stress_bytes("9000001", dir, step, 1, &[]),
    ..BESIDE
};

/// A save of which each rank writes several MiB.
pub static CACHED: Scene = Scene {
    title: "save through the page cache",
    command: |dir, step| stress_bytes("9000001", dir, step, 2, &[]),
    ..BESIDE
};

/// The same by ranks that are processes.
pub static CACHED_PROCESSES: Scene = Scene {
    title: "processes that save through the page cache",
    command: |dir, step| stress_bytes("9000001", dir, step, 2, &["--transport", "tcp"]),
    ..BESIDE
};

/// A save in place of an older one.
pub static REPLACING: Scene = Scene {
    title: "replacing",
    older: &[1, 2],
    made_with: &[],
    stays: &[1, 2],
    below: "runs",
    step: 2,
    command: driver::replacing,
    is_command: false,
};

/// A save after which one of the older ones goes, and the link `latest` moves.
pub static RETENTION: Scene = Scene {
    title: "retention and links",
    older: &[1, 2],
    made_with: &["--keep", "9"],
    stays: &[2],
    below: "runs",
    step: 3,
    command: |dir, step| stress(dir, step, 2, &["--keep", "2"]),
    is_command: true,
};

/// The same by ranks that are processes.
pub static PROCESSES: Scene = Scene {
    title: "ranks as processes",
    command: |dir, step| {
        let ranks = tier::count(2, 4) as u32;
        stress(dir, step, ranks, &["--keep", "2", "--transport", "tcp"])
    },
    ..RETENTION
};
