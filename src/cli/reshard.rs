//! `reshard`: a checkpoint in the files of another number of ranks.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::bytes;
use super::{DAMAGED, Output, Stop, progress, verdict};
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::group::ProcessGroup;
use crate::manifest::Manifest;
use crate::rank::WorldSize;
use crate::reshard::{ReshardOptions, left_out, reshard};
use crate::save::Checkpoint;
use crate::shown::{line, path};
use crate::storage::LocalStorage;
use crate::verify::verify;

/// Most ranks that a checkpoint is written as.
const RANKS_MAX: u32 = 4096;

#[derive(Args)]
pub(super) struct Reshard {
    /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
    path: PathBuf,
    /// The checkpoint that is made.
    #[arg(short, long = "out", value_name = "OUT", visible_alias = "output")]
    out: PathBuf,
    /// As how many ranks it is written.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(RANKS_MAX)))]
    world_size: u32,
    /// Replace a checkpoint of this name; other files are never replaced.
    #[arg(long)]
    force: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Reshard) -> Result<u8, Stop> {
    let (storage, solo) = (LocalStorage::new(), ProcessGroup::solo());
    let to = CheckpointPath::parse(&arguments.out)?;
    let found = find(&storage, &Wanted::parse(&arguments.path)?)?;
    let world_size = WorldSize::new(arguments.world_size)?;
    let options = ReshardOptions { world_size, overwrite: arguments.force };
    let total = || found.manifest.tensor_bytes();
    let work = || reshard(&solo, &storage, &found, &to, &options);
    let made = progress::shown("resharding", total, &solo.progress(), work)?;
    let left_out = left_out(&found.manifest, world_size);
    let damaged = check(&storage, &made)?;
    let said = if arguments.json {
        let mut facts = facts(&made, &found.manifest, world_size);
        if let Some(facts) = facts.as_object_mut() {
            facts.insert("source".into(), json!(found.path().display().to_string()));
            facts.insert("from_world_size".into(), json!(found.manifest.world_size().get()));
            facts.insert("rank_values_left_out".into(), json!(left_out));
            facts.insert("ok".into(), json!(damaged.is_none()));
        }
        out.json(&facts)
    } else {
        let (from, into) = (found.manifest.world_size(), world_size);
        let size = bytes(made.tensor_bytes);
        let what = format!("{}: {from} ranks to {into}, {size}, verified", path(&made.path));
        match &damaged {
            Some(fault) => out.line(format!("damaged: {}: {fault}", path(&made.path))),
            None => out.line(format!("resharded: {what}")),
        }
        .and_then(|()| match left_out.as_slice() {
            [] => Ok(()),
            names => out.line(format!(
                "note: values of ranks from {into} on were left out: {}",
                line(&names.join(", "))
            )),
        })
    };
    verdict(if damaged.is_none() { 0 } else { DAMAGED }, said)
}

/// Reads a checkpoint that was made; the first thing that is wrong with it.
pub(super) fn check(storage: &LocalStorage, made: &Checkpoint) -> Result<Option<String>, Stop> {
    let found = find(storage, &Wanted::parse(&made.path)?)?;
    let bar = progress::bytes("verifying", found.manifest.total_bytes());
    let verified = verify(&found, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(verified.damage.first().map(ToString::to_string))
}

/// What is said of a checkpoint that was made out of another one.
pub(super) fn facts(
    made: &Checkpoint,
    manifest: &Manifest,
    world_size: WorldSize,
) -> serde_json::Value {
    json!({
        "path": made.path.display().to_string(), "save_id": made.save_id.to_string(),
        "step": manifest.step(), "epoch": manifest.epoch(), "world_size": world_size.get(),
        "bytes": made.tensor_bytes,
    })
}
