//! What a data plane of another make sees of the control plane: who is gone, and who is silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::data::gone;
use super::frame::{Frame, Kind};
use super::inbox::{Inbox, Look, Standing};
use super::star::{Links, VERDICT_MARGIN};
use super::{Member, Progress};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// The other ranks of the job, as far as this one hears of them.
pub(super) struct Peers {
    member: Member,
    inbox: Arc<Inbox>,
    links: Arc<Links>,
    progress: Progress,
    patience: Duration,
}

impl Peers {
    pub(super) fn new(
        member: Member,
        inbox: Arc<Inbox>,
        links: Arc<Links>,
        progress: Progress,
        deadline: Duration,
    ) -> Self {
        // The coordinator sees which rank is silent, and is the first to say so.
        let margin = if member.rank.is_coordinator() { Duration::ZERO } else { VERDICT_MARGIN };
        Self { member, inbox, links, progress, patience: deadline + margin }
    }

    /// How long a peer may be silent.
    #[cfg(feature = "mpi")]
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Tells the peers that this rank is where it should be.
    pub(super) fn say_here(&self) {
        self.progress.add(1);
    }

    /// Whether it is worth waiting on for something that all ranks take part in, and that this
    /// one has waited for since `since`.
    ///
    /// # Errors
    /// What has broken the group; [`ErrorKind::PeerLost`], [`ErrorKind::CoordinatorLost`];
    /// [`ErrorKind::Deadline`] naming the silent ranks.
    pub(super) fn check(&self, since: Instant) -> Result<()> {
        if let Some(broken) = self.inbox.wait(|state| Look::Done(state.broken.clone())) {
            return Err(broken);
        }
        let mut silent: Vec<Rank> = Vec::new();
        for rank in self.links.keys().copied() {
            let (standing, heard_at) = self.inbox.peer(rank);
            match standing {
                Standing::Lost(why) => return Err(gone(rank, &why)),
                Standing::Left if since.elapsed() >= VERDICT_MARGIN => {
                    return Err(gone(rank, "it left the job"));
                }
                _ if heard_at.max(since).elapsed() >= self.patience => silent.push(rank),
                _ => {}
            }
        }
        let Some(first) = silent.first() else { return Ok(()) };
        let names: Vec<String> = silent.iter().map(Rank::to_string).collect();
        let names = names.join(", ");
        let text = format!("no data and no progress for {:?} from rank {names}", self.patience);
        Err(Error::new(ErrorKind::Deadline, text).at_rank(*first))
    }

    /// Makes `error` the end of every wait in the group, if this rank is the coordinator; others
    /// cannot reach their peers.
    pub(super) fn give_up(&self, error: &Error) {
        if !self.member.rank.is_coordinator() {
            return;
        }
        self.inbox.break_with(error.clone());
        let body = codec::encode(&(error, error)).unwrap_or_default();
        let abort = Frame { body: Arc::new(body), ..Frame::signal(Kind::Abort) };
        // Whoever cannot be told finds out by itself.
        self.links.values().for_each(|link| drop(link.offer(Some(&abort))));
    }
}
