//! Checkpoints for a training loop of one's own: when to save, what to keep, where to resume.

mod config;

pub use config::{AsyncMode, CheckpointerConfig, InFlight, Location, Resume};
