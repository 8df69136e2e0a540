//! The control connection to one peer. Nothing here waits while it holds the lock: what the peer
//! does not take at once stays until it does, so that a peer that takes nothing holds up nobody.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::error::{Error, ErrorKind, Result};
use crate::group::Deadlines;
use crate::group::frame::{Frame, Kind};
use crate::group::inbox::Inbox;
use crate::group::star::Link;
use crate::rank::Rank;

/// Whoever takes less than this within the deadline for progress counts as stuck.
const MOVED_BYTES_MIN: usize = 16 << 10;
/// Longest wait before the deadline is looked at again.
const PAUSE: Duration = Duration::from_millis(100);
/// A thread that reads frames needs little.
const STACK_BYTES: usize = 256 << 10;

/// Set once the peer has read our goodbye, or nothing more can come from it.
#[derive(Default)]
struct Drained {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Drained {
    fn set(&self) {
        *self.done.lock() = true;
        self.changed.notify_all();
    }
}

/// What is to be sent.
struct Backlog {
    parts: VecDeque<Arc<Vec<u8>>>,
    /// How much of the first part is out.
    sent: usize,
    /// When enough was taken last, and how much since.
    moved: (Instant, usize),
}

struct Wire {
    stream: TcpStream,
    backlog: Mutex<Backlog>,
    patience: Duration,
    /// Why it was closed from here, by who cannot report the loss.
    failure: OnceLock<String>,
}

impl Wire {
    /// Hands over what the peer takes now; whether nothing is left.
    fn push(&self, frame: Option<&Frame>) -> io::Result<bool> {
        let mut backlog = self.backlog.lock();
        if backlog.parts.is_empty() {
            backlog.moved = (Instant::now(), 0);
        }
        if let Some(frame) = frame {
            backlog.parts.extend(frame.to_parts()?);
        }
        backlog.send_to(&self.stream, self.patience)
    }

    fn push_all(&self, frame: &Frame) -> io::Result<()> {
        let mut is_done = self.push(Some(frame))?;
        while !is_done {
            let mut sockets = [PollFd::new(&self.stream, PollFlags::OUT)];
            let time = Timespec::try_from(PAUSE).ok();
            match poll(&mut sockets, time.as_ref()) {
                Ok(_) | Err(Errno::INTR) => is_done = self.push(None)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Backlog {
    fn send_to(&mut self, stream: &TcpStream, patience: Duration) -> io::Result<bool> {
        let flags = SendFlags::DONTWAIT | no_signal();
        while let Some(part) = self.parts.front() {
            let rest = part.get(self.sent..).unwrap_or_default();
            match rustix::net::send(stream, rest, flags) {
                Ok(count) => {
                    let is_sent = count == rest.len();
                    self.note(count);
                    self.sent += count;
                    if is_sent {
                        self.sent = 0;
                        self.parts.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.moved.0.elapsed() < patience => return Ok(false),
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// A byte now and then is no progress.
    fn note(&mut self, count: usize) {
        self.moved.1 += count;
        if self.moved.1 >= MOVED_BYTES_MIN {
            self.moved = (Instant::now(), 0);
        }
    }
}

#[cfg(not(target_vendor = "apple"))]
fn no_signal() -> SendFlags {
    SendFlags::NOSIGNAL
}

/// There the standard library sets an option of the socket.
#[cfg(target_vendor = "apple")]
fn no_signal() -> SendFlags {
    SendFlags::empty()
}

/// A link over `stream`, with a thread that reads what comes.
pub(super) fn link(
    peer: Rank,
    stream: TcpStream,
    inbox: &Arc<Inbox>,
    deadlines: &Deadlines,
) -> Result<Box<dyn Link>> {
    let backlog = Backlog { parts: VecDeque::new(), sent: 0, moved: (Instant::now(), 0) };
    let patience = deadlines.progress;
    let wire =
        Arc::new(Wire { stream, backlog: Mutex::new(backlog), patience, failure: OnceLock::new() });
    let drained = Arc::<Drained>::default();
    let set_up = || -> io::Result<()> {
        wire.stream.set_read_timeout(None)?;
        let (inbox, seen, wire) = (Arc::clone(inbox), Arc::clone(&drained), Arc::clone(&wire));
        let reader = std::thread::Builder::new().name(format!("tch-rank-{peer}"));
        reader.stack_size(STACK_BYTES).spawn(move || {
            match read_frames(peer, &wire, &inbox, &seen) {
                Ok(()) => {
                    let failure = wire.failure.get().map_or("its connection closed", |why| why);
                    inbox.lose(peer, failure);
                }
                Err(error) => {
                    inbox.lose(peer, format!("its connection failed: {error}"));
                    // It may be well, and wait for an answer to what could not be taken.
                    drop(wire.stream.shutdown(Shutdown::Both));
                }
            }
            seen.set();
        })?;
        Ok(())
    };
    set_up().map_err(|error| {
        let text = format!("setting up the connection to rank {peer}: {error}");
        Error::new(ErrorKind::Storage, text).at_rank(peer)
    })?;
    Ok(Box::new(TcpLink { wire, drained }))
}

fn read_frames(peer: Rank, wire: &Wire, inbox: &Inbox, drained: &Drained) -> io::Result<()> {
    let mut stream = io::BufReader::new(&wire.stream);
    while let Some(frame) = Frame::read_from(&mut stream, || inbox.hear(peer))? {
        match frame.kind {
            Kind::Farewell => drained.set(),
            Kind::Goodbye => {
                inbox.deliver(peer, frame)?;
                // It need not wait for us to leave as well; if it cannot be told, it is gone.
                drop(wire.push_all(&Frame::signal(Kind::Farewell)));
            }
            _ => inbox.deliver(peer, frame)?,
        }
    }
    Ok(())
}

struct TcpLink {
    wire: Arc<Wire>,
    drained: Arc<Drained>,
}

impl Link for TcpLink {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        self.wire.push_all(frame)
    }

    fn offer(&self, frame: Option<&Frame>) -> io::Result<bool> {
        self.wire.push(frame)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wire.stream.as_fd())
    }

    fn send_if_free(&self, frame: &Frame) {
        let is_free = self.wire.push(None);
        let sent = is_free
            .and_then(|is_free| if is_free { self.wire.push(Some(frame)) } else { Ok(false) });
        if let Err(error) = sent {
            // Half a frame may be out; the reader reports the loss.
            self.wire.failure.get_or_init(|| format!("sending to it failed: {error}"));
            self.close();
        }
    }

    fn drain(&self, until: Instant) {
        let mut done = self.drained.done.lock();
        while !*done && !self.drained.changed.wait_until(&mut done, until).timed_out() {}
    }

    fn close(&self) {
        // Fails only if the connection is gone already.
        drop(self.wire.stream.shutdown(Shutdown::Both));
    }
}
