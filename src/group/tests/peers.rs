//! How long a data plane of another make waits for its peers.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::codec;
use crate::error::{Error, ErrorKind};
use crate::group::frame::{Frame, Kind};
use crate::group::inbox::Inbox;
use crate::group::peers::Peers;
use crate::group::star::{Link, Links, VERDICT_MARGIN};
use crate::group::{Member, Progress};
use crate::rank::{LocalRank, Rank, WorldSize};

const DEADLINE: Duration = Duration::from_secs(1000);

/// Keeps what is sent.
struct Sent(Arc<Mutex<Vec<Frame>>>);

impl Link for Sent {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        self.0.lock().push(frame.clone());
        Ok(())
    }

    fn send_if_free(&self, _: &Frame) {}
    fn drain(&self, _: Instant) {}
    fn close(&self) {}
}

struct Scene {
    peers: Peers,
    inbox: Arc<Inbox>,
    sent: Arc<Mutex<Vec<Frame>>>,
    progress: Progress,
}

/// `rank` of three.
fn scene(rank: u32) -> Scene {
    let world = WorldSize::new(3).unwrap();
    let member = Member { rank: Rank::new(rank), local_rank: LocalRank(0), world };
    let linked = |other: &Rank| *other != member.rank && (rank == 0 || other.is_coordinator());
    let inbox = Inbox::new(world.ranks().filter(linked));
    let sent = Arc::<Mutex<Vec<Frame>>>::default();
    let link = |rank| (rank, Box::new(Sent(Arc::clone(&sent))) as Box<dyn Link>);
    let links: Arc<Links> = Arc::new(world.ranks().filter(linked).map(link).collect());
    let progress = Progress::default();
    let peers = Peers::new(member, Arc::clone(&inbox), links, progress.clone(), DEADLINE);
    Scene { peers, inbox, sent, progress }
}

fn ago(time: Duration) -> Instant {
    Instant::now().checked_sub(time).unwrap()
}

#[test]
fn peers_that_are_there_are_waited_for() {
    let scene = scene(0);
    assert_eq!(scene.peers.check(Instant::now()), Ok(()));
    // They were heard when the group was made.
    assert_eq!(scene.peers.check(ago(2 * VERDICT_MARGIN)), Ok(()));
}

#[test]
fn a_lost_peer_is_noticed_at_once_and_one_that_left_a_moment_later() {
    let lossy = scene(0);
    lossy.inbox.lose(Rank::new(2), "its connection closed");
    let error = lossy.peers.check(Instant::now()).unwrap_err();
    assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(2))));

    let leaving = scene(1);
    leaving.inbox.deliver(Rank::COORDINATOR, Frame::signal(Kind::Goodbye)).unwrap();
    // It may have finished what this rank still waits for.
    assert_eq!(leaving.peers.check(Instant::now()), Ok(()));
    let error = leaving.peers.check(ago(VERDICT_MARGIN)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CoordinatorLost);
}

#[test]
fn only_the_silent_rank_is_named() {
    let world = WorldSize::new(3).unwrap();
    let member = Member { rank: Rank::COORDINATOR, local_rank: LocalRank(0), world };
    let inbox = Inbox::new([Rank::new(1), Rank::new(2)].into_iter());
    let sent = Arc::default();
    let link = |rank| (Rank::new(rank), Box::new(Sent(Arc::clone(&sent))) as Box<dyn Link>);
    let links = Arc::new(Links::from([link(1), link(2)]));
    let short = Duration::from_millis(500);
    let peers = Peers::new(member, Arc::clone(&inbox), links, Progress::default(), short);
    let since = Instant::now();
    let error = loop {
        inbox.hear(Rank::new(2));
        match peers.check(since) {
            Ok(()) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Deadline, Some(Rank::new(1))));
    assert!(error.message().ends_with("from rank 1"), "{error}");
}

#[test]
fn the_coordinator_tells_the_others_why_it_gives_up() {
    let lost = Error::new(ErrorKind::PeerLost, "rank 2 is gone").at_rank(Rank::new(2));
    let (center, other) = (scene(0), scene(1));
    center.peers.give_up(&lost);
    assert_eq!(center.peers.check(Instant::now()), Err(lost.clone()));
    let frames = center.sent.lock().clone();
    assert_eq!(frames.len(), 2, "one per peer");
    let told: (Error, Error) = codec::decode(&frames[0].body).unwrap();
    assert_eq!(told, (lost.clone(), lost.clone()));
    other.inbox.deliver(Rank::COORDINATOR, frames[0].clone()).unwrap();
    assert_eq!(other.peers.check(Instant::now()), Err(lost.clone()));
    other.peers.give_up(&lost);
    assert!(other.sent.lock().is_empty(), "only the coordinator speaks for all");
}

#[test]
fn a_waiting_rank_says_that_it_is_here() {
    let scene = scene(1);
    scene.peers.say_here();
    assert_eq!(scene.progress.total(), 1);
    assert_eq!(scene.peers.patience(), DEADLINE + VERDICT_MARGIN);
}
