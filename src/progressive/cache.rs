//! What a frozen trunk gave for batches, so that it is not computed again.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::truncated;
use crate::memory::zeroed;
use crate::state::{LoadTargets, StateDict, Stateful, TensorSource, Value, Values};
use crate::tensor::{Component, TensorName, TensorSpec};
use crate::torch::{TchSink, TchSource, kind_of, spec_of, torch_error};

/// Most entries: of each a name is stored.
const ENTRIES_MAX: usize = 1 << 16;

/// Outputs of a frozen trunk by batch, the least recently used going first, bounded in bytes.
///
/// An entry belongs to a trunk, known by the hash of everything that decides its output: for
/// another trunk the cache is empty. It is saved with a run, each rank's entries by that rank.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_checkpoint::progressive::ActivationCache;
///
/// let (trunk, batch) = ([7; 16], Tensor::from_slice(&[1i64, 2, 3]));
/// let mut cache = ActivationCache::new(1 << 20);
/// assert!(cache.get(trunk, &batch)?.is_none());
/// cache.put(trunk, &batch, &Tensor::ones([3, 4], (Kind::Float, Device::Cpu)))?;
/// assert!(cache.get(trunk, &batch)?.is_some());
/// assert!(cache.get([8; 16], &batch)?.is_none());
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug)]
pub struct ActivationCache {
    max_bytes: u64,
    trunk: Option<[u8; 16]>,
    /// The least recently used first.
    entries: Vec<Entry>,
    bytes: u64,
    /// What a load is about to bring: kept apart until every byte of it is in place.
    incoming: Option<Incoming>,
    hits: u64,
    misses: u64,
}

/// Entries of one trunk that a load fills.
#[derive(Debug)]
struct Incoming {
    trunk: [u8; 16],
    entries: Vec<Entry>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    /// Hash of the batch.
    batch: [u8; 16],
    output: Tensor,
    bytes: u64,
}

/// What is stored of an entry besides its tensor.
#[derive(Serialize, Deserialize)]
struct Stored {
    batch: String,
    spec: TensorSpec,
}

/// What is stored of all of them.
#[derive(Serialize, Deserialize)]
struct Index {
    trunk: String,
    entries: Vec<Stored>,
}

impl Stored {
    /// An entry to be filled.
    fn empty(&self) -> Result<Entry> {
        let shape: Vec<i64> =
            self.spec.shape().iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
        let kind = kind_of(self.spec.dtype()).map_err(|_| unfit("an unknown dtype"))?;
        let output = Tensor::f_empty(&shape, (kind, Device::Cpu));
        let output = output.map_err(|e| torch_error("making room for an activation", &e))?;
        Ok(Entry { batch: unhex(&self.batch)?, output, bytes: self.spec.size_bytes() })
    }
}

impl ActivationCache {
    /// Keeps at most so many bytes; 0 keeps nothing.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        let (entries, bytes, incoming) = (Vec::new(), 0, None);
        Self { max_bytes, trunk: None, entries, bytes, incoming, hits: 0, misses: 0 }
    }

    /// Whether it keeps anything at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.max_bytes > 0
    }

    /// How many outputs it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the outputs that it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How often it had what was asked for, and how often not.
    #[must_use]
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    /// The trunk of its entries.
    #[must_use]
    pub fn trunk(&self) -> Option<[u8; 16]> {
        self.trunk
    }

    /// Drops what it has of another trunk. Whether it had something of another one.
    pub fn expect(&mut self, trunk: [u8; 16]) -> bool {
        if self.trunk == Some(trunk) {
            return false;
        }
        let had = !self.entries.is_empty();
        (self.trunk, self.bytes) = (Some(trunk), 0);
        self.entries.clear();
        had
    }

    /// What `trunk` gave for `batch`, if that is kept.
    ///
    /// # Errors
    /// Those of reading the batch.
    pub fn get(&mut self, trunk: [u8; 16], batch: &Tensor) -> Result<Option<Tensor>> {
        if !self.is_on() {
            return Ok(None);
        }
        self.expect(trunk);
        let batch = hash_of(batch)?;
        let Some(found) = self.entries.iter().position(|entry| entry.batch == batch) else {
            self.misses += 1;
            return Ok(None);
        };
        self.hits += 1;
        let entry = self.entries.remove(found);
        let output = entry.output.shallow_clone();
        self.entries.push(entry);
        Ok(Some(output))
    }

    /// Keeps what `trunk` gave for `batch`, unless it alone is more than may be kept.
    ///
    /// # Errors
    /// Those of reading the batch; [`ErrorKind::Unsupported`] for an output that cannot be stored.
    pub fn put(&mut self, trunk: [u8; 16], batch: &Tensor, output: &Tensor) -> Result<()> {
        let bytes = spec_of(output)?.size_bytes();
        if bytes > self.max_bytes || !self.is_on() {
            return Ok(());
        }
        self.expect(trunk);
        let batch = hash_of(batch)?;
        if let Some(known) = self.entries.iter().position(|entry| entry.batch == batch) {
            self.bytes -= self.entries.remove(known).bytes;
        }
        // Contiguous, so that it is stored and loaded as it is.
        let output = output.detach().f_contiguous();
        let output = output.map_err(|e| torch_error("keeping an activation", &e))?;
        self.entries.push(Entry { batch, output, bytes });
        self.bytes += bytes;
        let mut gone = 0;
        while self.bytes > self.max_bytes || self.entries.len() - gone > ENTRIES_MAX {
            let Some(entry) = self.entries.get(gone) else { break };
            self.bytes -= entry.bytes;
            gone += 1;
        }
        self.entries.drain(..gone);
        Ok(())
    }

    fn index(&self) -> Result<Index> {
        let stored =
            |entry: &Entry| Ok(Stored { batch: hex(&entry.batch), spec: spec_of(&entry.output)? });
        let entries = self.entries.iter().map(stored).collect::<Result<_>>()?;
        Ok(Index { trunk: self.trunk.map(|trunk| hex(&trunk)).unwrap_or_default(), entries })
    }
}

/// Of kind, shape and every bit.
fn hash_of(batch: &Tensor) -> Result<[u8; 16]> {
    let contiguous = batch.f_contiguous().map_err(|e| torch_error("reading a batch", &e))?;
    let source = TchSource::new(&contiguous)?;
    let mut hasher = blake3::Hasher::new_derive_key("tch-checkpoint 2026 batch of a cache");
    hasher.update(source.spec().to_string().as_bytes());
    if let Some(bytes) = source.bytes() {
        hasher.update(bytes);
    } else {
        let mut bytes = zeroed(source.spec().size_bytes())?;
        source.read_into(0, &mut bytes)?;
        hasher.update(&bytes);
    }
    Ok(truncated(&hasher.finalize()))
}

fn hex(bytes: &[u8; 16]) -> String {
    crate::layout::SaveId::from_bytes(*bytes).to_string()
}

fn unhex(text: &str) -> Result<[u8; 16]> {
    let id = crate::layout::SaveId::parse(text);
    id.map(|id| *id.as_bytes()).map_err(|_| unfit("a hash that is none"))
}

fn unfit(what: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("the stored activations have {what}"))
}

/// Of each batch and trunk a name of its own, so that ranks have the same name for the same output
/// only.
fn name_of(prefix: &str, trunk: &str, batch: &str) -> Result<TensorName> {
    TensorName::new(format!("{prefix}.{trunk}.{batch}"))
}

fn index_name(prefix: &str) -> String {
    format!("{prefix}.index")
}

impl Stateful for ActivationCache {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        let index = self.index()?;
        let component = Component::cache();
        for (entry, stored) in self.entries.iter().zip(&index.entries) {
            let source = TchSource::new(&entry.output)?;
            let name = name_of(prefix, &index.trunk, &stored.batch)?;
            state.add(&component, name, stored.spec.clone(), std::sync::Arc::new(source))?;
        }
        state.rank_values.set(index_name(prefix), Value::json(&index)?);
        Ok(())
    }

    /// Makes room for what is stored of this rank, as far as it may be kept.
    fn prepare(&mut self, prefix: &str, _values: &Values, own: &Values) -> Result<()> {
        self.incoming = None;
        if own.find(&index_name(prefix)).is_none() || !self.is_on() {
            return Ok(());
        }
        let index: Index = own.json(&index_name(prefix))?;
        if index.entries.is_empty() {
            return Ok(());
        }
        if index.entries.len() > ENTRIES_MAX {
            return Err(unfit("too many entries"));
        }
        let (mut entries, mut bytes) = (Vec::new(), 0u64);
        // The most recently used are the last ones.
        for stored in index.entries.iter().rev() {
            let sum = bytes.saturating_add(stored.spec.size_bytes());
            if sum > self.max_bytes {
                break;
            }
            bytes = sum;
            entries.push(stored.empty()?);
        }
        entries.reverse();
        self.incoming = Some(Incoming { trunk: unhex(&index.trunk)?, entries, bytes });
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        let Some(Incoming { trunk, entries, .. }) = &self.incoming else { return Ok(()) };
        let trunk = hex(trunk);
        for entry in entries {
            let sink = TchSink::new(&entry.output)?;
            let name = name_of(prefix, &trunk, &hex(&entry.batch))?;
            targets.add(name, sink.spec().clone(), Box::new(sink))?;
        }
        Ok(())
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        (self.trunk, self.bytes) = (None, 0);
        self.entries.clear();
        if let Some(Incoming { trunk, entries, bytes }) = self.incoming.take() {
            (self.trunk, self.entries, self.bytes) = (Some(trunk), entries, bytes);
        }
        Ok(())
    }
}
