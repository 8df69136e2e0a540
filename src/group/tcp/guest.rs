//! Connections that have not shown that they belong to the job: anybody's. One thread hears them
//! all. Each costs one file descriptor and less than a hundred bytes, and when there are too many,
//! those go from where most have come.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handshake::{
    CALLER_BYTES_MAX, HEAD_BYTES, Hello, Reply, Unread, missing, other_version, read_some, send,
};
use super::proof::{Code, Secret, Side, challenge};

/// Connections taken before those that are there are heard.
const ACCEPTED_MAX: usize = 64;
/// Time for hello and proof.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// One part in so many of all places is what a crowd may have before it has to make room.
const SHARE: usize = 8;
/// Time after which everybody is looked at again, whatever happens.
const PAUSE: Duration = Duration::from_millis(50);

/// A rank that has proved that it belongs to the job.
pub(super) struct Arrival {
    /// Blocks.
    pub(super) stream: TcpStream,
    pub(super) hello: Hello,
    /// With which rank 0 shows that it belongs to it too.
    pub(super) proof: Code,
}

struct Guest {
    stream: TcpStream,
    from: IpAddr,
    until: Instant,
    /// Of the message that is being sent.
    heard: Vec<u8>,
    /// What it has said, and what it has to answer.
    hello: Option<(Hello, Code)>,
    /// Whether something has come from it.
    is_ready: bool,
}

/// What becomes of a guest that was heard.
enum Fate {
    Stays,
    Arrives(Hello, Code),
    Goes,
}

/// Connections of strangers and of ranks to be, oldest first.
pub(super) struct Guests {
    secret: Secret,
    guests: VecDeque<Guest>,
    most: usize,
}

impl Guests {
    /// At most `most` of them.
    pub(super) fn new(secret: Secret, most: usize) -> Self {
        Self { secret, guests: VecDeque::new(), most: most.max(1) }
    }

    /// Waits a moment for something to happen, and takes the connections that wait.
    pub(super) fn welcome(&mut self, listener: &TcpListener) {
        self.wait(listener);
        for _ in 0..ACCEPTED_MAX {
            match listener.accept() {
                Ok((stream, from)) => self.guests.extend(Guest::new(stream, from.ip())),
                Err(error) if is_passing(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Most likely there are no file descriptors left.
                    tracing::debug!(%error, "a connection that cannot be taken");
                    self.send_away(1);
                    std::thread::sleep(PAUSE / 10);
                    return;
                }
            }
        }
    }

    fn wait(&mut self, listener: &TcpListener) {
        let guests = self.guests.iter().map(|guest| PollFd::new(&guest.stream, PollFlags::IN));
        let mut sockets: Vec<PollFd<'_>> = guests.collect();
        sockets.push(PollFd::new(listener, PollFlags::IN));
        let time = Timespec::try_from(PAUSE).ok();
        let polled = poll(&mut sockets, time.as_ref());
        let ready: Vec<bool> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();
        if polled.is_err() {
            std::thread::sleep(PAUSE / 10);
        }
        for (guest, is_ready) in self.guests.iter_mut().zip(ready) {
            guest.is_ready = is_ready;
        }
    }

    /// Hears everybody out, as far as they have come; drops whoever is too slow, or one too many.
    pub(super) fn hear(&mut self) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for mut guest in std::mem::take(&mut self.guests) {
            match guest.hear(&self.secret) {
                Fate::Stays => self.guests.push_back(guest),
                Fate::Goes => {}
                Fate::Arrives(hello, proof) => {
                    let stream = guest.stream;
                    if stream.set_nonblocking(false).is_ok() {
                        arrivals.push(Arrival { stream, hello, proof });
                    }
                }
            }
        }
        self.send_away(self.guests.len().saturating_sub(self.most));
        arrivals
    }

    /// Drops `count` guests, so that whoever floods the gate crowds out itself.
    fn send_away(&mut self, count: usize) {
        let mut crowds: HashMap<IpAddr, usize> = HashMap::new();
        self.guests.iter().for_each(|guest| *crowds.entry(guest.crowd()).or_default() += 1);
        for _ in 0..count {
            let Some(gone) = self.first_to_go(&crowds).and_then(|at| self.guests.remove(at)) else {
                return;
            };
            crowds.entry(gone.crowd()).and_modify(|size| *size -= 1);
        }
    }

    /// One of the biggest crowd, if that has more than its share of the places; else one who has
    /// not even said hello. Of several the silent, of the biggest crowd, the oldest.
    fn first_to_go(&self, crowds: &HashMap<IpAddr, usize>) -> Option<usize> {
        let share = self.most / SHARE;
        let claim = |guest: &Guest| {
            let size = crowds.get(&guest.crowd()).copied().unwrap_or_default();
            let excess = if size > share { size } else { 0 };
            (excess, guest.hello.is_none(), size)
        };
        // Of equals the last is taken.
        let guests = self.guests.iter().enumerate().rev();
        guests.max_by_key(|(_, guest)| claim(guest)).map(|(at, _)| at)
    }
}

impl Guest {
    fn new(stream: TcpStream, from: IpAddr) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        let until = Instant::now() + HELLO_TIME;
        let from = from.to_canonical();
        // What it says may be there already.
        Some(Self { stream, from, until, heard: Vec::new(), hello: None, is_ready: true })
    }

    /// Those with whom it shares its place: one host, or whoever has the same network of IPv6, of
    /// which the last 64 bits are free to choose.
    fn crowd(&self) -> IpAddr {
        match self.from {
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        }
    }

    fn hear(&mut self, secret: &Secret) -> Fate {
        while std::mem::take(&mut self.is_ready) {
            let message = match self.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    self.refuse(error);
                    return Fate::Goes;
                }
            };
            match self.take(secret, &message) {
                Fate::Stays => self.is_ready = true,
                fate => return fate,
            }
        }
        if Instant::now() >= self.until { Fate::Goes } else { Fate::Stays }
    }

    /// The message that is being sent, once it is complete.
    fn next_message(&mut self) -> Result<Option<Vec<u8>>, Unread> {
        loop {
            let more = missing(&self.heard, CALLER_BYTES_MAX)?;
            if more == 0 {
                let body = self.heard.split_off(HEAD_BYTES);
                self.heard.clear();
                return Ok(Some(body));
            }
            match read_some(&self.stream, &mut self.heard, more) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                read => read?,
            }
        }
    }

    /// A hello is answered by a challenge, and a proof decides.
    fn take(&mut self, secret: &Secret, message: &[u8]) -> Fate {
        if let Some((hello, challenge)) = self.hello.take() {
            if secret.is_proved(Side::Caller, &challenge, &hello, message) {
                let ours = secret.proof(Side::Coordinator, &challenge, &hello);
                return Fate::Arrives(hello, ours);
            }
            tracing::debug!(from = %self.from, "a proof of another job or token");
            self.answer(&Reply::OtherJob);
            return Fate::Goes;
        }
        let (Some(hello), Ok(drawn)) = (Hello::parse(message), challenge()) else {
            tracing::debug!(from = %self.from, "a stranger");
            return Fate::Goes;
        };
        self.answer(&Reply::Challenge(drawn));
        self.hello = Some((hello, drawn));
        Fate::Stays
    }

    fn refuse(&self, error: Unread) {
        match error {
            Unread::Version(version) => self.answer(&Reply::Refused(other_version(version), None)),
            Unread::Io(error) => tracing::debug!(from = %self.from, %error, "a stranger"),
        }
    }

    /// Fits into the empty buffer of a new connection; whoever cannot be told tries again.
    fn answer(&self, reply: &Reply) {
        drop(send(&self.stream, &reply.to_bytes()));
    }
}

/// A stranger who says these bytes without waiting for an answer: it is heard to the end, and does
/// not get in.
#[cfg(fuzzing)]
pub fn fuzz_guest(bytes: &[u8]) {
    let (ours, _theirs) = super::fuzzing::spoken(bytes);
    let secret = Secret::new("job", "token");
    let mut guest = Guest::new(ours, IpAddr::from([127, 0, 0, 1])).expect("a socket");
    match guest.hear(&secret) {
        Fate::Goes => {}
        Fate::Stays => panic!("whoever has hung up stays"),
        Fate::Arrives(hello, _) => panic!("a stranger is let in: {hello:?}"),
    }
}

/// Errors of the connection that was about to be taken, not of taking.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> (TcpListener, Guests) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        (listener, Guests::new(Secret::new("job", "token"), 8))
    }

    fn froms(guests: &Guests) -> Vec<String> {
        guests.guests.iter().map(|guest| guest.from.to_string()).collect()
    }

    #[test]
    fn a_flood_is_taken_in_portions_and_never_kept_beyond_the_bound() {
        let (listener, mut guests) = gate();
        let address = listener.local_addr().unwrap();
        let flood: Vec<_> =
            (0..=ACCEPTED_MAX).map(|_| TcpStream::connect(address).unwrap()).collect();
        guests.welcome(&listener);
        assert_eq!(guests.guests.len(), ACCEPTED_MAX, "one is left of {}", flood.len());
        assert!(guests.hear().is_empty());
        assert_eq!(guests.guests.len(), 8);
    }

    /// Guests of these addresses, oldest first; some have said hello.
    fn crowded(most: usize, crowd: &[(&str, bool)]) -> Guests {
        let (listener, mut guests) = gate();
        guests.most = most;
        let hello = Hello {
            big_endian: false,
            with_data: true,
            plane: super::super::handshake::Plane::Control,
            world: 4,
            rank: 1,
            process: 1,
            attempt: 1,
        };
        for (from, has_spoken) in crowd {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut guest = Guest::new(stream, from.parse().unwrap()).unwrap();
            guest.hello = has_spoken.then(|| (hello.clone(), Code::default()));
            guests.guests.push_back(guest);
        }
        guests
    }

    #[test]
    fn whoever_crowds_the_gate_goes_first_and_of_those_the_silent_and_the_oldest() {
        // The oldest of the crowd has said hello.
        let crowd = [
            ("10.0.0.9", false),
            ("10.0.0.1", true),
            ("10.0.0.1", false),
            ("10.0.0.1", false),
            ("10.0.0.1", false),
            ("10.0.0.2", false),
        ];
        let mut guests = crowded(8, &crowd);
        guests.send_away(3);
        assert_eq!(froms(&guests), ["10.0.0.9", "10.0.0.1", "10.0.0.2"]);
        assert!(guests.guests[1].hello.is_some());
    }

    /// Whoever has one network of IPv6 has more addresses than there are places.
    #[test]
    fn one_host_by_many_addresses_is_one_crowd() {
        let mut guests = crowded(
            8,
            &[
                ("10.0.0.9", true),
                ("::ffff:10.0.0.1", false),
                ("10.0.0.1", false),
                ("10.0.0.9", true),
                ("::ffff:10.0.0.1", false),
            ],
        );
        guests.send_away(2);
        assert_eq!(froms(&guests), ["10.0.0.9", "10.0.0.9", "10.0.0.1"]);
        let mut guests = crowded(
            8,
            &[
                ("2001:db8:0:1::1", true),
                ("2001:db8:0:2::1", false),
                ("2001:db8:0:2::2", false),
                ("2001:db8:0:1::1", true),
                ("2001:db8:0:2:ffff::3", false),
            ],
        );
        guests.send_away(2);
        assert_eq!(froms(&guests), ["2001:db8:0:1::1", "2001:db8:0:1::1", "2001:db8:0:2:ffff::3"]);
    }

    /// A few ranks of one host among strangers of whom each has an address of its own.
    #[test]
    fn the_silent_go_before_a_small_crowd_that_has_said_hello() {
        let crowd = [
            ("10.0.0.1", true),
            ("10.0.0.1", true),
            ("10.0.0.1", true),
            ("10.0.1.1", false),
            ("10.0.1.2", false),
            ("10.0.1.3", true),
        ];
        let mut guests = crowded(64, &crowd);
        guests.send_away(2);
        assert_eq!(froms(&guests), ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.1.3"]);
        // There is nothing else to go by then.
        guests.send_away(1);
        assert_eq!(froms(&guests), ["10.0.0.1", "10.0.0.1", "10.0.1.3"]);
    }
}
