//! Ranks as processes: this program started again, once for each, which meet on a port of this
//! host. Whatever becomes of the parent, they end with it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::ranks::{Part, run};
use crate::cli::{Output, Stop, complain};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Deadlines, JobId, ProcessGroup};
use crate::layout::SaveId;
use crate::rank::{LocalRank, Rank, WorldSize};

/// Tells a process which rank it is: `RANK:PORT:TOKEN:PARENT`.
const SEAT: &str = "TCH_CHECKPOINT_STRESS_RANK";
/// How often the parent looks whether a rank has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How much longer than the deadline a rank may go on when another one has failed: by then it has
/// the verdict, or has given up.
const GRACE: Duration = Duration::from_secs(2);
/// How much longer than the deadline all ranks that are left may be stopped: nobody is there then
/// who could give the others up.
const STOPPED_GRACE: Duration = Duration::from_secs(1);
/// How much longer it may go on when another one has ended well: what follows a commit is left.
const TIDYING: Duration = Duration::from_secs(60);
/// Exit codes, the most severe first: unknown or uncertain outcome, not committed or damaged, peer
/// lost; then whatever else is not 0.
const SEVERITY: [u8; 5] = [6, 3, 5, 1, 7];
const PEER_LOST: u8 = 5;
/// Why a rank is given up.
const LATE: &str = "it did not end long after another rank had, and was killed";
const STOPPED: &str = "it was stopped for longer than the deadline, as all others, and was killed";

/// The place of this process among the ranks.
pub(super) struct Seat {
    rank: Rank,
    port: u16,
    token: String,
}

impl Seat {
    /// The place that the parent gave this process; `None` in a parent.
    pub(super) fn of_this_process() -> Result<Option<Self>> {
        let Some(text) = std::env::var_os(SEAT) else { return Ok(None) };
        let (seat, parent) = text.to_str().and_then(parse).ok_or_else(|| {
            let message = format!("{SEAT} is for processes that `stress` starts itself");
            Error::new(ErrorKind::InvalidInput, message).with_help("unset it")
        })?;
        end_with(parent)?;
        Ok(Some(seat))
    }

    /// Plays this rank. Its exit code, once what only it knows is printed.
    pub(super) fn take(
        self,
        world: WorldSize,
        deadlines: Deadlines,
        out: &mut Output<'_>,
        part: Part<'_>,
    ) -> Result<u8, Stop> {
        let Self { rank, port, token } = self;
        let (address, job) = (format!("127.0.0.1:{port}"), JobId::new("stress", token));
        let joined =
            ProcessGroup::tcp(rank, LocalRank(rank.get()), world, &address, job, deadlines);
        let out = rank.is_coordinator().then_some(out);
        match joined.map_err(Stop::from).and_then(|group| run(group, out, part)) {
            Err(Stop::Error(error)) => {
                if rank.is_coordinator() || !is_known_to_coordinator(&error) {
                    complain(&error.clone().at_rank(rank));
                }
                Ok(error.exit_code())
            }
            ended => ended.map(|()| 0),
        }
    }
}

/// What failed in a phase was voted on, and the coordinator prints the verdict; of one that was
/// killed the parent says so. That a commit may have been made is known to the others alone.
fn is_known_to_coordinator(error: &Error) -> bool {
    error.phase().is_some() && error.kind() != ErrorKind::OutcomeUnknown
}

fn parse(text: &str) -> Option<(Seat, i32)> {
    let mut parts = text.split(':');
    let rank = Rank::new(parts.next()?.parse().ok()?);
    let port = parts.next()?.parse().ok()?;
    let token = parts.next()?.to_owned();
    let parent = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((Seat { rank, port, token }, parent))
}

/// Has the kernel kill this process when its parent ends, also if that is killed.
fn end_with(parent: i32) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(
        |errno| Error::new(ErrorKind::Unsupported, format!("no end with the parent: {errno}")),
    )?;
    // It may have ended before.
    match rustix::process::getppid() {
        Some(pid) if pid.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(Error::new(ErrorKind::PeerLost, "the process that started this rank is gone")),
    }
}

/// Starts all ranks and waits for them. What they print is what rank 0 prints; the code is that of
/// the most severe verdict. Once one has ended, the others have the deadline and some seconds, then
/// they are killed.
pub(super) fn play(world: WorldSize, deadlines: &Deadlines) -> Result<u8, Stop> {
    let held = HeldPort::any()?;
    let token = SaveId::random()?.to_string();
    let mut children = Children::default();
    for rank in world.ranks() {
        children.start(rank, held.port, &token)?;
    }
    Ok(children.wait(deadlines.progress))
}

/// A free port of this host that nobody else is given, until rank 0 listens on it: bound, but not
/// listening, and with the option under which it may be bound once more.
struct HeldPort {
    port: u16,
    _socket: OwnedFd,
}

impl HeldPort {
    fn any() -> Result<Self> {
        let failed = |errno: rustix::io::Errno| {
            Error::new(ErrorKind::Storage, format!("no free port on the loopback: {errno}"))
        };
        let hold = || {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname};
            let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
            let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
            let bound = SocketAddrV4::try_from(getsockname(&socket)?)?;
            Ok(Self { port: bound.port(), _socket: socket })
        };
        hold().map_err(failed)
    }
}

/// The ranks that were started; those that have not ended are killed when it is dropped.
#[derive(Default)]
struct Children(Vec<Running>);

struct Running {
    rank: Rank,
    child: Child,
    /// Present once it has ended.
    code: Option<u8>,
}

impl Children {
    fn start(&mut self, rank: Rank, port: u16, token: &str) -> Result<()> {
        let failed = |e| Error::io(&e, "starting a rank", "this program".as_ref()).at_rank(rank);
        let program = std::env::current_exe().map_err(failed)?;
        let seat = format!("{rank}:{port}:{token}:{}", std::process::id());
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(SEAT, seat).stdin(Stdio::null());
        if !rank.is_coordinator() {
            command.stdout(Stdio::null());
        }
        let child = command.spawn().map_err(failed)?;
        self.0.push(Running { rank, child, code: None });
        Ok(())
    }

    /// The most severe of all exit codes.
    fn wait(&mut self, deadline: Duration) -> u8 {
        let (mut ended, mut failed, mut stopped) = (None, None, Duration::ZERO);
        while self.0.iter().any(|running| running.code.is_none()) {
            self.0.iter_mut().for_each(Running::look);
            let now = Instant::now();
            for running in &self.0 {
                ended = ended.or(running.code.map(|_| now));
                failed = failed.or(running.code.filter(|code| *code != 0).map(|_| now));
            }
            let is_over = |since: Option<Instant>, grace: Duration| {
                since.is_some_and(|since| now - since > deadline.saturating_add(grace))
            };
            if is_over(failed, GRACE) || is_over(ended, TIDYING) {
                self.0.iter_mut().for_each(|running| running.give_up(LATE));
            }
            // By looks, not by a clock, which goes on while this process is stopped as well.
            stopped = if self.are_stopped() { stopped + LOOK_INTERVAL } else { Duration::ZERO };
            if stopped > deadline.saturating_add(STOPPED_GRACE) {
                self.0.iter_mut().for_each(|running| running.give_up(STOPPED));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        let codes: Vec<u8> = self.0.iter().filter_map(|running| running.code).collect();
        most_severe(&codes)
    }

    /// Whether all ranks that have not ended are stopped.
    fn are_stopped(&self) -> bool {
        self.0.iter().filter(|running| running.code.is_none()).all(Running::is_stopped)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Running::kill);
    }
}

impl Running {
    fn look(&mut self) {
        if self.code.is_some() {
            return;
        }
        match self.child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => self.code = Some(self.judge(status)),
            Err(error) => {
                complain(&Error::io(&error, "waiting for a rank", "".as_ref()).at_rank(self.rank));
                self.kill();
                self.code = Some(PEER_LOST);
            }
        }
    }

    /// A rank that was killed is lost, as its peers say of it.
    fn judge(&self, status: ExitStatus) -> u8 {
        match status.code().map(u8::try_from) {
            Some(Ok(code)) => code,
            _ => {
                let text = format!("its process ended by itself: {status}");
                complain(&Error::new(ErrorKind::PeerLost, text).at_rank(self.rank));
                PEER_LOST
            }
        }
    }

    /// Whether a signal keeps it from going on.
    fn is_stopped(&self) -> bool {
        let looks = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let seen = waitid(WaitId::Pid(Pid::from_child(&self.child)), looks);
        matches!(seen, Ok(Some(status)) if status.stopped())
    }

    fn give_up(&mut self, text: &str) {
        if self.code.is_none() {
            complain(&Error::new(ErrorKind::Deadline, text).at_rank(self.rank));
            self.kill();
            self.code = Some(PEER_LOST);
        }
    }

    fn kill(&mut self) {
        if self.code.is_none() {
            // Fails only for one that has ended.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn most_severe(codes: &[u8]) -> u8 {
    let known = SEVERITY.iter().copied().find(|code| codes.contains(code));
    known.or_else(|| codes.iter().copied().find(|code| *code != 0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_severe_verdict_counts() {
        assert_eq!(most_severe(&[0, 0]), 0);
        assert_eq!(most_severe(&[0, 5, 6, 3]), 6);
        assert_eq!(most_severe(&[5, 3, 0]), 3);
        assert_eq!(most_severe(&[0, 101, 0]), 101);
        assert_eq!(most_severe(&[7, 101]), 7);
    }

    #[test]
    fn a_held_port_is_nobody_elses_but_can_be_listened_on() {
        let held = HeldPort::any().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, held.port)).unwrap();
        assert!(std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok());
        let other = HeldPort::any().unwrap();
        assert_ne!(other.port, held.port);
    }

    #[test]
    fn a_seat_is_read_as_it_was_written() {
        let (seat, parent) = parse("3:4711:abc:99").unwrap();
        assert_eq!((seat.rank.get(), seat.port, seat.token.as_str()), (3, 4711, "abc"));
        assert_eq!(parent, 99);
        for bad in ["", "3", "3:4711:abc", "x:4711:abc:99", "3:70000:abc:99", "3:1:a:9:9"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
