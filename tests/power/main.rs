//! Power cuts, crash states of the block device and devices that fail: what was acknowledged is
//! there afterwards, and nothing that is visible is torn.
//!
//! Each test runs in namespaces of its own ([`alone`]): whatever becomes of it, no mount, loop
//! device or process is left behind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub, reason = "helpers of tests")]

mod alone;
mod command;
mod crash_states;
mod cuts;
mod device;
mod disk;
mod failing_device;
mod judge;
mod machine;
mod replaced;
mod replay;
#[cfg(feature = "sabotage")]
mod sabotages;
#[path = "../tier/mod.rs"]
mod tier;

/// A word that looks random and is the same in every run (SplitMix64, Steele, Lea and Flood 2014).
pub fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}
