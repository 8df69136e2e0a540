//! A rank that leaves while other threads of it still use the group.

use std::io;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::*;
use crate::group::data::StarData;
use crate::group::frame::{Frame, Kind};
use crate::group::inbox::Inbox;
use crate::group::star::{Link, Links, Star};
use crate::group::{Member, Progress};

/// A link that takes everything, and whose last words arrive when the test says so.
struct Stalled {
    sent: Sender<Kind>,
    draining: Sender<()>,
    arrived: Receiver<()>,
}

impl Link for Stalled {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        self.sent.send(frame.kind).map_err(io::Error::other)
    }

    fn send_if_free(&self, _: &Frame) {}

    fn drain(&self, _: Instant) {
        // A test that has failed listens no more; its end counts as the arrival.
        self.draining.send(()).ok();
        self.arrived.recv_timeout(HUNG).ok();
    }

    fn close(&self) {}
}

fn group_of_two(rank: Rank, inbox: &Arc<Inbox>, peer: Rank, link: Stalled) -> ProcessGroup {
    // A wait for the peer, which never answers, is soon over.
    let deadlines = impatient(Duration::from_millis(100));
    let member = Member { rank, local_rank: LocalRank(rank.get()), world: world(2) };
    let links = Links::from([(peer, Box::new(link) as Box<dyn Link>)]);
    let progress = Progress::default();
    let data = StarData::new(member, Arc::clone(inbox), deadlines.progress, Vec::new());
    let (links, inbox) = (Arc::new(links), Arc::clone(inbox));
    let star = Star::new(member, deadlines.clone(), inbox, links, progress.clone()).unwrap();
    ProcessGroup::assemble(member, deadlines, progress, Some(star), Box::new(data))
}

#[test]
fn a_rank_that_says_goodbye_starts_no_phase_whatever_becomes_of_its_peer() {
    for (rank, is_peer_gone) in [(0, false), (0, true), (1, false), (1, true)] {
        let (rank, peer) = (Rank::new(rank), Rank::new(1 - rank));
        let (sent, has_sent) = unbounded();
        let (draining, is_draining) = bounded(1);
        let (arrive, arrived) = bounded::<()>(1);
        let inbox = Inbox::new(std::iter::once(peer));
        let group = group_of_two(rank, &inbox, peer, Stalled { sent, draining, arrived });

        let leaving = group.clone();
        let leaves = std::thread::spawn(move || leaving.finish());
        is_draining.recv_timeout(HUNG).unwrap();
        if is_peer_gone {
            // It has read the goodbye and ended before this rank is done with leaving.
            inbox.lose(peer, "its connection closed");
        }
        let error = roll_call(&group, Channel::Save, "later").unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::InvalidInput, Some(rank)), "{error}");
        assert_eq!(has_sent.try_iter().collect::<Vec<_>>(), [Kind::Goodbye]);

        drop(arrive);
        assert_eq!(leaves.join().unwrap(), Ok(()));
        let error = roll_call(&group, Channel::Save, "after").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
