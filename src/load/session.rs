//! One rank's part of a load, from the manifest on.

use std::sync::Arc;

use super::missing::explain_missing;
use super::once::{self, Once};
use super::place::{Reading, wanted_boxes};
use super::{Destination, Loaded, Resolved};
use crate::error::Result;
use crate::files;
use crate::group::{ProcessGroup, Progress};
use crate::manifest::{Form, Manifest};
use crate::plan::load::{LoadPlan, LoadReport, LoadRules, Owners, WantedBox, plan_load};
use crate::report::LoadTimes;
use crate::shard::{ShardReader, Sharing};
use crate::state::Values;
use crate::storage::{Directory, Storage};

/// What is decided, and read through.
pub(super) struct Session {
    pub(super) manifest: Arc<Manifest>,
    pub(super) reader: ShardReader,
    pub(super) wanted: Vec<WantedBox>,
    /// Which of them lie on the device of the group's data plane; empty if it has none.
    pub(super) on_device: Vec<bool>,
    pub(super) plan: LoadPlan,
    pub(super) report: LoadReport,
}

impl Session {
    /// Everything that can be decided before the first tensor byte is read.
    pub(super) fn open(
        group: &ProcessGroup,
        storage: &dyn Storage,
        resolved: &Resolved,
        manifest: Manifest,
        destination: &mut dyn Destination,
        rules: &LoadRules,
    ) -> Result<Self> {
        let manifest = Arc::new(manifest);
        // Files first: nothing is made for tensors that are not there, whatever a manifest claims.
        let reader = open_reader(storage, resolved, &manifest, group.progress())
            .map_err(|e| explain_missing(group, storage, resolved, manifest.save_id(), e))?;
        destination.prepare(&manifest)?;
        let mut targets = destination.targets()?;
        let wanted = wanted_boxes(&targets)?;
        let on_device = once::on_device(group, &mut targets);
        drop(targets);
        let (plan, report) = plan_load(&manifest, &wanted, rules);
        let own_fault = !report.missing.is_empty() || !report.mismatched.is_empty();
        if own_fault {
            report.check(rules)?;
        }
        let session = Self { manifest, reader, wanted, on_device, plan, report };
        session.check_values(group, destination)?;
        Ok(session)
    }

    pub(super) fn reading(&self, progress: Progress, sharing: Sharing) -> Reading<'_> {
        let Self { reader, plan, wanted, .. } = self;
        Reading { reader, plan, wanted, sharing, progress }
    }

    /// Where all ranks want the same, and each byte is to be read once.
    pub(super) fn share_out(&self, group: &ProcessGroup) -> Once {
        let world = group.world_size();
        let owners = Owners::new(&self.plan, &self.wanted, &self.on_device, world);
        let own = owners.part_of(&self.plan, group.rank());
        Once { owners, own }
    }

    pub(super) fn rank_values(&self, group: &ProcessGroup) -> Option<&Values> {
        self.manifest.rank_values(group.rank())
    }

    pub(super) fn check_values(
        &self,
        group: &ProcessGroup,
        destination: &dyn Destination,
    ) -> Result<()> {
        destination.check_values(&self.manifest, self.rank_values(group))
    }

    pub(super) fn give_values(
        &self,
        group: &ProcessGroup,
        destination: &mut dyn Destination,
    ) -> Result<()> {
        destination.take_values(&self.manifest, self.rank_values(group))
    }

    pub(super) fn finish(self, resolved: &Resolved, times: LoadTimes) -> Loaded {
        Loaded {
            path: resolved.directory.join(&resolved.entry),
            save_id: self.manifest.save_id(),
            bytes_read: self.reader.bytes_read(),
            manifest: self.manifest,
            report: LoadReport { times, ..self.report },
        }
    }
}

fn open_reader(
    storage: &dyn Storage,
    resolved: &Resolved,
    manifest: &Manifest,
    progress: Progress,
) -> Result<ShardReader> {
    let dir = match manifest.form() {
        Form::Directory => open_entry(storage, resolved)?,
        _ => files::place_of(storage, &resolved.directory, &resolved.entry, manifest)?,
    };
    let reader = ShardReader::of(dir, manifest).on_read(move |bytes| progress.add(bytes));
    reader.check_lengths()?;
    Ok(reader)
}

pub(super) fn open_entry(storage: &dyn Storage, resolved: &Resolved) -> Result<Arc<dyn Directory>> {
    storage.open_dir(&resolved.directory)?.open_dir(&resolved.entry)
}
