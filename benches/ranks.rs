//! What one more rank costs rank 0: joining, phases of short and of long votes, threads, memory and
//! file descriptors. Rank 0 is real; all others are one loop in a process of its own, which says over
//! TCP what ranks say.
//!
//!     cargo bench --no-default-features --bench ranks -- 64 256 1024
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a program of its own")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tch_checkpoint::group::{Channel, Deadlines, JobId, ProcessGroup};
use tch_checkpoint::{LocalRank, Rank, Result, WorldSize};

const OTHERS: &str = "TCH_CHECKPOINT_BENCH_RANKS";
const MAGIC: &[u8] = b"TCHCKPT\n\x02\x00";
/// Bytes of a vote, and of its answer.
const SIZES: [(usize, usize); 3] = [(100, 100), (10_000, 10_000), (100_000, 100_000)];
const REPEATED: usize = 10;
/// Bytes of a frame before name and body.
const HEAD_BYTES: usize = 20;
/// The kind of a frame that is a verdict.
const VERDICT: u8 = 2;
/// Ranks that join at the same time.
const PORTION: usize = 250;

fn main() {
    if let Ok(job) = std::env::var(OTHERS) {
        let (address, ranks) = job.split_once(' ').unwrap();
        return Others::join(address, ranks.parse().unwrap()).vote();
    }
    let worlds: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let worlds = if worlds.is_empty() { vec![64, 256, 1024] } else { worlds };
    println!("ranks  join ms  {}  threads  files  KiB", SIZES.map(title).join("  "));
    for world in worlds {
        measure(world);
    }
}

fn title((vote, answer): (usize, usize)) -> String {
    format!("{vote}/{answer} B ms")
}

/// Ends the others, however this ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn measure(world: u32) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let before = cost();
    let others = Command::new(std::env::current_exe().unwrap())
        .env(OTHERS, format!("{free} {world}"))
        .spawn()
        .unwrap();
    let _running = Running(others);
    let began = Instant::now();
    let (job, size) = (JobId::new("bench", "token"), WorldSize::new(world).unwrap());
    let (rank, address, deadlines) = (Rank::new(0), free.to_string(), Deadlines::default());
    let group = ProcessGroup::tcp(rank, LocalRank(0), size, &address, job, deadlines).unwrap();
    let joined = began.elapsed();
    let phases: Vec<String> = SIZES.map(|sizes| phase_ms(&group, sizes)).to_vec();
    let after = cost();
    let more: Vec<String> =
        std::iter::zip(after, before).map(|(a, b)| (a - b).to_string()).collect();
    let joined = 1e3 * joined.as_secs_f64();
    println!("{world:5}  {joined:7.0}  {}  {}", phases.join("  "), more.join("  "));
    drop(group);
}

/// The median time of a phase, from rank 0's vote to its answer, which the others have by then.
fn phase_ms(group: &ProcessGroup, (vote, answer): (usize, usize)) -> String {
    let body = |bytes: usize| "x".repeat(bytes - 12);
    let mut times: Vec<Duration> = (0..REPEATED)
        .map(|_| {
            let began = Instant::now();
            let decide = |votes: Vec<String>| -> Result<String> {
                assert_eq!(votes.len(), group.world_size().len());
                Ok(body(answer))
            };
            group.phase_all(Channel::Save, "bench", || Ok(body(vote)), decide).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    format!("{:.2}", 1e3 * times[REPEATED / 2].as_secs_f64())
}

/// Threads, open files and KiB of memory of this process.
fn cost() -> [i64; 3] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> i64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    [field("Threads:"), i64::try_from(open).unwrap(), field("VmRSS:")]
}

/// A rank that is not rank 0, and what it has heard of the frame that is arriving.
struct Other {
    rank: u32,
    control: TcpStream,
    /// Only held.
    _data: Option<TcpStream>,
    head: Vec<u8>,
    left: usize,
}

struct Others(Vec<Other>);

impl Others {
    /// Joins in portions that rank 0 hears at the same time.
    fn join(address: &str, world: u32) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, ..limit };
        setrlimit(Resource::Nofile, raised).unwrap();
        let ranks: Vec<u32> = (1..world).collect();
        let enter = |ranks: &[u32]| {
            let (control, data) =
                (enter(address, world, ranks, 0), enter(address, world, ranks, 1));
            let other = |((rank, control), data)| {
                let (head, left) = (Vec::new(), 0);
                Other { rank, control, _data: Some(data), head, left }
            };
            let each = ranks.iter().copied().zip(control).zip(data);
            each.map(other).collect::<Vec<Other>>()
        };
        let mut others: Vec<Other> = ranks.chunks(PORTION).flat_map(enter).collect();
        for other in &mut others {
            assert_eq!(receive(&mut other.control), [2], "rank {}: all are there", other.rank);
            other.control.set_nodelay(true).unwrap();
        }
        Self(others)
    }

    /// Votes as often as rank 0 asks.
    fn vote(mut self) {
        for (sequence, (vote, _)) in SIZES.iter().flat_map(|sizes| [*sizes; REPEATED]).enumerate() {
            let frame = frame(sequence as u64, vote);
            for other in &mut self.0 {
                other.control.write_all(&frame).unwrap();
            }
            self.hear_verdicts();
        }
        // Until rank 0 has looked at what it holds, and goes.
        while self.0[0].control.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    }

    /// Reads every connection up to the next verdict, whichever has something.
    fn hear_verdicts(&mut self) {
        let mut waiting: Vec<&mut Other> = self.0.iter_mut().collect();
        let mut buffer = vec![0; 1 << 16];
        while !waiting.is_empty() {
            let sockets = waiting.iter().map(|other| PollFd::new(&other.control, PollFlags::IN));
            let mut sockets: Vec<PollFd<'_>> = sockets.collect();
            poll(&mut sockets, None).unwrap();
            let ready: Vec<bool> = sockets.iter().map(|s| !s.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            waiting.retain_mut(|other| !ready.next().unwrap() || !other.hear(&mut buffer));
        }
    }
}

impl Other {
    /// Reads what is there; whether a verdict is complete.
    fn hear(&mut self, buffer: &mut [u8]) -> bool {
        let wanted =
            if self.head.len() < HEAD_BYTES { HEAD_BYTES - self.head.len() } else { self.left };
        let most = wanted.min(buffer.len());
        let count = self.control.read(&mut buffer[..most]).unwrap();
        assert!(count > 0, "rank 0 is gone");
        if self.head.len() < HEAD_BYTES {
            self.head.extend(&buffer[..count]);
            if self.head.len() < HEAD_BYTES {
                return false;
            }
            let name = u16::from_le_bytes(self.head[2..4].try_into().unwrap());
            let body = u64::from_le_bytes(self.head[12..].try_into().unwrap());
            self.left = usize::from(name) + usize::try_from(body).unwrap();
        } else {
            self.left -= count;
        }
        if self.left > 0 {
            return false;
        }
        std::mem::take(&mut self.head)[0] == VERDICT
    }
}

/// A vote that is a text of so many bytes when encoded.
fn frame(sequence: u64, bytes: usize) -> Vec<u8> {
    let (name, text) = (b"bench", vec![b'x'; bytes - 12]);
    // Vote, on the channel of saves; then what says that it is no error, and the text.
    let head = [&[1u8, 1][..], &(name.len() as u16).to_le_bytes(), &sequence.to_le_bytes()];
    let lengths = [&(bytes as u64).to_le_bytes()[..], name, &0u32.to_le_bytes()];
    [&head.concat(), &lengths.concat(), &(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// Lets one connection of each of these ranks be admitted.
fn enter(address: &str, world: u32, ranks: &[u32], plane: u8) -> Vec<TcpStream> {
    let key = key();
    let hello = |rank: u32| {
        let flags = u8::from(cfg!(target_endian = "big")) | 2;
        let (world, rank) = (world.to_le_bytes(), rank.to_le_bytes());
        [&[flags, plane][..], &world, &rank, &[7; 16]].concat()
    };
    let mut streams: Vec<TcpStream> = ranks.iter().map(|_| dial(address)).collect();
    for (rank, stream) in ranks.iter().zip(&mut streams) {
        send(stream, &hello(*rank));
    }
    for (rank, stream) in ranks.iter().zip(&mut streams) {
        let reply = receive(stream);
        assert_eq!(reply[0], 4, "a challenge");
        let mut hasher = blake3::Hasher::new_keyed(&key);
        let proof = hasher.update(&[1]).update(&reply[1..]).update(&hello(*rank)).finalize();
        send(stream, proof.as_bytes());
    }
    for stream in &mut streams {
        assert_eq!(receive(stream)[0], 0, "admitted");
    }
    streams
}

fn key() -> [u8; 32] {
    let context = "tch-checkpoint control plane, version 2, key of a job";
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for name in ["bench", "token"] {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn dial(address: &str) -> TcpStream {
    for _ in 0..1000 {
        if let Ok(stream) = TcpStream::connect(address) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("rank 0 does not listen");
}

fn send(stream: &mut TcpStream, body: &[u8]) {
    let length = (body.len() as u32).to_le_bytes();
    stream.write_all(&[MAGIC, &length, body].concat()).unwrap();
}

fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; MAGIC.len() + 4];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_le_bytes(head[MAGIC.len()..].try_into().unwrap());
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).unwrap();
    body
}
