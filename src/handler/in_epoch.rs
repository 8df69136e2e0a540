//! How far an epoch has come: what lets a checkpoint be saved, and resumed, in the middle of one.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::handler::{Feed, Model, NNHandler};
use crate::manifest::Manifest;
use crate::rank::Rank;
use crate::state::{StateDict, Value, Values};

const SAMPLES: &str = "trainer.samples";
const DATA: &str = "trainer.data";
const SECONDS: &str = "epoch.seconds";
const SUMS: &str = "epoch.sums.";

/// The epoch under way on this rank.
#[derive(Debug, Clone, Default)]
pub(super) struct InEpoch {
    /// Samples of its order that are done, over all ranks.
    pub(super) samples: usize,
    /// Sums over the samples of this rank.
    pub(super) sums: Sums,
    /// Seconds spent on it by earlier calls and runs.
    pub(super) seconds: f64,
    /// When this call began with it.
    pub(super) since: Option<Instant>,
    /// The data with which it began.
    pub(super) data: Option<DataFacts>,
}

/// What the order of samples depends on, besides seed and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DataFacts {
    samples: usize,
    shuffle: bool,
}

impl DataFacts {
    pub(super) fn of(feed: &Feed) -> Self {
        Self { samples: feed.dataset.len(), shuffle: feed.loader.shuffle }
    }
}

/// Per name a sum over samples, and how many they were.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sums(BTreeMap<String, [f64; 2]>);

impl Sums {
    /// Adds `samples` samples of this mean.
    pub(super) fn add(&mut self, name: &str, samples: usize, mean: f64) {
        let samples = samples as f64;
        match self.0.get_mut(name) {
            Some(entry) => *entry = [entry[0] + mean * samples, entry[1] + samples],
            None => _ = self.0.insert(name.to_owned(), [mean * samples, samples]),
        }
    }

    /// Sum and samples; zeros for a name without any.
    pub(super) fn get(&self, name: &str) -> [f64; 2] {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub(super) fn mean(&self, name: &str) -> f64 {
        let [sum, samples] = self.get(name);
        sum / samples
    }

    fn absorb(&mut self, other: Self) {
        for (name, [sum, samples]) in other.0 {
            let entry = self.0.entry(name).or_default();
            *entry = [entry[0] + sum, entry[1] + samples];
        }
    }
}

impl InEpoch {
    pub(super) fn seconds_until_now(&self) -> f64 {
        self.seconds + self.since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// Adds nothing at the boundary of an epoch but the position 0.
    pub(super) fn save(&self, state: &mut StateDict) -> Result<()> {
        let samples = i64::try_from(self.samples)
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "a count beyond 63 bits"))?;
        state.values.set(SAMPLES, samples);
        if self.samples == 0 {
            return Ok(());
        }
        if let Some(data) = &self.data {
            state.values.set(DATA, Value::json(data)?);
        }
        state.rank_values.set(SECONDS, self.seconds_until_now());
        for (name, entry) in &self.sums.0 {
            state.rank_values.set(format!("{SUMS}{name}"), entry.to_vec());
        }
        Ok(())
    }

    /// The position in a checkpoint as `rank` of `world_size` takes it up: its own sums where as
    /// many ranks go on as saved; else the coordinator takes those of all.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for values that no epoch has.
    pub(super) fn load(manifest: &Manifest, rank: Rank, same_world: bool) -> Result<Self> {
        let values = manifest.values();
        // Checkpoints of 0.1.0 are all at the boundary of an epoch, and do not say so.
        let samples = values.find(SAMPLES).map_or(Ok(0), |_| values.int(SAMPLES))?;
        let samples = usize::try_from(samples).map_err(|_| unfit(SAMPLES))?;
        let mut loaded = Self { samples, ..Self::default() };
        if samples == 0 {
            return Ok(loaded);
        }
        let data: DataFacts = values.json(DATA)?;
        if samples > data.samples {
            return Err(unfit(SAMPLES));
        }
        loaded.data = Some(data);
        for saved in manifest.world_size().ranks() {
            // A checkpoint that was written anew may have ranks that have saved nothing.
            let Some(own) = manifest.rank_values(saved).filter(|own| is_kept(manifest, own)) else {
                continue;
            };
            let (sums, seconds) = parse(own)?;
            if saved.is_coordinator() {
                loaded.seconds = seconds;
            }
            let takes = if same_world { saved == rank } else { rank.is_coordinator() };
            if takes {
                loaded.sums.absorb(sums);
            }
        }
        Ok(loaded)
    }
}

fn is_kept(manifest: &Manifest, own: &Values) -> bool {
    !own.is_empty() || !manifest.is_resharded()
}

fn parse(own: &Values) -> Result<(Sums, f64)> {
    let mut sums = Sums::default();
    for (name, value) in own.iter() {
        let Some(short) = name.strip_prefix(SUMS) else { continue };
        match value {
            Value::Floats(entry) => {
                let entry = <[f64; 2]>::try_from(entry.as_slice()).map_err(|_| unfit(name))?;
                sums.0.insert(short.to_owned(), entry);
            }
            _ => return Err(unfit(name)),
        }
    }
    Ok((sums, own.float(SECONDS)?))
}

fn unfit(name: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("value `{name}` is none that an epoch has"))
}

impl<M: Model> NNHandler<M> {
    /// Begins the epoch under way anew, from its first sample: after a load of a checkpoint that
    /// was saved inside an epoch, if the training data has changed. What was learned stays.
    ///
    /// Every rank must do the same before the next `train`.
    pub fn restart_epoch(&mut self) {
        self.in_epoch = InEpoch::default();
    }

    /// Samples of the epoch under way that are done, over all ranks; 0 between epochs.
    pub fn samples_in_epoch(&self) -> usize {
        self.in_epoch.samples
    }

    /// An epoch goes on only with the data with which it began: else some samples would come
    /// twice, and others never.
    pub(super) fn check_same_data(&self, feed: &Feed) -> Result<()> {
        let now = DataFacts::of(feed);
        let began = self.in_epoch.data.filter(|_| self.in_epoch.samples > 0);
        let Some(began) = began.filter(|began| *began != now) else { return Ok(()) };
        let message = format!(
            "the epoch under way began with {} samples (shuffle {}), the training data now has {} \
             (shuffle {})",
            began.samples, began.shuffle, now.samples, now.shuffle
        );
        Err(Error::new(ErrorKind::InvalidInput, message)
            .with_help("give the same data, or call `restart_epoch` to begin the epoch anew"))
    }
}
