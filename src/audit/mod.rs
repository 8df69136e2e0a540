//! The replica audit: whether boxes that several ranks declare equally hold the same bytes.
//!
//! Each replica is stored once, by one rank or shared among several. Where replicas have drifted
//! apart, by a fault of memory or a rank that skipped a step, the checkpoint would be a mixture
//! of them; the audit finds that before anything is written.
//!
//! Bytes are compared, not numbers: two NaNs with different bits differ, and so do 0 and -0.

mod compare;
mod devices;
mod digest;
mod fingerprint;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::compare::compare;
use self::fingerprint::Digest;
pub use self::fingerprint::fingerprint;
use crate::error::Result;
use crate::group::{Channel, ProcessGroup};
use crate::manifest::hash16;
use crate::slice::Slice;
use crate::state::{StateDict, TensorEntry};
use crate::tensor::{TensorName, TensorSpec};

/// What a rank says first: 16 bytes for each of its boxes.
#[derive(Serialize, Deserialize)]
struct Digests {
    /// Hash of which boxes these are, in order.
    boxes: [u8; 16],
    digests: Vec<Digest>,
}

/// Which box a digest is of; replicas are boxes of which all this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct BoxId {
    name: TensorName,
    spec: TensorSpec,
    slice: Slice,
}

/// Compares all boxes of `state` that several ranks declare equally. Boxes that one rank alone
/// declares and values of ranks are not looked at; those of the job are compared by every save.
///
/// Reads all of the state once: what lies in the memory of a device there, by the device, if it
/// can; the rest on the host, by at most eight threads with at most 1 MiB of memory each. The hash
/// is the same on both, [`fingerprint()`], so that ranks with and without a device can be compared.
///
/// # Collective
/// Every rank of the group. One phase if all ranks declare the same boxes, with 16 bytes per box;
/// else a second one, in which they say which boxes they have.
///
/// # Errors
/// The same on every rank: [`ErrorKind::Disagreement`](crate::ErrorKind::Disagreement) if
/// replicas differ, naming the tensors and which ranks differ from the majority (from the
/// lowest rank, where there is none); an error of a
/// [`TensorSource`](crate::state::TensorSource); and as [`ProcessGroup::phase`].
pub fn audit(group: &ProcessGroup, state: &StateDict) -> Result<()> {
    let progress = group.progress();
    let digest = || {
        let (ids, entries): (Vec<_>, Vec<_>) = boxes(state).unzip();
        let digests = digest::digests(&entries, &|bytes| progress.add(bytes))?;
        Ok(Digests { boxes: hash16(&crate::codec::encode(&ids)?), digests })
    };
    // What the coordinator heard in the first phase, if it takes a second one.
    let mut heard = Vec::new();
    let decide = |all: Vec<Digests>| {
        let alike = all.windows(2).all(|pair| pair[0].boxes == pair[1].boxes);
        let digests: Vec<_> = all.into_iter().map(|rank| rank.digests).collect();
        if alike {
            let ids: Vec<_> = boxes(state).map(|(id, _)| id).collect();
            compare(&mut digests.iter().map(|digests| (ids.as_slice(), digests.as_slice())))?;
        } else {
            heard = digests;
        }
        Ok(alike)
    };
    if group.phase_all(Channel::Save, "audit", digest, decide)? {
        return Ok(());
    }
    let declare = || Ok(boxes(state).map(|(id, _)| id).collect::<Vec<_>>());
    group.phase_all(Channel::Save, "audit boxes", declare, |ids| {
        let pairs = ids.iter().zip(&heard);
        compare(&mut pairs.map(|(ids, digests)| (ids.as_slice(), digests.as_slice())))
    })
}

/// Every box of this rank that has bytes, in order of tensor name.
fn boxes(state: &StateDict) -> impl Iterator<Item = (BoxId, &TensorEntry)> {
    let all = state.tensors().flat_map(|(name, held)| held.iter().map(move |entry| (name, entry)));
    all.filter(|(_, entry)| entry.slice.elements() > 0).map(|(name, entry)| {
        let TensorEntry { spec, slice, .. } = entry;
        (BoxId { name: name.clone(), spec: spec.clone(), slice: slice.clone() }, entry)
    })
}

/// What a device answers for a range of these bytes.
#[cfg(test)]
pub(crate) fn sums_of(bytes: &[u8]) -> [u64; 2] {
    fingerprint::Sums::of(0, bytes).low_and_high()
}
