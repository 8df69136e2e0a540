use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::*;

const PATIENCE: Duration = Duration::from_secs(100);

fn fine() -> Seen {
    Seen { done: Ok(false), progress: 5, nccl: Ok(()), peers: Ok(()) }
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "it")
}

#[test]
fn what_a_look_shows_decides_what_comes_next() {
    use ErrorKind::{Device, PeerLost};
    let kind = |seen, silent| match judge(seen, 5, silent, PATIENCE) {
        Next::Abort(error) => Err(error.kind()),
        next => Ok(next),
    };
    let (short, long) = (Duration::from_secs(99), PATIENCE);
    let done = |peers| Seen { done: Ok(true), peers, ..fine() };
    assert_eq!(kind(done(Ok(())), long), Ok(Next::Rest));
    // What is done is done, whoever has gone since.
    assert_eq!(kind(done(Err(error(PeerLost))), long), Ok(Next::Rest));
    assert_eq!(kind(fine(), short), Ok(Next::Look { moved: false }));
    assert_eq!(kind(Seen { progress: 6, ..fine() }, long), Ok(Next::Look { moved: true }));
    assert_eq!(kind(fine(), long), Err(ErrorKind::Deadline));
    assert_eq!(kind(Seen { nccl: Err(error(Device)), ..fine() }, short), Err(Device));
    assert_eq!(kind(Seen { done: Err(error(Device)), ..fine() }, short), Err(Device));
    let both = Seen { nccl: Err(error(Device)), peers: Err(error(PeerLost)), ..fine() };
    assert_eq!(kind(both, short), Err(PeerLost), "the cause, not what NCCL makes of it");
}

/// Work that is done, or fails, when it is told to.
#[derive(Default)]
struct Work {
    is_done: AtomicBool,
    is_lost: AtomicBool,
    looks: AtomicU64,
    aborts: AtomicU64,
    /// The device goes on, whatever is aborted.
    goes_on: AtomicBool,
}

impl Watched for Work {
    fn look(&self, _: Instant) -> Seen {
        self.looks.fetch_add(1, SeqCst);
        let lost = self.is_lost.load(SeqCst).then(|| error(ErrorKind::PeerLost));
        Seen { done: Ok(self.is_done.load(SeqCst)), peers: lost.map_or(Ok(()), Err), ..fine() }
    }

    fn abort(&self) -> bool {
        self.aborts.fetch_add(1, SeqCst);
        !self.goes_on.load(SeqCst)
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_idle(watch: &Watch) -> bool {
    watch.inner.lock().state == State::Idle
}

#[test]
fn it_looks_while_something_goes_on_rests_when_it_is_done_and_ends() {
    let (watch, work) = (Watch::new(PATIENCE), Arc::new(Work::default()));
    let thread = watch.start(Arc::clone(&work) as Arc<dyn Watched>).unwrap();
    watch.begin();
    eventually("it looks", || work.looks.load(SeqCst) > 2);
    work.is_done.store(true, SeqCst);
    eventually("it rests", || is_idle(&watch));
    watch.check().unwrap();
    assert!(watch.end());
    thread.join().unwrap();
    assert_eq!(work.aborts.load(SeqCst), 0);
    assert_eq!(watch.check().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_lost_peer_and_a_failed_call_abort_once_and_every_later_call_gets_the_error() {
    for by_call in [false, true] {
        let (watch, work) = (Watch::new(PATIENCE), Arc::new(Work::default()));
        let thread = watch.start(Arc::clone(&work) as Arc<dyn Watched>).unwrap();
        if by_call {
            watch.fail(&error(ErrorKind::PeerLost));
            watch.fail(&error(ErrorKind::Device));
        } else {
            work.is_lost.store(true, SeqCst);
            watch.begin();
        }
        thread.join().unwrap();
        assert_eq!(work.aborts.load(SeqCst), 1);
        assert_eq!(watch.check().unwrap_err().kind(), ErrorKind::PeerLost);
        assert!(!watch.end(), "it was aborted, and is not left in order");
    }
}

#[test]
fn who_frees_memory_hears_of_an_error_only_after_the_abort() {
    let watch = Watch::new(PATIENCE);
    watch.fail(&error(ErrorKind::Device));
    let freed = std::thread::scope(|scope| {
        let waits = scope.spawn(|| watch.check_when_ended());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished(), "nothing has been aborted yet");
        let work = Arc::new(Work::default());
        watch.start(Arc::clone(&work) as Arc<dyn Watched>).unwrap().join().unwrap();
        assert_eq!(work.aborts.load(SeqCst), 1);
        waits.join().unwrap()
    });
    assert_eq!(freed.unwrap_err().kind(), ErrorKind::Device);
}

#[test]
fn memory_may_go_once_the_device_is_seen_at_rest() {
    for goes_on in [false, true] {
        let watch = Watch::new(PATIENCE);
        assert!(watch.is_at_rest());
        watch.fail(&error(ErrorKind::Device));
        assert!(!watch.is_at_rest(), "nothing has been aborted yet");
        let work = Arc::new(Work { goes_on: goes_on.into(), ..Work::default() });
        watch.start(work as Arc<dyn Watched>).unwrap().join().unwrap();
        assert_eq!(watch.is_at_rest(), !goes_on);
        assert_eq!(watch.check().unwrap_err().kind(), ErrorKind::Device);
    }
}

#[test]
fn an_exchange_that_never_ends_is_aborted_at_the_deadline() {
    let (watch, work) = (Watch::new(Duration::from_millis(60)), Arc::new(Work::default()));
    let thread = watch.start(Arc::clone(&work) as Arc<dyn Watched>).unwrap();
    watch.begin();
    thread.join().unwrap();
    assert_eq!(watch.check().unwrap_err().kind(), ErrorKind::Deadline);
    assert_eq!(work.aborts.load(SeqCst), 1);
}
