//! The first words on a connection. Parsed by hand, because anybody may send them: fixed fields,
//! short lengths, and nothing allocated beyond a message's bound. Neither job id nor token is among
//! them; [`super::proof`] shows that both sides know them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::proof::Code;
use crate::error::{Error, ErrorKind};

const MAGIC: [u8; 8] = *b"TCHCKPT\n";
/// Version of handshake and frames.
pub(super) const VERSION: u16 = 3;
/// Longest message of rank 0, which may carry an error.
const BODY_BYTES_MAX: usize = 4 << 10;
/// Longest message of a rank: a hello or a proof.
pub(super) const CALLER_BYTES_MAX: usize = 64;
/// Magic, version, body length.
pub(super) const HEAD_BYTES: usize = 8 + 2 + 4;
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
    /// A random number, the same on all connections of a process.
    pub(super) process: u64,
    /// Another, of this connection alone: what rank 0 has proved on it proves nothing on the next.
    pub(super) attempt: u64,
}

/// What rank 0 answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// What the rank has to answer with a proof; new for every connection.
    Challenge(Code),
    /// The connection is taken; proves that rank 0 knows the secret too.
    Admitted(Code),
    /// Rank 0 belongs to another job, or the token is wrong.
    OtherJob,
    /// This rank can never be admitted, or the job will not start; why. To a rank that has proved
    /// itself with the proof of an admission, unless it has had that already.
    Refused(Error, Option<Code>),
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
    stream.write_all(&message(body)?)
}

/// A message as it travels.
pub(super) fn message(body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok([&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), body].concat())
}

/// How many bytes a message of which `bytes` have arrived still lacks; `body_max` is the longest
/// body. Looks at each byte as soon as it is there.
pub(super) fn missing(bytes: &[u8], body_max: usize) -> Result<usize, Unread> {
    if bytes.iter().zip(&MAGIC).any(|(byte, magic)| byte != magic) {
        return Err(malformed("not a rank of a job").into());
    }
    let Some((head, body)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Ok(HEAD_BYTES - bytes.len());
    };
    let [.., v0, v1, l0, l1, l2, l3] = *head;
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(Unread::Version(version));
    }
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > body_max {
        return Err(malformed("a message that is too long").into());
    }
    Ok(length.saturating_sub(body.len()))
}

/// Receives one message of rank 0; all of it must be there at `until`.
pub(super) fn receive(stream: &TcpStream, until: Instant) -> Result<Vec<u8>, Unread> {
    let mut message = Vec::new();
    loop {
        let more = missing(&message, BODY_BYTES_MAX)?;
        if more == 0 {
            return Ok(message.split_off(HEAD_BYTES));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Unread::Io(io::ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left))?;
        read_some(stream, &mut message, more)?;
    }
}

/// Appends what is there of the next `more` bytes.
pub(super) fn read_some(
    mut stream: &TcpStream,
    bytes: &mut Vec<u8>,
    more: usize,
) -> io::Result<()> {
    let start = bytes.len();
    bytes.resize(start + more, 0);
    let (_, rest) = bytes.split_at_mut(start);
    let read = stream.read(rest);
    bytes.truncate(start + read.as_ref().map_or(0, |count| *count));
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

impl Hello {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let flags = u8::from(self.big_endian) | u8::from(self.with_data) << 1;
        let mut bytes = vec![flags, u8::from(self.plane == Plane::Data)];
        bytes.extend(self.world.to_le_bytes());
        bytes.extend(self.rank.to_le_bytes());
        bytes.extend(self.process.to_le_bytes());
        bytes.extend(self.attempt.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let ([flags, plane], rest) = bytes.split_first_chunk()?;
        let (world, rest) = rest.split_first_chunk()?;
        let (rank, rest) = rest.split_first_chunk()?;
        let (process, rest) = rest.split_first_chunk()?;
        let (attempt, rest) = rest.split_first_chunk()?;
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
            process: u64::from_le_bytes(*process),
            attempt: u64::from_le_bytes(*attempt),
        })
    }
}

impl Reply {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Admitted(proof) => [&[0u8][..], proof].concat(),
            Self::OtherJob => vec![1],
            Self::Start => vec![2],
            Self::Refused(error, None) => [&[3u8][..], &refusal(error)].concat(),
            Self::Refused(error, Some(proof)) => [&[5u8][..], proof, &refusal(error)].concat(),
            Self::Challenge(challenge) => [&[4u8][..], challenge].concat(),
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (code, rest) = bytes.split_first()?;
        let refused = |text, proof| Some(Self::Refused(serde_json::from_slice(text).ok()?, proof));
        match code {
            0 => Some(Self::Admitted(rest.try_into().ok()?)),
            1 if rest.is_empty() => Some(Self::OtherJob),
            2 if rest.is_empty() => Some(Self::Start),
            3 => refused(rest, None),
            4 => Some(Self::Challenge(rest.try_into().ok()?)),
            5 => rest.split_first_chunk().and_then(|(proof, text)| refused(text, Some(*proof))),
            _ => None,
        }
    }
}

/// An error, shortened if it does not fit.
fn refusal(error: &Error) -> Vec<u8> {
    let text = serde_json::to_vec(error).unwrap_or_default();
    if text.len() < BODY_BYTES_MAX - size_of::<Code>() {
        return text;
    }
    let short: String = error.message().chars().take(256).collect();
    serde_json::to_vec(&Error::new(error.kind(), short)).unwrap_or_default()
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
            process: 1 << 50,
            attempt: 1 << 60,
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
        assert!(bytes.len() <= CALLER_BYTES_MAX);
    }

    #[test]
    fn a_message_is_refused_at_its_first_wrong_byte_and_before_memory_is_taken() {
        let body = hello().to_bytes();
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        let good = [&MAGIC[..], &VERSION.to_le_bytes(), &length, &body].concat();
        let lacks = |bytes: &[u8]| missing(bytes, CALLER_BYTES_MAX);
        assert!(matches!(lacks(&good), Ok(0)));
        assert!(matches!(lacks(&[]), Ok(HEAD_BYTES)));
        for at in 0..MAGIC.len() {
            let mut bad = good[..=at].to_vec();
            bad[at] ^= 1;
            assert!(matches!(lacks(&bad), Err(Unread::Io(_))), "byte {at}");
        }
        let mut other = good.clone();
        other[8] = 99;
        assert!(matches!(lacks(&other), Err(Unread::Version(99))));
        let mut long = good[..HEAD_BYTES].to_vec();
        long[HEAD_BYTES - 4..].fill(0xff);
        assert!(matches!(lacks(&long), Err(Unread::Io(_))), "4 GiB were claimed");
    }

    #[test]
    fn replies_come_back_and_long_errors_are_shortened_to_fit() {
        let error = Error::new(ErrorKind::Disagreement, "rank 1 is taken");
        let admitted = [Reply::Challenge([8; 32]), Reply::Admitted([7; 32])];
        let refused = [Reply::Refused(error.clone(), None), Reply::Refused(error, Some([6; 32]))];
        let others = [Reply::OtherJob, Reply::Start].into_iter().chain(refused);
        for reply in admitted.into_iter().chain(others) {
            assert_eq!(Reply::parse(&reply.to_bytes()), Some(reply));
        }
        for length in [BODY_BYTES_MAX - 50, 9000] {
            let error = Error::new(ErrorKind::Deadline, "x".repeat(length));
            let long = Reply::Refused(error, Some([6; 32])).to_bytes();
            assert!(long.len() <= BODY_BYTES_MAX);
            let Some(Reply::Refused(short, _)) = Reply::parse(&long) else { panic!("no refusal") };
            assert_eq!((short.kind(), short.message().len()), (ErrorKind::Deadline, 256));
        }
    }
}
