//! How much of a storage a directory of checkpoints takes.

mod taken;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use crate::catalog::{self, Other, Survey};
use crate::error::Result;
use crate::manifest::CheckpointState;
use crate::storage::{Directory, Storage};
pub(crate) use taken::{Names, Taken};

/// How much of a storage a directory of checkpoints takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its entries, by name, without those that are not of this library.
    pub entries: Vec<EntryUsage>,
    /// What all of these take on the device, each file once.
    pub on_disk: u64,
    /// Of this, what would be free without the entries that no checkpoint refers to.
    pub unreferenced: u64,
    /// How many entries are not of this library; they are not measured.
    pub foreign: usize,
}

/// How much an entry takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryUsage {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: Held,
    /// Bytes of its files, a file with several names in it counted with each.
    pub bytes: u64,
    /// What its files take on the device, as far as the storage tells; else their bytes. Each file
    /// counts once here, and in every entry that has a name of it (hard links).
    pub on_disk: u64,
    /// Of `on_disk`, what would be free if this entry alone were deleted.
    pub unique: u64,
    /// Of `on_disk`, what would stay taken: files that have further names, in other entries or
    /// elsewhere.
    pub shared: u64,
}

/// What takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// A checkpoint.
    Committed,
    /// A checkpoint that is damaged.
    Damaged,
    /// What no checkpoint refers to: an attempt, which may be under way, or what was left behind.
    Unreferenced(Other),
    /// The lock, the links and the pins.
    Own,
}

/// Measures a directory of checkpoints; reads manifests and lengths, follows no link, changes
/// nothing. What goes away meanwhile counts as nothing. Not collective: one process looks.
///
/// # Errors
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such directory; [`ErrorKind::Storage`](crate::ErrorKind::Storage).
pub fn usage(storage: &dyn Storage, directory: &Path) -> Result<Usage> {
    let parent = catalog::open_parent(storage, directory)?;
    usage_of(parent.as_ref(), &mut || {})
}

/// As [`usage`]; `looked` is called after each entry.
pub(crate) fn usage_of(parent: &dyn Directory, looked: &mut dyn FnMut()) -> Result<Usage> {
    let held = held(&catalog::survey_of(parent, looked)?);
    let mut usage = Usage::default();
    let (mut all, mut unreferenced) = (Names::default(), Names::default());
    let mut entries = parent.list()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in entries {
        let what = match held.get(&entry.name) {
            Some(None) => {
                usage.foreign += 1;
                continue;
            }
            Some(Some(what)) => *what,
            None => Held::Own,
        };
        let taken = Taken::of(parent, &entry.name, entry.kind)?;
        usage.on_disk += all.add(&taken);
        if matches!(what, Held::Unreferenced(_)) {
            usage.unreferenced += unreferenced.remove(&taken);
        }
        usage.entries.push(EntryUsage::of(entry.name, what, &taken));
        looked();
    }
    Ok(usage)
}

impl EntryUsage {
    fn of(name: String, what: Held, taken: &Taken) -> Self {
        let (on_disk, unique) = (taken.on_disk(), taken.unique());
        let shared = on_disk.saturating_sub(unique);
        Self { name, what, bytes: taken.bytes, on_disk, unique, shared }
    }
}

/// What takes space, by the names of entries; `None` for what is not of this library.
fn held(survey: &Survey) -> BTreeMap<String, Option<Held>> {
    let others = survey.others.iter().map(|other| {
        let what = match other.what {
            Other::Interrupted => Some(Held::Committed),
            what if what.is_foreign() => None,
            what => Some(Held::Unreferenced(what)),
        };
        (other.name.clone(), what)
    });
    let checkpoints = survey.checkpoints.iter().filter_map(|info| match info.state {
        CheckpointState::Committed => Some((info.name.clone(), Some(Held::Committed))),
        CheckpointState::Damaged => Some((info.name.clone(), Some(Held::Damaged))),
        // Its entry has another name.
        CheckpointState::Partial => None,
    });
    checkpoints.chain(others).collect()
}
