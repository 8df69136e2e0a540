//! Tensors that are read a few MiB at a time, without a destination.

use std::collections::{BTreeSet, VecDeque};

use super::place::read_boxes;
use crate::catalog::Found;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Manifest, TensorRecord};
use crate::nearest::nearest;
use crate::plan::load::{LoadRules, WantedBox, list, plan_load};
use crate::shard::ShardReader;
use crate::slice::{Parts, Slice};

/// Most bytes of a tensor that are read at once.
pub(crate) const PART_BYTES: u64 = 8 << 20;
/// Of how many data files block sums are kept: 1 MiB for each GiB.
const SUMS_KEPT: usize = 8;
/// How many names are proposed for one that is not there.
const PROPOSED: usize = 3;

/// Reads boxes of tensors of one checkpoint, verified; needs memory for these alone.
pub(crate) struct PartReader<'f> {
    manifest: &'f Manifest,
    reader: ShardReader,
    /// Data files whose headers were verified.
    verified: BTreeSet<u32>,
    /// Data files whose block sums are in memory, the longest unused first.
    recent: VecDeque<u32>,
}

impl<'f> PartReader<'f> {
    /// # Errors
    /// As [`ShardReader::check_lengths`].
    pub(crate) fn open(found: &'f Found) -> Result<Self> {
        let reader = ShardReader::of(found.dir.clone(), &found.manifest);
        reader.check_lengths()?;
        let (verified, recent) = (BTreeSet::new(), VecDeque::new());
        Ok(Self { manifest: &found.manifest, reader, verified, recent })
    }

    /// The reader beneath.
    pub(crate) fn shards(&self) -> &ShardReader {
        &self.reader
    }

    /// The bytes of these boxes, row-major and little-endian.
    ///
    /// # Errors
    /// As [`ShardReader::read_range`].
    pub(crate) fn read(&mut self, boxes: &[(&TensorRecord, Slice)]) -> Result<Vec<Vec<u8>>> {
        let wanted = boxes.iter().map(|(tensor, part)| {
            WantedBox::new(tensor.name.clone(), tensor.spec.clone(), part.clone())
        });
        let wanted = wanted.collect::<Result<Vec<_>>>()?;
        let rules =
            LoadRules { strict: false, components: Some(Vec::new()), ..LoadRules::default() };
        let (plan, _) = plan_load(self.manifest, &wanted, &rules);
        for reads in &plan.reads {
            if self.verified.insert(reads.file) {
                self.reader.verify_header(index(reads.file))?;
            }
        }
        let read = read_boxes(&self.reader, &plan, &wanted)?;
        self.used(plan.reads.iter().map(|reads| reads.file));
        Ok(read)
    }

    /// Gives back the block sums of files that were used long ago.
    pub(crate) fn used(&mut self, files: impl Iterator<Item = u32>) {
        for file in files {
            self.recent.retain(|recent| *recent != file);
            self.recent.push_back(file);
        }
        while self.recent.len() > SUMS_KEPT {
            let oldest = self.recent.pop_front().map(index);
            oldest.into_iter().for_each(|oldest| self.reader.forget_sums(oldest));
        }
    }
}

fn index(file: u32) -> usize {
    usize::try_from(file).unwrap_or(usize::MAX)
}

/// Hands the bytes of one whole tensor, by its name or an alias, to `visit`: verified, row-major
/// and little-endian, in parts of whole elements and at most 8 MiB, which is all the memory that it
/// takes. For tensors of any size; [`read_tensor`](super::read_tensor) is for those that fit.
///
/// Not collective: one process looks.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such tensor, with the names that are near;
/// [`ErrorKind::Corrupt`] with path, tensor and offset; [`ErrorKind::Storage`]; that of `visit`.
pub fn visit_tensor(
    found: &Found,
    name: &str,
    visit: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let record = named(&found.manifest, name)?;
    let mut reader = PartReader::open(found)?;
    for part in Parts::of(&record.spec).of_at_most(PART_BYTES) {
        let read = reader.read(&[(record, part)]).map_err(|e| e.with_tensor(name))?;
        read.iter().try_for_each(|bytes| visit(bytes))?;
    }
    Ok(())
}

/// # Errors
/// [`ErrorKind::NotFound`], with the names that are near.
pub(crate) fn named<'m>(manifest: &'m Manifest, name: &str) -> Result<&'m TensorRecord> {
    manifest.tensor(name).ok_or_else(|| {
        let mut text = String::from("no such tensor in the checkpoint");
        let near = near(manifest, name);
        let error = |text| Error::new(ErrorKind::NotFound, text).with_tensor(name);
        if near.is_empty() {
            let names: Vec<_> = manifest.tensors().iter().map(|tensor| &tensor.name).collect();
            list(&mut text, "stored", &names);
            return error(text);
        }
        error(text).with_help(format!("did you mean `{}`?", near.join("`, `")))
    })
}

/// Names that were probably meant: the nearest by its letters, then those that end alike, then those
/// that hold it.
fn near<'m>(manifest: &'m Manifest, name: &str) -> Vec<&'m str> {
    let stored = manifest.tensors().iter().map(|tensor| tensor.name.as_str());
    let aliases = manifest.aliases().iter().map(|(alias, _)| alias.as_str());
    let all = || stored.clone().chain(aliases.clone());
    let ends = |known: &&str| known.ends_with(&format!(".{name}"));
    let holds = |known: &&str| !name.is_empty() && known.contains(name);
    let mut near: Vec<&str> = nearest(name, all()).into_iter().collect();
    for known in all().filter(ends).chain(all().filter(holds)) {
        if near.len() >= PROPOSED {
            break;
        }
        if !near.contains(&known) {
            near.push(known);
        }
    }
    near
}
