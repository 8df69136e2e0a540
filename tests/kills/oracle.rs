//! What a directory must hold, known from outside it: from the lines of the jobs alone.

use std::collections::BTreeMap;
use std::path::Path;

use tch_checkpoint::catalog::{Order, find_checkpoints};
use tch_checkpoint::storage::LocalStorage;

use crate::job::{Ack, run};

/// Everything that was ever acknowledged.
#[derive(Debug, Default)]
pub struct Oracle {
    acks: BTreeMap<u64, String>,
    /// How many of the newest retention keeps.
    keep: u64,
}

impl Oracle {
    pub fn new(keep: u64) -> Self {
        Self { acks: BTreeMap::new(), keep }
    }

    pub fn hear(&mut self, acks: Vec<Ack>, what: &str) {
        for Ack { step, save_id } in acks {
            let before = self.acks.insert(step, save_id);
            assert_eq!(before, None, "{what}: step {step} was acknowledged twice");
        }
    }

    pub fn heard(&self) -> usize {
        self.acks.len()
    }

    /// Everything visible is whole, the newest is at least the last acknowledged one and loads,
    /// and of the acknowledged ones all are there that retention keeps.
    pub fn check(&self, dir: &Path, what: &str) {
        let Some(newest) = self.newest(dir, what) else {
            assert!(self.acks.is_empty(), "{what}: nothing is left of {:?}", self.acks);
            return;
        };
        let last = self.acks.last_key_value().map_or(0, |(step, _)| *step);
        assert!(newest.step >= last, "{what}: step {last} was acknowledged, {newest:?} is left");
        let loaded = run(dir, &["stress", "load", "--step", "latest"]);
        let text = String::from_utf8_lossy(&loaded.stdout);
        let line = text.split_inclusive('\n').next_back().unwrap_or_default();
        assert_eq!(Ack::parse(line, "LOADED"), Some(newest.clone()), "{what}: {loaded:?}");
        self.check_kept(dir, newest.step, what);
    }

    fn newest(&self, dir: &Path, what: &str) -> Option<Ack> {
        let verified = run(dir, &["verify", "--all"]);
        let text = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{what}: {verified:?}");
        let line = text.split_inclusive('\n').next_back().unwrap_or_default();
        let newest = Ack::parse(line, "LATEST");
        assert!(newest.is_some() || line == "LATEST none\n", "{what}: {verified:?}");
        newest
    }

    fn check_kept(&self, dir: &Path, newest: u64, what: &str) {
        let found = find_checkpoints(&LocalStorage::new(), dir, &Order::Latest).unwrap();
        let there: BTreeMap<u64, String> = found
            .iter()
            .filter(|info| info.is_committed())
            .map(|info| (info.step, info.save_id.unwrap().to_string()))
            .collect();
        for (step, save_id) in self.acks.range((newest + 1).saturating_sub(self.keep)..) {
            assert_eq!(there.get(step), Some(save_id), "{what}: step {step} of {there:?}");
        }
        let made = newest.min(self.keep) as usize;
        assert!(there.len() >= made, "{what}: {} of {made} are left: {there:?}", there.len());
    }
}
