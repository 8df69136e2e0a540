//! Gradients and parameters from device to device, over NCCL, which is found at run time.
//!
//! One communicator per process, for training and for the broadcasts of a load; saving never uses
//! it. Ranks agree on it over the control plane, so that all have it or none: `library` finds it,
//! `abi` is its C interface, `api` the seam above that; `communicator` is one rank's end,
//! `watchdog` the thread that aborts it, `errors` what NCCL's codes mean.

mod abi;
mod api;
mod communicator;
mod errors;
#[cfg(test)]
mod fake;
mod library;
mod peers;
mod watchdog;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::api::{Api, UniqueId, Version};
use self::communicator::{Communicator, Membership};
use self::peers::Peers;
use super::{Channel, ProcessGroup};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};

/// What a rank brings to phase "nccl".
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    version: Version,
    is_off: bool,
}

/// Whether `TCH_CHECKPOINT_NCCL` is `off` on this rank.
fn is_off() -> bool {
    library::is_off(std::env::var_os(library::VARIABLE).as_deref())
}

impl ProcessGroup {
    /// From now on, gradients and parameters on `device` go from device to device. Does nothing in
    /// a group that does so already, or where `TCH_CHECKPOINT_NCCL` is `off` on every rank.
    ///
    /// # Collective
    /// Every rank, each with a device of its own: phases "nccl" and "nccl joined", and between
    /// them NCCL's own meeting.
    ///
    /// # Errors
    /// On every rank: [`ErrorKind::NotFound`], with all places that were looked at;
    /// [`ErrorKind::Disagreement`] where only some ranks are `off`; [`ErrorKind::Device`] and
    /// [`ErrorKind::Deadline`] with NCCL's own words.
    pub(crate) fn use_nccl(&self, device: Result<Arc<dyn Device>>) -> Result<()> {
        if self.device_plane().is_some() {
            return Ok(());
        }
        if is_off() {
            let off = || Ok(Ready { version: Version::OLDEST, is_off: true });
            return self.phase_all(Channel::Training, "nccl", off, agree(|| None)).map(drop);
        }
        let found = device.and_then(|device| Ok((library::find()?, device)));
        self.join(found.map(|(found, device)| (found.functions, found.version, device)))
    }

    fn join(&self, found: Result<(impl Api, Version, Arc<dyn Device>)>) -> Result<()> {
        let ready = || {
            let (_, version, _) = found.as_ref().map_err(Clone::clone)?;
            Ok(Ready { version: *version, is_off: false })
        };
        let id = || {
            let (api, _, device) = found.as_ref().ok()?;
            Some(in_context(device, || api.unique_id()))
        };
        let id = self.phase_all(Channel::Training, "nccl", ready, agree(id))?;
        let mut joined = None;
        let join = || {
            let id = id.ok_or_else(|| Error::new(ErrorKind::Disagreement, "NCCL without an id"))?;
            let (api, _, device) = found?;
            let (rank, world) = (self.rank(), self.world_size());
            let patience = self.deadlines().join.max(self.deadlines().progress);
            let peers = self.exchange_peers();
            let membership = Membership { rank, world, id, patience, peers };
            joined = Some(Communicator::join(&api, &device, membership)?);
            Ok(())
        };
        self.phase_all(Channel::Training, "nccl joined", join, |_| Ok(()))?;
        // Only now do all have one.
        if let Some(joined) = joined {
            self.set_device_plane(Arc::new(joined));
        }
        Ok(())
    }
}

impl ProcessGroup {
    /// Whether it is worth waiting on for the others, who are told that this rank is there.
    fn exchange_peers(&self) -> Peers {
        let Some(star) = self.star() else { return Peers::new(|_| Ok(()), |_| {}) };
        let (own, peers) = (star.peers(), star.peers());
        let check = move |since| {
            own.say_here();
            own.check(since)
        };
        // The others hear it from the coordinator, before its own end.
        Peers::new(check, move |error| peers.give_up(error))
    }
}

fn in_context<T>(device: &Arc<dyn Device>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _current = device.enter()?;
    work()
}

/// Coordinator: the id for all, unless all are off.
fn agree(
    id: impl FnOnce() -> Option<Result<UniqueId>>,
) -> impl FnOnce(Vec<Ready>) -> Result<Option<UniqueId>> {
    move |ranks| {
        let off = ranks.iter().filter(|rank| rank.is_off).count();
        if off == ranks.len() {
            return Ok(None);
        }
        if off > 0 {
            let message = format!("{} is off on {off} of {} ranks", library::VARIABLE, ranks.len());
            return Err(Error::new(ErrorKind::Disagreement, message)
                .with_help("set it alike on every rank"));
        }
        let versions = ranks.iter().map(|rank| rank.version);
        if let (Some(oldest), Some(newest)) = (versions.clone().min(), versions.max())
            && oldest != newest
        {
            let message = format!("ranks have NCCL {oldest} and NCCL {newest}");
            return Err(Error::new(ErrorKind::Disagreement, message)
                .with_help("NCCL wants one version; TCH_CHECKPOINT_NCCL names a file"));
        }
        id().transpose()
    }
}

#[cfg(test)]
mod tests;
