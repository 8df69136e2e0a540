//! Ranks that do not see the same file system.

use crate::job::{Job, Plan, Random, behind, plainly};
use crate::looks::{debris, entries, owner, steps};
use crate::tier::{self, Need};

/// Before the program starts, it gets a file system of its own in the place of the directory.
const ON_ITS_OWN: &str = "mount -t tmpfs own \"$WORLD_DIR\" && exec \"$@\"";

#[test]
fn a_rank_with_a_file_system_of_its_own_is_named_by_all() {
    if !tier::has(&[Need::Root, Need::Program("unshare")]) {
        return;
    }
    let mut random = Random::seeded();
    for alone in [0, 2] {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("runs");
        let before = Plan { last: 1, ranks: 3, ..Plan::of(&dir) };
        Job::start(&before, &mut random, |_, arguments| plainly(arguments)).end();
        let plan = Plan { first: 2, last: 2, deadline_ms: 2000, ..before };
        let job = Job::start(&plan, &mut random, |rank, arguments| match rank == alone {
            true => behind(&["unshare", "--mount", "sh", "-c", ON_ITS_OWN, "sh"], arguments),
            false => plainly(arguments),
        });
        let (said, notes) = (job.said(), job.end());
        for rank in 0..3 {
            let (kind, text) = notes.failed(rank).unwrap_or_else(|| panic!("{said} {notes:?}"));
            assert_eq!(kind, "NotShared", "{text}");
            assert!(text.contains("rank ") && text.contains("that all ranks share"), "{text}");
        }
        assert_eq!((steps(&dir), debris(&dir)), (vec![1], Vec::new()), "{:?}", entries(&dir));
        owner(&dir, 1);
    }
}
