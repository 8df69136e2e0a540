//! Loads of a damaged checkpoint: on one rank without threads, and on several.

use std::sync::{Arc, Mutex};

use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::LoadTargets;
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::tensor::Component;
use tch_checkpoint::{Error, ProcessGroup, Result};

use super::subject::{Subject, component};
use crate::harness::*;

/// What a destination holds before a load.
const BEFORE: u8 = 0xEE;

/// The destination of one rank: a live model, to be changed by a load that succeeds and by no other.
struct Place {
    boxes: Vec<(TestTensor, Slice)>,
    buffers: Vec<Vec<u8>>,
    before: Vec<Vec<u8>>,
    right: Vec<Vec<u8>>,
    rules: LoadRules,
}

/// Loads a subject again and again.
pub struct Loader {
    storage: MemoryStorage,
    at: String,
    solo: ProcessGroup,
    places: Arc<Vec<Mutex<Place>>>,
}

impl Loader {
    /// Of everything, on so many ranks.
    pub fn new(subject: &Subject, ranks: u32) -> Self {
        Self::of(subject, ranks, None)
    }

    /// Of the tensors of these components.
    pub fn of(subject: &Subject, ranks: u32, components: Option<Vec<Component>>) -> Self {
        let place = |rank| Mutex::new(Place::new(subject, rank, ranks, components.clone()));
        Self {
            storage: subject.storage.clone(),
            at: subject.at.clone(),
            solo: ProcessGroup::solo(),
            places: Arc::new((0..ranks).map(place).collect()),
        }
    }

    /// One load, strict and atomic, as is the default; the error is the same on all ranks.
    ///
    /// # Panics
    /// If a load that succeeds gives other bytes than were saved, or one that fails changes the
    /// destination.
    pub fn load(&self) -> Result<()> {
        if let [only] = &self.places[..] {
            return only.lock().unwrap().load(&self.solo, &self.storage, &self.at);
        }
        let (places, storage, at) = (self.places.clone(), self.storage.clone(), self.at.clone());
        let ranks = u32::try_from(places.len()).unwrap();
        let verdicts = on_ranks(ranks, move |group| {
            places[group.rank().index()].lock().unwrap().load(&group, &storage, &at)
        });
        if verdicts.iter().all(Result::is_ok) {
            return Ok(());
        }
        Err(one_error(&verdicts, "load"))
    }

    /// The error of a load that has to fail.
    pub fn fault(&self, what: impl Fn() -> String) -> Error {
        self.load().expect_err(&what())
    }
}

impl Place {
    fn new(subject: &Subject, rank: u32, n: u32, components: Option<Vec<Component>>) -> Self {
        let is_wanted = |t: &&TestTensor| {
            components.as_ref().is_none_or(|list| list.contains(&component(&t.name)))
        };
        let tensors = subject.recipe.tensors.iter().filter(is_wanted);
        let held = |t: &TestTensor| Some((t.clone(), t.held(rank.into(), n.into())?));
        let boxes: Vec<(TestTensor, Slice)> = tensors.filter_map(held).collect();
        let right = |(t, slice): &(TestTensor, Slice)| {
            content(&t.name, &t.spec, slice, subject.recipe.content)
        };
        let right: Vec<Vec<u8>> = boxes.iter().map(right).collect();
        let before: Vec<Vec<u8>> = right.iter().map(|bytes| vec![BEFORE; bytes.len()]).collect();
        let rules = LoadRules { components, ..LoadRules::default() };
        Self { boxes, buffers: before.clone(), before, right, rules }
    }

    fn load(&mut self, group: &ProcessGroup, storage: &MemoryStorage, at: &str) -> Result<()> {
        let mut targets = LoadTargets::new();
        for ((tensor, slice), buffer) in self.boxes.iter().zip(&mut self.buffers) {
            let (name, spec) = (name(&tensor.name), tensor.spec.clone());
            let sink = Box::new(buffer.as_mut_slice());
            targets.add_slice(name, spec, slice.clone(), sink).unwrap();
        }
        let done = load(group, storage, &wanted(at), &mut targets, &self.rules, Atomicity::Atomic);
        drop(targets);
        match done {
            Ok(_) => {
                assert!(self.buffers == self.right, "wrong bytes were loaded");
                self.buffers.clone_from(&self.before);
                Ok(())
            }
            Err(error) => {
                assert!(self.buffers == self.before, "a failed load changed its destination");
                Err(error)
            }
        }
    }
}
