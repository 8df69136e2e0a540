//! Checkpoints, names and directories from somebody who means harm, and what must never leave this
//! program: files outside are not opened, nothing is written, memory is bounded, every refusal is a
//! typed error, secrets stay secret, terminals are not driven.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "sizes of tests")]
#![allow(clippy::missing_panics_doc, reason = "tests")]

mod allocator;
mod code_carrying;
mod corpus;
mod created;
mod directory;
mod forge;
mod judge;
mod modes;
mod outside;
mod races;
mod scene;
mod secrets;
mod terminal;
#[allow(clippy::print_stderr, reason = "figures")]
#[path = "../tier/mod.rs"]
mod tier;
#[allow(dead_code, unused_imports, reason = "parts of it are for other tests")]
#[path = "../syscalls/tracer/mod.rs"]
mod tracer;

/// Memory and time are counted for all of the process: one test at a time.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
