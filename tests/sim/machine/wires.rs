//! What is on its way between ranks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tch_checkpoint::simulation::Parcel;

use crate::rng::Rng;

/// Something that arrives at a rank.
pub enum Arrival {
    Parcel(Parcel),
    /// The connection to that rank is gone.
    Lost(usize),
}

/// One direction between two ranks; what is sent keeps its order.
#[derive(Default)]
struct Wire {
    queue: VecDeque<(Duration, Arrival)>,
    is_cut: bool,
}

/// All wires, by sender and receiver.
#[derive(Default)]
pub struct Wires(BTreeMap<(usize, usize), Wire>);

impl Wires {
    /// Puts `arrival` on the wire, to be there after `delay` at the earliest.
    pub fn send(
        &mut self,
        from: usize,
        to: usize,
        arrival: Arrival,
        now: Duration,
        delay: Duration,
    ) {
        let wire = self.0.entry((from, to)).or_default();
        if wire.is_cut {
            return;
        }
        wire.is_cut = matches!(arrival, Arrival::Lost(_));
        let earliest = wire.queue.back().map_or(Duration::ZERO, |(at, _)| *at);
        wire.queue.push_back((earliest.max(now + delay), arrival));
    }

    /// Loses what is on the wire; what is sent later is lost too.
    pub fn cut(&mut self, from: usize, to: usize, now: Duration, noticed: Duration) {
        let wire = self.0.entry((from, to)).or_default();
        if !wire.is_cut {
            wire.queue.clear();
            self.send(from, to, Arrival::Lost(from), now, noticed);
        }
    }

    /// The process `rank` is gone: its connections close, at once or after what it has sent.
    pub fn close_all(&mut self, rank: usize, ranks: usize, now: Duration, rng: &mut Rng) {
        let keeps = !rng.one_in(3);
        for peer in 0..ranks {
            if peer == rank || (rank != 0 && peer != 0) {
                continue;
            }
            let delay = Duration::from_micros(rng.below(1000));
            if keeps {
                self.send(rank, peer, Arrival::Lost(rank), now, delay);
            } else {
                self.cut(rank, peer, now, delay);
            }
        }
    }

    /// The wires on which something has arrived.
    pub fn arrived(&self, now: Duration) -> impl Iterator<Item = (usize, usize)> {
        let is_there = move |wire: &Wire| wire.queue.front().is_some_and(|(at, _)| *at <= now);
        self.0.iter().filter(move |(_, wire)| is_there(wire)).map(|(ends, _)| *ends)
    }

    /// When the next thing arrives.
    pub fn next(&self) -> Option<Duration> {
        self.0.values().filter_map(|wire| wire.queue.front()).map(|(at, _)| *at).min()
    }

    pub fn take(&mut self, ends: (usize, usize)) -> Option<Arrival> {
        self.0.get_mut(&ends)?.queue.pop_front().map(|(_, arrival)| arrival)
    }
}
