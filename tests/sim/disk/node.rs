//! What is on the disk, and what is only in memory yet.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Number of a file or directory.
pub type Id = usize;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory(Id),
    File(Id),
    Link(String),
}

/// A file: what reads see, and what a power cut would leave to choose from.
#[derive(Debug, Clone, Default)]
pub struct File {
    pub bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that were written since the last fsync.
    dirty: BTreeSet<usize>,
    /// How many writes the disk had seen when the last name went; its blocks are free since.
    pub freed_at: Option<u64>,
}

impl File {
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..=(end.max(1) - 1) / SECTOR);
    }

    /// Writes what is dirty; what a failed fsync has lost is not.
    pub fn sync(&mut self) {
        self.durable.resize(self.bytes.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let begin = sector * SECTOR;
            let end = (begin + SECTOR).min(self.bytes.len());
            self.durable[begin..end].copy_from_slice(&self.bytes[begin..end]);
        }
    }

    /// What a failed fsync does: some of it is written, and the rest is marked as if it were.
    pub fn sync_badly(&mut self, rng: &mut Rng) {
        self.durable = self.survivor(rng);
        self.dirty.clear();
    }

    /// Any subset of the dirty sectors, and any length between the old one and the new one.
    pub fn survivor(&self, rng: &mut Rng) -> Vec<u8> {
        if self.dirty.is_empty() {
            return self.durable.clone();
        }
        let (old, new) = (self.durable.len(), self.bytes.len());
        let len = match rng.below(4) {
            0 => old,
            1 => old.min(new) + rng.index(old.abs_diff(new) + 1),
            _ => new,
        };
        let mut left = self.durable.clone();
        left.resize(len, 0);
        let survives = rng.pick(&[0, 50, 90, 100]);
        for sector in &self.dirty {
            let begin = sector * SECTOR;
            let end = (begin + SECTOR).min(len).min(new);
            if begin < end && rng.percent(survives) {
                left[begin..end].copy_from_slice(&self.bytes[begin..end]);
            }
        }
        left
    }

    /// The file as it is once the power is back.
    pub fn after_cut(&self, rng: &mut Rng) -> Self {
        let durable = self.survivor(rng);
        Self { bytes: durable.clone(), durable, ..Self::default() }
    }

    /// Some of its blocks now hold what was written to another file.
    pub fn overwrite_by(&mut self, other: &[u8], rng: &mut Rng) {
        for (nth, sector) in self.bytes.chunks_mut(SECTOR).enumerate() {
            let from = other.get(nth * SECTOR..).unwrap_or_default();
            let len = from.len().min(sector.len());
            if rng.one_in(2) {
                sector[..len].copy_from_slice(&from[..len]);
            }
        }
        self.durable.clone_from(&self.bytes);
    }
}

/// What one operation did to names of a directory: all of it survives, or nothing.
pub type Change = Vec<(String, Option<Entry>)>;

/// A directory: the names that are seen, and those that are durable.
#[derive(Debug, Clone, Default)]
pub struct Dir {
    pub entries: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    /// In order, since the last fsync.
    pending: Vec<Change>,
    pub is_removed: bool,
}

impl Dir {
    pub fn apply(&mut self, change: Change) {
        set(&mut self.entries, &change);
        self.pending.push(change);
    }

    pub fn sync(&mut self) {
        if !self.pending.is_empty() {
            self.durable.clone_from(&self.entries);
            self.pending.clear();
        }
    }

    /// Any subset of what was done since the last fsync in which nothing is without what was done
    /// to the same names before it.
    pub fn after_cut(&self, rng: &mut Rng) -> Self {
        let mut entries = self.durable.clone();
        let survives = rng.pick(&[0, 50, 80, 100]);
        let mut lost: Vec<&str> = Vec::new();
        for change in &self.pending {
            let depends = change.iter().any(|(name, _)| lost.contains(&name.as_str()));
            if !depends && rng.percent(survives) {
                set(&mut entries, change);
            } else {
                lost.extend(change.iter().map(|(name, _)| name.as_str()));
            }
        }
        Self { durable: entries.clone(), entries, ..Self::default() }
    }
}

fn set(entries: &mut BTreeMap<String, Entry>, change: &Change) {
    for (name, entry) in change {
        match entry {
            Some(entry) => drop(entries.insert(name.clone(), entry.clone())),
            None => drop(entries.remove(name)),
        }
    }
}
