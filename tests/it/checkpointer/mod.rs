//! `Checkpointer`, on ranks that are threads.

mod bad_input;
mod beside;
mod damaged;
mod disagreements;
mod failing;
mod flooded;
mod half_loaded;
mod histories;
mod keeping;
mod lines;
mod links;
mod partial;
mod parts;
mod resuming;
mod saving;
mod told;
pub mod toy;
