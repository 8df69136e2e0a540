//! What real saves ask of the kernel, and what becomes of checkpoints if it says no, says nothing
//! true, or kills the program there.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]
#![allow(clippy::cast_possible_truncation, reason = "registers, and sizes of tests")]

mod driver;
mod faults;
mod kills;
mod looking;
mod odd;
mod order;
#[cfg(feature = "sabotage")]
mod sabotages;
mod scene;
mod scenes;
#[allow(clippy::print_stderr, reason = "figures")]
#[path = "../tier/mod.rs"]
mod tier;
mod tracer;
