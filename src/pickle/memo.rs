//! Where a pickle keeps what it comes back to.

use std::collections::HashMap;

use super::Id;

/// What was memorized: as a rule at places from zero on, one after the other.
#[derive(Default)]
pub(super) struct Memo {
    first: Vec<Id>,
    others: HashMap<u64, Id>,
}

impl Memo {
    pub(super) fn count(&self) -> u64 {
        (self.first.len() + self.others.len()) as u64
    }

    pub(super) fn get(&self, place: u64) -> Option<Id> {
        let first = usize::try_from(place).ok().and_then(|place| self.first.get(place));
        first.or_else(|| self.others.get(&place)).copied()
    }

    pub(super) fn insert(&mut self, place: u64, id: Id) {
        let count = self.first.len();
        match usize::try_from(place).ok().filter(|place| *place <= count) {
            Some(place) if place == count && !self.others.contains_key(&(place as u64)) => {
                self.first.push(id);
            }
            Some(place) if place < count => {
                if let Some(own) = self.first.get_mut(place) {
                    *own = id;
                }
            }
            _ => drop(self.others.insert(place, id)),
        }
    }
}
