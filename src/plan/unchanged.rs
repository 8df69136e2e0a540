//! Which components of an earlier checkpoint could be those of a new one: pure, by names, specs
//! and boxes. Whether their bytes are the same is for [`save`](crate::save) to find out.

mod earlier;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub(crate) use self::earlier::{CHECKPOINTS_MAX, EarlierSaves, Seen};
use super::{LocalPlan, PlannedPiece};
use crate::layout::DataFileName;
use crate::manifest::{
    BLOCK_BYTES, DataFile, Form, Manifest, OtherFile, Piece, TensorRecord, sums_of,
};
use crate::rank::{Rank, WorldSize};
use crate::slice::Slice;
use crate::state::{StateDict, TensorEntry};
use crate::tensor::{Component, TensorName};

/// A component of a committed checkpoint with all of its files, which become those of another
/// checkpoint as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkedComponent {
    /// Which one.
    pub component: Component,
    /// Its data files; tensors refer to them by index.
    pub data_files: Vec<DataFile>,
    /// The sums files of these; data files refer to them by index. They may hold the sums of other
    /// components too.
    pub sums_files: Vec<OtherFile>,
    /// Its tensors, by name.
    pub tensors: Vec<TensorRecord>,
    /// Second names of these.
    pub aliases: Vec<(TensorName, TensorName)>,
}

/// A piece of a linked component, of which one rank says whether its bytes are still the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkedPiece<'a> {
    pub(crate) tensor: &'a TensorRecord,
    pub(crate) piece: &'a Piece,
    /// Who says so.
    pub(crate) judge: Rank,
}

impl LinkedComponent {
    /// What `manifest` has of `component`; `None` if that is nothing, or in a form that cannot be
    /// taken over: blocks of another size, or no files of its own.
    pub(crate) fn of(manifest: &Manifest, component: &Component) -> Option<Self> {
        if *manifest.form() != Form::Directory || manifest.block_bytes() != BLOCK_BYTES {
            return None;
        }
        let (mut files, mut sums) = (BTreeMap::new(), BTreeMap::new());
        let (mut data_files, mut sums_files) = (Vec::new(), Vec::new());
        for (old, file) in (0u32..).zip(manifest.data_files()) {
            if file.component != *component {
                continue;
            }
            let listed = manifest.sums_files().get(file.sums_file as usize)?;
            let sums_file = *sums.entry(file.sums_file).or_insert_with(|| {
                sums_files.push(listed.clone());
                short(sums_files.len() - 1)
            });
            files.insert(old, short(data_files.len()));
            data_files.push(DataFile { sums_file, ..file.clone() });
        }
        let mut tensors: Vec<TensorRecord> =
            manifest.tensors().iter().filter(|t| t.component == *component).cloned().collect();
        for piece in tensors.iter_mut().flat_map(|tensor| &mut tensor.pieces) {
            piece.file = *files.get(&piece.file)?;
        }
        let names: BTreeSet<&TensorName> = tensors.iter().map(|tensor| &tensor.name).collect();
        let aliases = manifest.aliases().iter().filter(|(_, target)| names.contains(target));
        let aliases = aliases.cloned().collect();
        let component = component.clone();
        (!data_files.is_empty()).then_some(Self {
            component,
            data_files,
            sums_files,
            tensors,
            aliases,
        })
    }

    /// The same with what is not sent: where block sums lie follows from the pieces.
    #[must_use]
    pub(crate) fn received(mut self) -> Self {
        let mut places: Vec<(u32, u64, u64, usize, usize)> = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let pieces = tensor.pieces.iter().enumerate();
            places.extend(pieces.map(|(number, piece)| {
                (piece.file, piece.begin, tensor.piece_bytes(piece), index, number)
            }));
        }
        places.sort_unstable();
        let mut counts = vec![0; self.data_files.len()];
        for (file, _, bytes, tensor, piece) in places {
            let Some(count) = counts.get_mut(file as usize) else { continue };
            let tensor = self.tensors.get_mut(tensor);
            if let Some(piece) = tensor.and_then(|tensor| tensor.pieces.get_mut(piece)) {
                piece.first_sum = *count;
            }
            *count += sums_of(bytes);
        }
        for (file, count) in self.data_files.iter_mut().zip(counts) {
            file.sums_count = count;
        }
        self
    }

    /// Bytes of its data files.
    pub(crate) fn bytes(&self) -> u64 {
        self.data_files.iter().map(|file| file.len).sum()
    }

    /// Every file of it that a checkpoint needs, with its length.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        let sums = self.sums_files.iter().map(|file| file.name.as_str());
        self.data_files.iter().map(|file| file.name.as_str()).chain(sums)
    }

    /// Its pieces, each with the rank of a job of `world` that judges it: the one of the number
    /// that wrote it, or, in a world of another size, one after the other.
    pub(crate) fn pieces(&self, world: WorldSize) -> Vec<LinkedPiece<'_>> {
        let writers: Vec<Option<Rank>> =
            self.data_files.iter().map(|file| writer_in(&file.name, world)).collect();
        let mut next = 0;
        let all = self.tensors.iter().flat_map(|t| t.pieces.iter().map(move |piece| (t, piece)));
        all.map(|(tensor, piece)| {
            let writer = writers.get(piece.file as usize).copied().flatten();
            next = (next + 1) % world.get();
            let judge = writer.unwrap_or(Rank::new(next));
            LinkedPiece { tensor, piece, judge }
        })
        .collect()
    }

    /// Whether `state` has nothing of this component but what is here, and nothing of the tensors
    /// here that is otherwise. (That nothing is here which no rank has is for those to see who
    /// judge pieces.)
    pub(crate) fn could_hold(&self, state: &StateDict) -> bool {
        let known = |name: &TensorName| {
            let place = self.tensors.binary_search_by(|t| t.name.cmp(name)).ok();
            place.and_then(|index| self.tensors.get(index))
        };
        let mut held = state.tensors();
        let fits = held.all(|(name, boxes)| match (known(name), boxes.first()) {
            (Some(tensor), Some(entry)) => {
                entry.component == self.component && entry.spec == tensor.spec
            }
            (None, Some(entry)) => entry.component != self.component,
            (_, None) => true,
        });
        let aliases = state.aliases().iter().filter(|(_, target)| known(target).is_some());
        fits && aliases.eq(self.aliases.iter().map(|(alias, target)| (alias, target)))
    }
}

/// The rank that wrote a file, if as many ranks did as there are now.
fn writer_in(name: &str, world: WorldSize) -> Option<Rank> {
    let name = DataFileName::parse(name)?;
    (name.world_size == world).then_some(name.rank)
}

fn short(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl LinkedPiece<'_> {
    /// The piece as part of a box that `boxes` has; `None` if it lies in none of them.
    pub(crate) fn planned(&self, boxes: &[TensorEntry]) -> Option<PlannedPiece> {
        let slice = &self.piece.slice;
        let holds = |held: &Slice| held.intersect(slice).as_ref() == Some(slice);
        let entry = boxes.iter().find(|entry| {
            entry.spec == self.tensor.spec && (entry.slice == *slice || holds(&entry.slice))
        })?;
        Some(PlannedPiece {
            name: self.tensor.name.clone(),
            spec: self.tensor.spec.clone(),
            held: entry.slice.clone(),
            slice: slice.clone(),
        })
    }
}

impl LocalPlan {
    /// The same without what is linked.
    #[must_use]
    pub(crate) fn without(mut self, linked: &[LinkedComponent]) -> Self {
        if linked.is_empty() {
            return self;
        }
        let components: BTreeSet<&Component> = linked.iter().map(|part| &part.component).collect();
        let aliases = linked.iter().flat_map(|part| &part.aliases);
        let aliases: BTreeSet<&TensorName> = aliases.map(|(alias, _)| alias).collect();
        self.items.retain(|item| !components.contains(&item.component));
        self.aliases.retain(|(alias, _)| !aliases.contains(alias));
        self
    }
}
