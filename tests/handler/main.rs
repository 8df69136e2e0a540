//! Training, saving and loading through `NNHandler`, on ranks that are threads.
#![cfg(feature = "torch")]
#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod auto_save;
mod beside;
mod callback_failures;
mod callback_state;
mod callbacks;
mod code;
mod disagreements;
mod early_stopping;
mod exact;
mod forms;
mod harness;
#[path = "../it/hooked.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod hooked;
mod hugging_face;
mod kinds;
mod loading;
mod loggers;
mod mid_epoch;
mod model_checkpoint;
mod models;
mod names;
mod parts;
mod policies;
mod ranks;
mod renamed;
mod resharded;
mod restore;
mod restore_faults;
mod resume;
mod sharded;
mod tensorboard;
#[path = "../tier/mod.rs"]
#[allow(clippy::print_stderr, reason = "shared with other test binaries")]
mod tier;
mod training;
