//! What happens when memory is short: an error, and nothing lost. With an allocator of its own,
//! which refuses large allocations when told to, and in processes under a limit.

#![allow(unsafe_code, reason = "an allocator")]
#![allow(unreachable_pub)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "children report to their parent")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "helpers of tests")]

mod allocator;
mod anew;
mod cases;
#[cfg(feature = "cli")]
// The code of libtorch alone takes more addresses than these limits.
#[cfg(not(feature = "torch"))]
mod limits;
mod peaks;
mod refusals;
#[path = "../tier/mod.rs"]
mod tier;
