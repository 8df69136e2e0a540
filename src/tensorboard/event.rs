//! Events as protocol buffers: the few fields of `Event` and `Summary` that scalars need.

use std::time::Duration;

/// What the first event of every file says.
const VERSION: &[u8] = b"brain.Event:2";
/// `SessionLog.status`: a process begins.
const START: u64 = 1;

/// How a field is encoded.
const VARINT: u32 = 0;
const EIGHT_BYTES: u32 = 1;
const BYTES: u32 = 2;
const FOUR_BYTES: u32 = 5;

/// A number under a name. TensorBoard groups names by what comes before the first `/`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalar<'a> {
    pub(super) tag: &'a str,
    pub(super) value: f64,
}

/// The first event of a file.
pub(super) fn version(time: Duration) -> Vec<u8> {
    let mut event = Message::event(time, 0);
    event.bytes(3, VERSION);
    event.0
}

/// A process begins with that step: what is known of it and of later ones is to be forgotten.
pub(super) fn start(time: Duration, step: u64) -> Vec<u8> {
    let mut session = Message::default();
    session.varint(1, START);
    let mut event = Message::event(time, step);
    event.bytes(7, &session.0);
    event.0
}

/// Numbers of one step.
pub(super) fn scalars(time: Duration, step: u64, values: &[Scalar<'_>]) -> Vec<u8> {
    let mut summary = Message::default();
    for Scalar { tag, value } in values {
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "the field has 32 bits")]
        entry.float(2, *value as f32);
        summary.bytes(1, &entry.0);
    }
    let mut event = Message::event(time, step);
    event.bytes(5, &summary.0);
    event.0
}

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(time: Duration, step: u64) -> Self {
        let mut event = Self::default();
        event.key(1, EIGHT_BYTES);
        event.0.extend(time.as_secs_f64().to_le_bytes());
        // A signed field: what is larger would be read as negative.
        event.varint(2, step.min(i64::MAX.unsigned_abs()));
        event
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, VARINT);
        self.number(value);
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, FOUR_BYTES);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, BYTES);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.number(u64::from(field << 3 | kind));
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn number(&mut self, mut value: u64) {
        while value > 0x7F {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}
