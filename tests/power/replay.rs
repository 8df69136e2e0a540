//! What a device may hold when the power goes: everything before the last flush, and any part of
//! what came after.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::mix;

/// What is written as a whole or not at all, but for the last one (see [`State::torn_at`]).
const PIECE: usize = 4096;

/// A write or flush, in the order of the device.
enum Op {
    Write { offset: u64, data: Range<usize> },
    Flush,
}

/// Everything that was written and flushed.
pub struct Log {
    bytes: Vec<u8>,
    ops: Vec<Op>,
    /// Where the record of each one ends.
    ends: Vec<usize>,
}

impl Log {
    /// Reads what `device.py` has written down.
    pub fn read(path: &Path) -> Self {
        const HEAD: usize = 13;
        let bytes = std::fs::read(path).unwrap();
        let (mut ops, mut ends, mut at) = (Vec::new(), Vec::new(), 0);
        while at < bytes.len() {
            let offset = u64::from_le_bytes(bytes[at + 1..at + 9].try_into().unwrap());
            let len = u32::from_le_bytes(bytes[at + 9..at + HEAD].try_into().unwrap());
            let end = at + HEAD + usize::try_from(len).unwrap();
            ops.push(match bytes[at] {
                b'W' => Op::Write { offset, data: at + HEAD..end },
                b'F' => Op::Flush,
                other => panic!("record {other}"),
            });
            ends.push(end);
            at = end;
        }
        Self { bytes, ops, ends }
    }

    /// How many writes and flushes there had been when the log was so long.
    pub fn count_at(&self, len: u64) -> usize {
        self.ends.partition_point(|&end| end as u64 <= len)
    }

    /// What lies between two flushes.
    pub fn epochs(&self) -> Vec<Range<usize>> {
        let mut epochs = Vec::new();
        let mut begin = 0;
        for (index, op) in self.ops.iter().enumerate() {
            if matches!(op, Op::Flush) {
                epochs.push(begin..index);
                begin = index + 1;
            }
        }
        epochs.push(begin..self.ops.len());
        epochs
    }

    /// The flushes around which `after` lies.
    fn epoch_of(&self, after: usize) -> Range<usize> {
        let mut epochs = self.epochs().into_iter();
        epochs.find(|epoch| (epoch.start..=epoch.end).contains(&after)).unwrap()
    }

    fn writes(&self, ops: Range<usize>) -> impl Iterator<Item = (u64, &[u8])> {
        self.ops[ops].iter().filter_map(|op| match op {
            Op::Write { offset, data } => Some((*offset, &self.bytes[data.clone()])),
            Op::Flush => None,
        })
    }
}

/// What is there of what was written since the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Nothing,
    Everything,
    /// Pieces, chosen by this.
    Some(u64),
}

/// One content of the device after a power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The power went after so many writes and flushes of the whole log.
    pub after: usize,
    pub part: Part,
    /// The last piece is there in part, chosen by this.
    pub torn_at: Option<u64>,
}

impl State {
    /// Every prefix, each also with its last piece torn, and so many random parts per flush, none
    /// twice.
    pub fn all(log: &Log, unit: usize, parts: u64) -> Vec<Self> {
        let mut states = Vec::new();
        for (number, epoch) in log.epochs().into_iter().enumerate() {
            for after in epoch.start..=epoch.end {
                let chance = mix(after as u64);
                states.push(Self { after, part: Part::Everything, torn_at: None });
                states.push(Self { after, part: Part::Everything, torn_at: Some(chance) });
            }
            if epoch.is_empty() {
                continue;
            }
            for part in 0..parts {
                let chance = mix(part ^ mix(number as u64));
                let after = epoch.start + 1 + usize::try_from(chance).unwrap() % epoch.len();
                let torn_at = chance.is_multiple_of(4).then_some(mix(chance));
                states.push(Self { after, part: Part::Some(chance), torn_at });
            }
        }
        let mut seen = HashSet::new();
        states.retain(|state| {
            let pieces = state.pieces(log, unit).into_iter().map(|(at, piece)| (at, piece.len()));
            // Later, more is acknowledged: the same content may be good before and bad then.
            seen.insert((state.after, pieces.collect::<Vec<_>>()))
        });
        states
    }

    /// What is there of what was written since the last flush, and where. A device tears no
    /// smaller ones than `unit` bytes.
    fn pieces<'a>(&self, log: &'a Log, unit: usize) -> Vec<(u64, &'a [u8])> {
        let writes = log.writes(log.epoch_of(self.after).start..self.after);
        let mut pieces: Vec<_> = writes.flat_map(|(at, data)| cut(at, data)).collect();
        if let (Some(chance), Some((at, last))) = (self.torn_at, pieces.last_mut()) {
            // The file system's own head is checked as a whole, and in no journal.
            let unit = if *at < PIECE as u64 { PIECE } else { unit };
            let there = usize::try_from(chance).unwrap() % last.len().div_ceil(unit);
            *last = &last[..there * unit];
        }
        let mut number = 0;
        pieces.retain(|(_, piece)| {
            number += 1;
            !piece.is_empty() && self.has_piece(number)
        });
        pieces
    }

    fn has_piece(&self, number: u64) -> bool {
        match self.part {
            Part::Nothing => false,
            Part::Everything => true,
            Part::Some(chance) => mix(chance ^ number) % 8 <= chance % 7,
        }
    }
}

/// An image of which only what is not zero is held.
pub struct Sparse {
    len: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Sparse {
    pub fn read(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut blocks = BTreeMap::new();
        for offset in (0..len).step_by(PIECE) {
            let mut block = vec![0; PIECE];
            file.read_exact_at(&mut block, offset).unwrap();
            if block.iter().any(|&byte| byte != 0) {
                blocks.insert(offset, block);
            }
        }
        Self { len, blocks }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, piece) in cut(offset, data) {
            let begin = within(at);
            let block = self.blocks.entry(at - begin as u64).or_insert(vec![0; PIECE]);
            block[begin..begin + piece.len()].copy_from_slice(piece);
        }
    }

    fn store(&self, path: &Path) -> File {
        let file = File::create(path).unwrap();
        file.set_len(self.len).unwrap();
        for (offset, block) in &self.blocks {
            file.write_all_at(block, *offset).unwrap();
        }
        file
    }
}

/// Makes images of states, in the order of their `after`.
pub struct Replayer<'a> {
    log: &'a Log,
    /// Everything before the last flush.
    durable: Sparse,
    /// So many writes and flushes are in it.
    applied: usize,
    /// What the device never tears, in bytes.
    unit: usize,
}

impl<'a> Replayer<'a> {
    pub fn new(log: &'a Log, base: Sparse, unit: usize) -> Self {
        Self { log, durable: base, applied: 0, unit }
    }

    /// Stores `state` as an image.
    pub fn store(&mut self, state: &State, image: &Path) {
        let epoch = self.log.epoch_of(state.after);
        for (offset, data) in self.log.writes(self.applied..epoch.start.max(self.applied)) {
            self.durable.write(offset, data);
        }
        assert!(self.applied <= epoch.start, "states are out of order");
        self.applied = epoch.start;
        let file = self.durable.store(image);
        for (at, piece) in state.pieces(self.log, self.unit) {
            file.write_all_at(piece, at).unwrap();
        }
    }
}

/// The pieces of one write.
fn cut(mut at: u64, mut data: &[u8]) -> Vec<(u64, &[u8])> {
    let mut pieces = Vec::new();
    while !data.is_empty() {
        let (piece, rest) = data.split_at(data.len().min(PIECE - within(at)));
        pieces.push((at, piece));
        (at, data) = (at + piece.len() as u64, rest);
    }
    pieces
}

/// Where in its block of the device a byte is.
fn within(at: u64) -> usize {
    usize::try_from(at).unwrap() % PIECE
}
