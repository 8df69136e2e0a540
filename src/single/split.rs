//! Splitting one file into files of its components.

use std::sync::Arc;

use crate::catalog::{CheckpointPath, Found, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::manifest::{Form, Manifest, SealInfo, TensorRecord, place_in};
use crate::plan::save::MergedPlan;
use crate::plan::{PlannedFile, PlannedPiece, SavePlan, SaveTarget};
use crate::save::{Checkpoint, Timing};
use crate::shard::{PieceAt, ShardReader};
use crate::single::save::{Coordinator, Receipt, by_component, write};
use crate::slice::Slice;
use crate::space::Margin;
use crate::state::{StateDict, TensorSource, Values};
use crate::storage::Storage;
use crate::sweep::Pace;
use crate::tensor::Component;

/// Splits a file that [`save_single_file`](super::save_single_file) wrote into files of its
/// components beside it, as [`save_multi_files`](super::save_multi_files) would have written them;
/// `components` chooses some, by default all. Every block is verified on its way; at most a few
/// buffers are held. The file itself stays.
///
/// Not collective: one process does it.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such file, or no such component in it;
/// [`ErrorKind::AlreadyExists`] if one of the new files exists; [`ErrorKind::Corrupt`] for damage;
/// [`ErrorKind::Storage`]. No new file is visible then.
pub fn save_multi_from_single(
    storage: &dyn Storage,
    path: &CheckpointPath,
    components: Option<&[Component]>,
) -> Result<Checkpoint> {
    let group = ProcessGroup::solo();
    let found = crate::catalog::find(storage, &Wanted::from(path.clone()))?;
    let (manifest, [_]) = (&found.manifest, found.manifest.data_files()) else {
        return Err(no_single(&found));
    };
    if *manifest.form() == Form::Directory {
        return Err(no_single(&found));
    }
    let mut timing = Timing::begin(&group, path, manifest.step());
    let _inside = timing.enter();
    let merged = merged(manifest)?;
    let files = match components {
        None => by_component(&merged),
        Some(chosen) => chosen_of(chosen, &by_component(&merged))?,
    };
    let info = SealInfo {
        created_unix_ms: manifest.created_unix_ms(),
        library_version: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch_version: manifest.libtorch_version().to_owned(),
    };
    let state = state_of(&found)?;
    let (save_id, pace, ranks) = (merged.save_id, Pace::of(&group), merged.plans.len());
    let begin = || Coordinator::begin(storage, path, merged, info, files, Margin::default(), &pace);
    let mut coordinator = timing.plan(begin)?;
    let assigned = coordinator.assignments().into_iter().next();
    let committed = assigned
        .ok_or_else(|| Error::new(ErrorKind::Disagreement, "nobody writes"))
        .and_then(|assignment| {
            let write = || write(&group, storage, path, &assignment, &state);
            timing.write(write, |(_, times)| times)
        })
        .and_then(|(receipt, times)| {
            let mut receipts = vec![receipt];
            receipts.resize(ranks, Receipt::new());
            coordinator.commit(&receipts, &[timing.vote(times)], &timing, &pace)
        });
    coordinator.close(&pace);
    let (name, report) = committed?;
    timing.end(&report);
    let path = path.directory().join(name.as_str());
    Ok(Checkpoint { path, name, save_id, tensor_bytes: report.tensor_bytes, report })
}

fn no_single(found: &Found) -> Error {
    Error::new(ErrorKind::InvalidInput, "is not one file that holds everything")
        .with_path(found.path())
        .with_help("only what `save_single_file` wrote can be split")
}

/// `model` first, each once.
fn chosen_of(
    chosen: &[Component],
    present: &[Option<Component>],
) -> Result<Vec<Option<Component>>> {
    for component in chosen {
        if !present.contains(&Some(component.clone())) {
            let names: Vec<_> = present.iter().flatten().map(Component::as_str).collect();
            return Err(Error::new(ErrorKind::NotFound, format!("no component `{component}`"))
                .with_help(format!("the file holds: {}", names.join(", "))));
        }
    }
    let of_present = present.iter().flatten().filter(|component| chosen.contains(component));
    let files: Vec<_> = of_present.cloned().map(Some).collect();
    if files.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "no component was chosen"));
    }
    Ok(files)
}

/// What all ranks of the save agreed on, all of it now in the hands of rank 0.
fn merged(manifest: &Manifest) -> Result<MergedPlan> {
    let save_id = SaveId::random()?;
    let files = manifest.tensors().iter().map(|tensor| PlannedFile {
        name: String::new(),
        component: tensor.component.clone(),
        pieces: vec![PlannedPiece {
            name: tensor.name.clone(),
            spec: tensor.spec.clone(),
            held: Slice::full(tensor.spec.shape()),
            slice: Slice::full(tensor.spec.shape()),
        }]
        .into(),
    });
    let nothing = SavePlan { save_id, files: Vec::new(), sums_file: None };
    let mut plans = vec![nothing; manifest.world_size().len()];
    let files = files.collect();
    if let Some(first) = plans.first_mut() {
        first.files = files;
    }
    let rank_values = manifest.world_size().ranks().map(|rank| manifest.rank_values(rank));
    Ok(MergedPlan {
        save_id,
        target: SaveTarget {
            directory: String::new(),
            name: String::new(),
            step: manifest.step(),
            epoch: manifest.epoch(),
            ..SaveTarget::default()
        },
        plans,
        aliases: manifest.aliases().to_vec(),
        attached: Vec::new(),
        values: manifest.values().clone(),
        rank_values: rank_values.map(|values| values.cloned().unwrap_or_default()).collect(),
    })
}

/// Every tensor of a checkpoint, read and verified when asked for.
fn state_of(found: &Found) -> Result<StateDict> {
    let reader = Arc::new(ShardReader::of(found.dir.clone(), &found.manifest));
    let mut state = StateDict::new();
    for tensor in found.manifest.tensors() {
        let source = Stored::new(reader.clone(), tensor)?;
        let (name, spec) = (tensor.name.clone(), tensor.spec.clone());
        state.add(&tensor.component, name, spec, Arc::new(source))?;
    }
    state.values = Values::new();
    Ok(state)
}

/// A whole tensor in a file.
struct Stored {
    reader: Arc<ShardReader>,
    /// Its pieces, each with its first byte in the tensor, in order.
    pieces: Vec<(u64, PieceAt)>,
}

impl Stored {
    fn new(reader: Arc<ShardReader>, tensor: &TensorRecord) -> Result<Self> {
        let pieces = tensor.pieces.iter().map(|piece| {
            let inside = place_in(&tensor.spec, &piece.slice).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "a piece that is not contiguous")
                    .with_tensor(tensor.name.as_str())
            })?;
            let at = PieceAt {
                file: piece.file as usize,
                begin: piece.begin,
                bytes: tensor.piece_bytes(piece),
                first_sum: piece.first_sum,
            };
            Ok((inside, at))
        });
        Ok(Self { reader, pieces: pieces.collect::<Result<_>>()? })
    }
}

impl TensorSource for Stored {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let (mut scratch, mut rest, mut at) = (Vec::new(), out, offset);
        let first = self.pieces.partition_point(|(begin, piece)| begin + piece.bytes <= offset);
        for (begin, piece) in self.pieces.get(first..).unwrap_or_default() {
            let left = piece.bytes.saturating_sub(at - begin);
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            self.reader.read_into(*piece, at - begin, &mut scratch, part)?;
            (rest, at) = (after, at + len as u64);
            if rest.is_empty() {
                return Ok(());
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, "bytes beyond the end of a tensor"))
    }
}
