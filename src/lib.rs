//! Distributed, crash-safe checkpointing for models trained with `tch` (libtorch) on many ranks
//! and GPUs.

// Words
pub mod error;
pub mod rank;
pub mod slice;
pub mod state;
pub mod tensor;
// Decisions: pure, no I/O
pub mod autosave;
mod codec;
pub mod layout;
pub mod manifest;
pub mod plan;
// Effects
pub mod group;
pub mod shard;
pub mod storage;
// The two paths
pub mod load;
pub mod save;
// libtorch
#[cfg(feature = "torch")]
pub mod torch;
// Training
#[cfg(feature = "torch")]
pub mod handler;
// The command
#[cfg(feature = "cli")]
pub mod cli;

pub use error::{Error, ErrorKind, Result};
pub use rank::{LocalRank, Rank, WorldSize};
