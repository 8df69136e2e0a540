//! `stress`: saves and loads generated content through the real engine, so that anybody can see
//! what a storage keeps.

mod content;
mod load;
mod processes;
pub(super) mod ranks;
mod save;

use clap::Subcommand;
use serde_json::json;

use super::directory::{self, Look};
use super::{Output, Stop};
use crate::layout::SaveId;

#[derive(Subcommand)]
pub(super) enum Stress {
    /// Save one checkpoint and print `COMMITTED <step> <save id>` once it is durable.
    Save(save::Save),
    /// Save step after step until killed, from one after the newest; a line for each as `save`.
    Loop(save::Loop),
    /// Load a checkpoint, compare every byte, and print `LOADED <step> <save id>`.
    Load(load::Load),
    /// As `tch-checkpoint latest`.
    #[command(hide = true)]
    Latest(Look),
    /// As `tch-checkpoint verify --dir`.
    #[command(hide = true)]
    Verify {
        #[command(flatten)]
        look: Look,
        /// All committed ones, not the newest alone.
        #[arg(long)]
        all: bool,
    },
}

/// What was done, `committed` or `loaded`, to whoever listens.
fn say(
    out: Option<&mut Output<'_>>,
    as_json: bool,
    done: &str,
    step: u64,
    save_id: SaveId,
) -> Result<(), Stop> {
    let Some(out) = out else { return Ok(()) };
    match as_json {
        true => out.json(&json!({ "event": done, "step": step, "save_id": save_id.to_string() })),
        false => out.line(format!("{} {step} {save_id}", done.to_uppercase())),
    }
}

pub(super) fn run(out: &mut Output<'_>, stress: &Stress) -> Result<u8, Stop> {
    match stress {
        Stress::Save(arguments) => save::once(out, arguments),
        Stress::Loop(arguments) => save::until_killed(out, arguments),
        Stress::Load(arguments) => load::run(out, arguments),
        Stress::Latest(look) => directory::latest(out, look),
        Stress::Verify { look, all } => directory::verify(out, &look.dir, *all, look.json),
    }
}
