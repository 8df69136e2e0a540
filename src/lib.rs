#![cfg_attr(feature = "torch", doc = include_str!("../README.md"))]
#![allow(clippy::needless_doctest_main, reason = "the front page shows whole programs")]
#![cfg_attr(
    not(feature = "torch"),
    doc = "Distributed, crash-safe checkpoints: the core, without libtorch. The front page of the\n\
           documentation, with an example, comes with feature `torch`."
)]

// Modules of tests that the test binaries have as well.
#[cfg(test)]
extern crate self as tch_checkpoint;

// Words
mod clock;
pub mod device;
mod dims;
pub mod error;
mod json;
#[cfg(any(test, feature = "torch"))]
mod mapped;
mod memory;
mod nearest;
mod numbers;
pub mod rank;
mod sabotage;
mod shown;
pub mod slice;
pub mod state;
mod sync;
pub mod tensor;
// Decisions: pure, no I/O
mod agree;
pub mod autosave;
pub mod cast;
mod codec;
mod globs;
mod hf_index;
pub mod layout;
mod lineage;
pub mod manifest;
mod pickle;
pub mod plan;
pub mod report;
pub mod select;
// Effects
pub mod catalog;
pub mod code;
mod commit;
#[cfg(feature = "drive")]
pub mod drive;
mod files;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
mod pointers;
pub mod preempt;
mod pytorch;
pub mod retain;
pub mod shard;
mod space;
mod stage;
pub mod storage;
pub mod sweep;
mod tensorboard;
mod trace;
pub mod usage;
// The two paths
pub mod audit;
pub mod difference;
pub mod export;
pub mod import;
pub mod load;
pub mod repair;
pub mod reshard;
pub mod save;
pub mod single;
pub mod statistics;
pub mod verify;
// For training loops of one's own
pub mod checkpointer;
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub mod simulation;
mod tidy;
// libtorch
#[cfg(feature = "torch")]
pub mod torch;
// Training
#[cfg(feature = "torch")]
pub mod handler;
#[cfg(feature = "torch")]
pub mod progressive;
// Compiles the examples of the guides.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/nnhandler.md")]
mod guide {}
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/checkpointer.md")]
mod checkpointer_guide {}
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/preemption.md")]
mod preemption_guide {}
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/tensorboard.md")]
mod tensorboard_guide {}
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/progressive.md")]
mod progressive_guide {}
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/gpu.md")]
mod gpu_guide {}
#[cfg(doctest)]
#[doc = include_str!("../docs/configuration.md")]
mod configuration_guide {}
// The command
#[cfg(feature = "cli")]
pub mod cli;

pub use catalog::CheckpointPath;
pub use code::ModelCode;
pub use error::{Error, ErrorKind, Result};
pub use export::{ExportOptions, Exported, export};
pub use group::ProcessGroup;
#[cfg(feature = "torch")]
pub use handler::{Dataset, InitOptions, LoadOptions, Loader, Model, NNHandler, TensorDataset};
pub use import::{ImportOptions, import};
pub use load::{Atomicity, Destination, load, load_partial, read_tensor};
pub use plan::OnExisting;
pub use plan::load::Replicas;
pub use rank::{LocalRank, Rank, WorldSize};
pub use report::{LoadTimes, SaveReport};
pub use save::{Checkpoint, SaveOptions, save};
pub use select::Selection;
