//! The world around a job: networks that are cut, launchers that die, jobs that meet in one
//! directory, clocks that differ, disks that are slow, file systems that are not shared. Real
//! processes; every wait has a deadline.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod clocks;
#[allow(dead_code, reason = "shared with another binary")]
#[path = "../it/hooked.rs"]
mod hooked;
mod job;
mod looks;
mod orphans;
mod partition;
mod program;
mod slow;
#[allow(clippy::print_stderr, reason = "figures, and what was skipped")]
#[path = "../tier/mod.rs"]
mod tier;
mod two_jobs;
mod views;
