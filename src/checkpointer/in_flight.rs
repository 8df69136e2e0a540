//! A save that is due while another one is still going on.

use super::InFlight;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::save::PendingSave;

impl InFlight {
    /// Whether `pending` keeps another save from being made. Ranks see its end at different times,
    /// so they ask the coordinator, which warns of a save that seems never to end. Collective.
    pub(crate) fn hinders(self, group: &ProcessGroup, pending: &PendingSave) -> Result<bool> {
        if self == Self::Wait {
            return Ok(false);
        }
        group.on_coordinator("in flight", || match pending.is_done() {
            true => Ok(false),
            false if self == Self::Error => Err(refused(pending)),
            false => {
                pending.leave_one_out(group.deadlines().progress);
                Ok(true)
            }
        })
    }
}

fn refused(pending: &PendingSave) -> Error {
    let text = "a save is due while another one is still going on";
    Error::new(ErrorKind::InvalidInput, text).with_path(pending.path()).with_help(
        "save less often, or let `in_flight` be `wait` or `skip`; the save that goes on is not \
         affected",
    )
}
