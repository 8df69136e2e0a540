//! One message of the control plane and its form on a socket.

use std::io::{self, Read};
use std::sync::Arc;

use super::Channel;
use crate::codec::ENCODED_BYTES_MAX;

/// Longest name of a phase.
pub(super) const PHASE_BYTES_MAX: usize = 255;
/// Bytes before name and body: kind, channel, name length, sequence, body length.
const HEAD_BYTES: usize = 1 + 1 + 2 + 8 + 8;
/// A body is read in pieces of this size, so that memory follows the bytes that really arrive.
const PIECE_BYTES: usize = 256 << 10;
/// Smaller bodies travel in the same write as their head.
const JOINED_BYTES_MAX: usize = 64 << 10;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Result of a rank's part of a phase, to the coordinator.
    Vote,
    /// The coordinator's answer to a vote.
    Verdict,
    /// A verdict after which the group is of no more use.
    Abort,
    /// The sender, or somebody it hears of, is working.
    Progress,
    /// The sender leaves on purpose.
    Goodbye,
    /// Everything up to the other's goodbye has arrived.
    Farewell,
    /// The coordinator's answer to a rank whose vote it has not seen.
    Missed,
}

/// One message between a rank and the coordinator.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) channel: Channel,
    pub(super) sequence: u64,
    pub(super) phase: String,
    /// Shared, because one verdict may go to many ranks.
    pub(super) body: Arc<Vec<u8>>,
}

impl Frame {
    /// A frame that belongs to no phase.
    pub(super) fn signal(kind: Kind) -> Self {
        let body = Arc::new(Vec::new());
        Self { kind, channel: Channel::Training, sequence: 0, phase: String::new(), body }
    }

    /// What has to be sent, in order; a short frame in one part.
    pub(super) fn to_parts(&self) -> io::Result<impl Iterator<Item = Arc<Vec<u8>>> + use<>> {
        let phase_bytes = u16::try_from(self.phase.len()).map_err(io::Error::other)?;
        let mut head = Vec::with_capacity(HEAD_BYTES + self.phase.len());
        head.push(kind_code(self.kind));
        head.push(channel_code(self.channel));
        head.extend(phase_bytes.to_le_bytes());
        head.extend(self.sequence.to_le_bytes());
        head.extend((self.body.len() as u64).to_le_bytes());
        head.extend(self.phase.as_bytes());
        let is_short = self.body.len() <= JOINED_BYTES_MAX;
        if is_short {
            head.extend(self.body.iter());
        }
        let body = (!is_short).then(|| Arc::clone(&self.body));
        Ok(std::iter::once(Arc::new(head)).chain(body))
    }

    /// Writes the frame.
    #[cfg(any(test, fuzzing))]
    pub(super) fn write_to(&self, stream: &mut impl io::Write) -> io::Result<()> {
        self.to_parts()?.try_for_each(|part| stream.write_all(&part))
    }

    /// Reads the next frame; `None` at the end of the stream. `heard` is called whenever bytes
    /// have arrived, because a long frame on a slow link is progress too.
    pub(super) fn read_from(
        stream: &mut impl Read,
        mut heard: impl FnMut(),
    ) -> io::Result<Option<Self>> {
        let mut head = [0u8; HEAD_BYTES];
        let Some((first, rest)) = head.split_first_mut() else { return Ok(None) };
        if read_first(stream, first)?.is_none() {
            return Ok(None);
        }
        stream.read_exact(rest)?;
        heard();
        let [kind, channel, p0, p1, tail @ ..] = head;
        let (sequence, body_bytes) = two_words(tail);
        let phase_bytes = usize::from(u16::from_le_bytes([p0, p1]));
        let body_bytes = usize::try_from(body_bytes).unwrap_or(usize::MAX);
        if phase_bytes > PHASE_BYTES_MAX || body_bytes > ENCODED_BYTES_MAX {
            return Err(malformed("a frame is longer than allowed"));
        }
        let phase = read_growing(stream, phase_bytes, &mut heard)?;
        let body = read_growing(stream, body_bytes, &mut heard)?;
        Ok(Some(Self {
            kind: kind_of(kind)?,
            channel: channel_of(channel)?,
            sequence,
            phase: String::from_utf8(phase).map_err(|_| malformed("a phase name is not text"))?,
            body: Arc::new(body),
        }))
    }
}

fn two_words(bytes: [u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(bytes);
    #[allow(clippy::cast_possible_truncation)] // the low half is meant
    (both as u64, (both >> 64) as u64)
}

/// One byte, or `None` at the end of the stream.
fn read_first(stream: &mut impl Read, first: &mut u8) -> io::Result<Option<()>> {
    loop {
        match stream.read(std::slice::from_mut(first)) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(())),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// `length` bytes; the buffer grows as they arrive and never to a length that was only claimed.
fn read_growing(
    stream: &mut impl Read,
    length: usize,
    heard: &mut impl FnMut(),
) -> io::Result<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    while bytes.len() < length {
        let start = bytes.len();
        let piece = PIECE_BYTES.min(length - start);
        bytes.try_reserve(piece)?;
        bytes.resize(start + piece, 0);
        let (_, mut rest) = bytes.split_at_mut(start);
        while !rest.is_empty() {
            let count = match stream.read(rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            rest = rest.get_mut(count..).unwrap_or_default();
            heard();
        }
    }
    Ok(bytes)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Vote => 1,
        Kind::Verdict => 2,
        Kind::Abort => 3,
        Kind::Progress => 4,
        Kind::Goodbye => 5,
        Kind::Farewell => 6,
        Kind::Missed => 7,
    }
}

fn kind_of(code: u8) -> io::Result<Kind> {
    use Kind::{Abort, Farewell, Goodbye, Missed, Progress, Verdict, Vote};
    [Vote, Verdict, Abort, Progress, Goodbye, Farewell, Missed]
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
        .ok_or_else(|| malformed("a frame of an unknown kind"))
}

fn channel_code(channel: Channel) -> u8 {
    match channel {
        Channel::Training => 0,
        Channel::Save => 1,
        Channel::Background => 2,
    }
}

fn channel_of(code: u8) -> io::Result<Channel> {
    Channel::ALL
        .into_iter()
        .find(|channel| channel_code(*channel) == code)
        .ok_or_else(|| malformed("a frame on an unknown channel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: usize) -> Frame {
        Frame {
            kind: Kind::Vote,
            channel: Channel::Background,
            sequence: u64::MAX - 7,
            phase: "commit".into(),
            body: Arc::new(vec![7; body]),
        }
    }

    #[test]
    fn frames_of_every_size_come_back_whole() {
        for body in [0, 1, JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1, 3 * PIECE_BYTES + 5] {
            let sent = frame(body);
            let mut bytes = Vec::new();
            sent.write_to(&mut bytes).unwrap();
            let mut stream = bytes.as_slice();
            let got = Frame::read_from(&mut stream, || ()).unwrap().unwrap();
            assert_eq!((got.kind, got.channel), (sent.kind, sent.channel));
            assert_eq!(
                (got.sequence, &got.phase, &got.body),
                (sent.sequence, &sent.phase, &sent.body)
            );
            assert!(Frame::read_from(&mut stream, || ()).unwrap().is_none());
        }
    }

    #[test]
    fn claimed_lengths_and_unknown_codes_are_refused() {
        let mut bytes = Vec::new();
        frame(4).write_to(&mut bytes).unwrap();
        for (at, value) in [(0, 0u8), (0, 8), (1, 3), (3, 0xff), (19, 0xff)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            let error = Frame::read_from(&mut bad.as_slice(), || ()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
        for cut in 1..bytes.len() {
            assert!(Frame::read_from(&mut &bytes[..cut], || ()).is_err(), "cut at {cut}");
        }
    }

    /// Gives a few bytes at a time.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let few = out.len().min(1000);
            self.0.read(&mut out[..few])
        }
    }

    #[test]
    fn a_long_frame_is_heard_while_it_comes() {
        let body = Arc::new(vec![7; 100_000]);
        let frame = Frame { body, ..Frame::signal(Kind::Vote) };
        let (mut bytes, mut heard) = (Vec::new(), 0);
        frame.write_to(&mut bytes).unwrap();
        let read = Frame::read_from(&mut Trickle(&bytes), || heard += 1).unwrap().unwrap();
        assert_eq!(read.body, frame.body);
        assert!(heard >= 100, "heard {heard} times");
    }
}
