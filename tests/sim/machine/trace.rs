//! Everything that happens, as a hash, and as text if somebody wants to read it.

use std::fmt::Display;
use std::time::Duration;

use tch_checkpoint::simulation::Parcel;

use super::Turn;
use super::faults::Fault;

#[derive(Debug)]
pub struct Trace {
    hash: u64,
    is_shown: bool,
}

impl Trace {
    pub fn new(is_shown: bool) -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, is_shown }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix_number(u64::from_le_bytes(word));
        }
    }

    fn mix_number(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
    }

    fn mix_moment(&mut self, now: Duration, rank: Option<usize>, what: &str) {
        self.mix_number(now.as_nanos() as u64 ^ (rank.map_or(99, |rank| rank as u64) << 56));
        self.mix(what.as_bytes());
    }

    fn show(&self, now: Duration, rank: Option<usize>, text: impl Display) {
        let rank = rank.map_or("--".to_owned(), |rank| format!("r{rank}"));
        eprintln!("{:>12.6} {rank} {text}", now.as_secs_f64());
    }

    pub fn note(&mut self, now: Duration, rank: Option<usize>, what: &str, detail: &str) {
        self.mix_moment(now, rank, what);
        self.mix(detail.as_bytes());
        if self.is_shown {
            self.show(now, rank, format_args!("{what} {detail}"));
        }
    }

    pub fn operation(
        &mut self,
        now: Duration,
        rank: usize,
        what: &str,
        path: &str,
        name: &str,
        turn: Turn,
    ) {
        self.mix_moment(now, Some(rank), what);
        self.mix(path.as_bytes());
        self.mix(name.as_bytes());
        self.mix_number(u64::from(turn == Turn::Does));
        if self.is_shown {
            let how = if turn == Turn::Does { String::new() } else { format!(" {turn:?}") };
            self.show(now, Some(rank), format_args!("{what} {path} {name}{how}"));
        }
    }

    pub fn parcel(&mut self, now: Duration, from: usize, to: usize, what: &str, parcel: &Parcel) {
        self.mix_moment(now, Some(from), what);
        self.mix_number(to as u64);
        if self.is_shown {
            self.show(now, Some(from), format_args!("{what} {parcel}"));
        }
    }

    pub fn fault(&mut self, now: Duration, rank: Option<usize>, fault: &Fault) {
        self.mix_moment(now, rank, "fault");
        if self.is_shown {
            self.show(now, rank, format_args!("*** {fault:?}"));
        }
    }
}
