//! Splitting one file into files of its components.

use std::sync::Arc;

use crate::catalog::{CheckpointPath, Found, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::load::stored_state;
use crate::manifest::{Form, Manifest, SealInfo};
use crate::plan::save::MergedPlan;
use crate::plan::{PlannedFile, PlannedPiece, SavePlan, SaveTarget};
use crate::save::{Checkpoint, Timing};
use crate::shard::ShardReader;
use crate::single::save::{Coordinator, Receipt, by_component, write};
use crate::slice::Slice;
use crate::space::Margin;
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
    let reader = Arc::new(ShardReader::of(found.dir.clone(), &found.manifest));
    let state = stored_state(&reader, &found.manifest, &mut |_| true)?;
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
        linked: Vec::new(),
        values: manifest.values().clone(),
        rank_values: rank_values.map(|values| values.cloned().unwrap_or_default()).collect(),
    })
}
