//! Bytes of a stranger, where a rank reads them.

use super::frame::Frame;
pub use super::tcp::fuzzing::{connection, guest, hello, reply};

/// A stream of frames. What is read is written again as it came.
pub fn frames(bytes: &[u8]) {
    let mut stream = bytes;
    let mut heard = 0u32;
    loop {
        let before = stream;
        let Ok(Some(frame)) = Frame::read_from(&mut stream, || heard += 1) else { return };
        let mut printed = Vec::new();
        frame.write_to(&mut printed).expect("what was read is written");
        let (read, _) = before.split_at(before.len() - stream.len());
        assert_eq!(printed, read);
    }
}
