//! Which checkpoints of the auto-saver's directory this run goes on from.

use std::path::{Path, PathBuf};

use crate::catalog;
use crate::error::Result;
use crate::handler::{Model, NNHandler};
use crate::layout::SaveId;
use crate::lineage::{Lineage, is_placed, top_of};
use crate::load::Loaded;
use crate::plan::load::LoadReport;
use crate::tidy::Pointed;

/// A run that is loaded from a checkpoint goes on with its line, in its directory; everywhere else
/// it begins one.
#[derive(Debug, Default)]
pub(in crate::handler) struct Line {
    origin: Option<Origin>,
    /// Where the auto-saver saves, and what that means there; known once training begins.
    own: Option<(PathBuf, Lineage)>,
    /// How far the links are known to be right.
    pointed: Pointed,
    /// How the last load went.
    loaded: Option<LoadReport>,
}

/// The checkpoint that was loaded last.
#[derive(Debug, Clone)]
struct Origin {
    directory: PathBuf,
    save_id: SaveId,
    lineage: Lineage,
}

impl Line {
    pub(in crate::handler) fn adopt(&mut self, loaded: &Loaded) {
        let origin = loaded.path.parent().map(|directory| Origin {
            directory: absolute(directory),
            save_id: loaded.save_id,
            lineage: Lineage::of(&loaded.manifest),
        });
        let loaded = Some(loaded.report.clone());
        *self = Self { origin, loaded, ..Self::default() };
    }

    /// What a checkpoint in `directory` follows, if that is known.
    pub(super) fn of(&self, directory: &Path) -> Option<Lineage> {
        let directory = absolute(directory);
        let own = self.own.as_ref().filter(|(place, _)| *place == directory);
        let origin = || self.origin.as_ref().filter(|origin| origin.directory == directory);
        own.map(|(_, lineage)| *lineage).or_else(|| origin().map(|origin| origin.lineage))
    }

    pub(super) fn pointed(&self) -> Pointed {
        self.pointed.clone()
    }

    /// The checkpoint of `directory` that was loaded.
    pub(super) fn resumed(&self, directory: &Path) -> Option<SaveId> {
        let directory = absolute(directory);
        let origin = self.origin.as_ref().filter(|origin| origin.directory == directory);
        origin.map(|origin| origin.save_id)
    }
}

impl<M: Model> NNHandler<M> {
    /// What the last load of a checkpoint into this handler left out, and what it took; the times
    /// are the same on every rank. `None` if nothing was loaded.
    #[must_use]
    pub fn load_report(&self) -> Option<&LoadReport> {
        self.line.loaded.as_ref()
    }

    /// Coordinator, before training: looks into the directory to which it will save by itself.
    /// `None` if there is none, or if it has looked before.
    pub(in crate::handler) fn look_for_line(&self) -> Result<Option<Lineage>> {
        let used = |saver: &&super::AutoSaver| saver.is_used(self.preemption.is_on());
        let Some(saver) = self.auto_saver.as_ref().filter(used) else { return Ok(None) };
        let directory = absolute(saver.directory());
        if self.line.own.as_ref().is_some_and(|(place, _)| *place == directory) {
            return Ok(None);
        }
        let parent = self.storage.open_dir(saver.directory())?;
        let progress = self.group.progress();
        let found = catalog::list(parent.as_ref(), &mut || progress.add(1))?;
        let fresh = Lineage::fresh(top_of(&found))?;
        // Damaged ones count, if it is known where they stand: they may be made whole again.
        let placed = found.iter().filter(|info| is_placed(info));
        let newest = placed.max_by(|a, b| a.age_key().cmp(&b.age_key()));
        let origin = self.line.origin.as_ref().filter(|origin| origin.directory == directory);
        Ok(Some(origin.map_or(fresh, |origin| {
            let is_newest = newest.is_some_and(|newest| newest.save_id == Some(origin.save_id));
            origin.lineage.followed(fresh, !is_newest)
        })))
    }

    /// Takes note of what the coordinator has found.
    pub(in crate::handler) fn take_line(&mut self, found: Option<Lineage>) {
        if let (Some(lineage), Some(saver)) = (found, &self.auto_saver) {
            self.line.own = Some((absolute(saver.directory()), lineage));
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
