//! The engine without libtorch, seen from outside: ranks are threads, storage is memory or a
//! temporary directory. Every test with several ranks has a deadline.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "helpers of tests")]

mod audit;
mod background;
mod background_process;
mod checkpointer;
mod code;
mod commits;
mod config;
mod corruption;
mod disagreements;
mod durable;
mod exchanges;
mod export;
mod faults;
mod finding;
mod golden;
mod harness;
mod hooked;
mod hostile;
mod hugging_face;
mod load_damage;
mod load_faults;
mod mismatches;
mod multi;
mod overlap;
mod partial;
mod power_cuts;
mod python_reader;
mod pytorch;
mod pytorch_reads;
mod replaced;
mod reports;
mod reshard;
mod retention;
mod retention_faults;
mod retention_histories;
#[cfg(feature = "sabotage")]
mod sabotages;
mod single;
mod single_races;
mod space;
mod stock;
mod tensorboard;
#[allow(clippy::print_stderr, reason = "figures of tests")]
#[path = "../tier/mod.rs"]
mod tier;
mod traces;
mod unchanged;
mod unknown_formats;
mod verdicts;

mod regressions;
