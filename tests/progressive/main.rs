//! Racks in memory: how they grow, what they compute in each precision, what is trained, and what
//! adapters do to them.
#![cfg(feature = "torch")]
#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod adapters;
mod building;
mod cache;
mod frozen;
mod initial;
mod models;
mod peft;
mod precision;
mod refused_adapters;
#[path = "../tier/mod.rs"]
#[allow(clippy::print_stderr, reason = "shared with other test binaries")]
mod tier;
mod ties;
mod trunk_hash;
