//! How frames leave: to every rank that they are for as fast as it takes them, by the one thread that
//! sends them. A rank that takes none delays nobody else.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Star;
use crate::group::frame::Frame;
use crate::group::inbox::Standing;
use crate::rank::Rank;

/// Longest wait before every rank is tried again.
const PAUSE: Duration = Duration::from_millis(100);

impl Star {
    pub(super) fn live(&self) -> impl Iterator<Item = Rank> {
        let live = |rank: &Rank| self.inbox.peer(*rank).0 == Standing::Live;
        self.links.keys().copied().filter(live)
    }

    /// Sends one frame to each of these ranks. Returns when all have taken theirs, or are lost: each
    /// has the deadline for progress for itself.
    pub(super) fn spread(&self, frames: impl Iterator<Item = (Rank, Frame)>) {
        let mut behind: Vec<Rank> = frames
            .filter(|(rank, frame)| !self.offer(*rank, Some(frame)))
            .map(|(r, _)| r)
            .collect();
        while !behind.is_empty() {
            // Those that have theirs go on, and hear that this rank is here.
            self.progress.add(1);
            self.wait_for(&behind);
            behind.retain(|rank| !self.offer(*rank, None));
        }
    }

    /// Whether nothing is left to send to this rank; nothing is if it is lost.
    fn offer(&self, rank: Rank, frame: Option<&Frame>) -> bool {
        let Some(link) = self.links.get(&rank) else { return true };
        link.offer(frame).unwrap_or_else(|error| {
            self.inbox.lose(rank, format!("sending to it failed: {error}"));
            link.close();
            true
        })
    }

    /// Waits until one of these ranks takes more.
    fn wait_for(&self, behind: &[Rank]) {
        let sockets = behind.iter().filter_map(|rank| self.links.get(rank)?.socket());
        let mut sockets: Vec<PollFd<'_>> =
            sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::OUT)).collect();
        let time = Timespec::try_from(PAUSE).ok();
        if poll(&mut sockets, time.as_ref()).is_err() {
            std::thread::sleep(PAUSE / 10);
        }
    }

    /// Sends a frame to one rank, and waits while it takes none.
    pub(super) fn send(&self, rank: Rank, frame: &Frame) {
        let Some(link) = self.links.get(&rank) else { return };
        if let Err(error) = link.send(frame) {
            self.inbox.lose(rank, format!("sending to it failed: {error}"));
            link.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::*;
    use crate::group::frame::Kind;
    use crate::group::inbox::Inbox;
    use crate::group::star::{Link, Links};
    use crate::group::{Deadlines, Member, Progress};
    use crate::rank::{LocalRank, WorldSize};

    type Log = Arc<Mutex<Vec<(u32, bool)>>>;

    /// Takes nothing `refusals` times; notes whether it was given a frame.
    struct Slow {
        rank: u32,
        refusals: Mutex<u32>,
        log: Log,
    }

    impl Link for Slow {
        fn send(&self, _: &Frame) -> io::Result<()> {
            unreachable!("it would wait")
        }

        fn offer(&self, frame: Option<&Frame>) -> io::Result<bool> {
            self.log.lock().push((self.rank, frame.is_some()));
            let mut refusals = self.refusals.lock();
            match *refusals {
                0 => Ok(true),
                1 => Err(io::ErrorKind::TimedOut.into()),
                _ => {
                    *refusals -= 1;
                    Ok(false)
                }
            }
        }

        fn send_if_free(&self, _: &Frame) {}
        fn drain(&self, _: Instant) {}
        fn close(&self) {}
    }

    #[test]
    fn all_are_offered_theirs_before_anybody_is_waited_for() {
        let log = Log::default();
        let link = |(rank, refusals)| -> (Rank, Box<dyn Link>) {
            let refusals = Mutex::new(refusals);
            (Rank::new(rank), Box::new(Slow { rank, refusals, log: Arc::clone(&log) }))
        };
        let links: Links = [(1, 3), (2, 0), (3, 2), (4, 0)].into_iter().map(link).collect();
        let world = WorldSize::new(5).unwrap();
        let member = Member { rank: Rank::COORDINATOR, local_rank: LocalRank(0), world };
        let inbox = Inbox::new(links.keys().copied());
        let (links, progress) = (Arc::new(links), Progress::default());
        let kept = Arc::clone(&inbox);
        let star = Star::new(member, Deadlines::default(), inbox, links, progress.clone()).unwrap();
        star.spread(star.live().map(|rank| (rank, Frame::signal(Kind::Verdict))));
        let offered = [(1, true), (2, true), (3, true), (4, true)];
        let again = [(1, false), (3, false), (1, false)];
        assert_eq!(*log.lock(), [&offered[..], &again].concat());
        assert!(progress.total() > 0, "the others must hear that it waits");
        let lost = |rank| matches!(kept.peer(Rank::new(rank)).0, Standing::Lost(_));
        assert_eq!([1, 2, 3, 4].map(lost), [true, false, true, false]);
    }
}
