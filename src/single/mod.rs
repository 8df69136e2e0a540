//! Checkpoints as plain files: one safetensors file that holds everything, or one per component.
//!
//! The same protocol as for directories: plan, vote, commit. Each file carries manifest and block
//! sums in its header and whole tensors as its data, so that any safetensors reader opens it, and
//! [`load`](fn@crate::load::load) loads and verifies it like a directory.

mod attempt;
mod debris;
mod plan;
mod save;
mod seams;
mod split;

pub(crate) use debris::sweep as sweep_files;
pub use save::{save_multi_files, save_single_file};
pub use split::save_multi_from_single;
