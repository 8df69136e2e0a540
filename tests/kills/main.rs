//! What nobody can prevent: jobs killed at random, disks that run full, that become read-only, that
//! belong to somebody else. Real processes and real mounts; every wait has a deadline.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "helpers of tests")]

mod exports;
mod full;
#[allow(dead_code, reason = "shared with another binary")]
#[path = "../it/harness.rs"]
mod harness;
#[allow(dead_code, reason = "shared with another binary")]
#[path = "../it/hooked.rs"]
mod hooked;
mod job;
mod mount;
mod one_rank;
mod oracle;
mod random;
mod refused;
#[cfg(feature = "sabotage")]
mod sabotages;
#[allow(clippy::print_stderr, reason = "figures, and what was skipped")]
#[path = "../tier/mod.rs"]
mod tier;
