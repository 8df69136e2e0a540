//! The first words on a connection. Parsed by hand, because anybody may send them: fixed fields,
//! short lengths, and nothing allocated beyond what has arrived.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::error::{Error, ErrorKind};

const MAGIC: [u8; 8] = *b"TCHCKPT\n";
/// Version of handshake and frames.
pub(super) const VERSION: u16 = 1;
/// Longest message of a handshake.
const BODY_BYTES_MAX: usize = 4 << 10;
/// Magic, version, body length.
const HEAD_BYTES: usize = 8 + 2 + 4;
/// Longest job id or token.
pub(super) const NAME_BYTES_MAX: usize = 1 << 10;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plane {
    /// Votes and verdicts.
    Control,
    /// Gradients and parameters.
    Data,
}

/// What a rank says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) big_endian: bool,
    /// Whether it will open a data connection too.
    pub(super) with_data: bool,
    pub(super) plane: Plane,
    pub(super) world: u32,
    pub(super) rank: u32,
    /// The same on both connections of a process, and different between processes.
    pub(super) nonce: u128,
    pub(super) job: Vec<u8>,
    pub(super) token: Vec<u8>,
}

/// What rank 0 answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// The connection is taken; carries the hello's nonce back.
    Admitted(u128),
    /// Rank 0 belongs to another job, or the token is wrong.
    OtherJob,
    /// This rank can never be admitted, or the job will not start; why.
    Refused(Error),
    /// All ranks are there.
    Start,
}

/// Why no message was read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The peer speaks another version of our protocol.
    Version(u16),
    /// The peer does not speak it, is too slow, or is gone.
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends one message of a handshake.
pub(super) fn send(mut stream: &TcpStream, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let message = [&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), body].concat();
    stream.write_all(&message)
}

/// Receives one message of a handshake; all of it must be there at `until`.
pub(super) fn receive(stream: &TcpStream, until: Instant) -> Result<Vec<u8>, Unread> {
    let mut head = [0u8; HEAD_BYTES];
    read_by(stream, &mut head, until)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    let [v0, v1, l0, l1, l2, l3] = rest else { return Err(malformed("no head").into()) };
    if magic != MAGIC {
        return Err(malformed("not a rank of a job").into());
    }
    let version = u16::from_le_bytes([*v0, *v1]);
    if version != VERSION {
        return Err(Unread::Version(version));
    }
    let length = usize::try_from(u32::from_le_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
    if length > BODY_BYTES_MAX {
        return Err(malformed("a message that is too long").into());
    }
    let mut body = vec![0u8; length];
    read_by(stream, &mut body, until)?;
    Ok(body)
}

fn read_by(mut stream: &TcpStream, bytes: &mut [u8], until: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let (_, rest) = bytes.split_at_mut(filled);
        match stream.read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Hello {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let flags = u8::from(self.big_endian) | u8::from(self.with_data) << 1;
        let mut bytes = vec![flags, u8::from(self.plane == Plane::Data)];
        bytes.extend(self.world.to_le_bytes());
        bytes.extend(self.rank.to_le_bytes());
        bytes.extend(self.nonce.to_le_bytes());
        for name in [&self.job, &self.token] {
            let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
            bytes.extend(length.to_le_bytes());
            bytes.extend(name);
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let ([flags, plane], rest) = bytes.split_first_chunk()?;
        let (world, rest) = rest.split_first_chunk()?;
        let (rank, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (job, rest) = parse_name(rest)?;
        let (token, rest) = parse_name(rest)?;
        let plane = match plane {
            0 => Plane::Control,
            1 => Plane::Data,
            _ => return None,
        };
        (rest.is_empty() && *flags < 4).then(|| Self {
            big_endian: flags & 1 != 0,
            with_data: flags & 2 != 0,
            plane,
            world: u32::from_le_bytes(*world),
            rank: u32::from_le_bytes(*rank),
            nonce: u128::from_le_bytes(*nonce),
            job: job.to_vec(),
            token: token.to_vec(),
        })
    }
}

fn parse_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::from(u16::from_le_bytes(*length));
    if length > NAME_BYTES_MAX { None } else { rest.split_at_checked(length) }
}

impl Reply {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Admitted(nonce) => [&[0u8][..], &nonce.to_le_bytes()].concat(),
            Self::OtherJob => vec![1],
            Self::Start => vec![2],
            Self::Refused(error) => {
                let mut text = serde_json::to_vec(error).unwrap_or_default();
                if text.len() >= BODY_BYTES_MAX {
                    let short: String = error.message().chars().take(256).collect();
                    text = serde_json::to_vec(&Error::new(error.kind(), short)).unwrap_or_default();
                }
                [&[3u8][..], &text].concat()
            }
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (code, rest) = bytes.split_first()?;
        match code {
            0 => Some(Self::Admitted(u128::from_le_bytes(rest.try_into().ok()?))),
            1 if rest.is_empty() => Some(Self::OtherJob),
            2 if rest.is_empty() => Some(Self::Start),
            3 => serde_json::from_slice(rest).ok().map(Self::Refused),
            _ => None,
        }
    }
}

/// What a peer of another version is told.
pub(super) fn other_version(theirs: u16) -> Error {
    let text =
        format!("this rank speaks version {theirs} of the protocol, rank 0 version {VERSION}");
    Error::new(ErrorKind::Incompatible, text).with_help("run the same program on every rank")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            big_endian: false,
            with_data: true,
            plane: Plane::Data,
            world: 4,
            rank: 3,
            nonce: 1 << 100,
            job: b"job".to_vec(),
            token: vec![0xff; NAME_BYTES_MAX],
        }
    }

    #[test]
    fn a_hello_comes_back_and_no_cut_or_longer_one_is_taken() {
        let bytes = hello().to_bytes();
        assert_eq!(Hello::parse(&bytes), Some(hello()));
        for cut in 0..bytes.len() {
            assert_eq!(Hello::parse(&bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Hello::parse(&[&bytes[..], &[0]].concat()), None);
        let too_long = Hello { job: vec![1; NAME_BYTES_MAX + 1], ..hello() };
        assert_eq!(Hello::parse(&too_long.to_bytes()), None);
    }

    #[test]
    fn replies_come_back_and_long_errors_are_shortened_to_fit() {
        let error = Error::new(ErrorKind::Disagreement, "rank 1 is taken");
        for reply in [Reply::Admitted(7), Reply::OtherJob, Reply::Start, Reply::Refused(error)] {
            assert_eq!(Reply::parse(&reply.to_bytes()), Some(reply));
        }
        let long = Reply::Refused(Error::new(ErrorKind::Deadline, "x".repeat(9000))).to_bytes();
        assert!(long.len() <= BODY_BYTES_MAX);
        let Some(Reply::Refused(short)) = Reply::parse(&long) else { panic!("not a refusal") };
        assert_eq!((short.kind(), short.message().len()), (ErrorKind::Deadline, 256));
    }
}
