//! The engine without libtorch, seen from outside: ranks are threads, storage is memory or a
//! temporary directory. Every test with several ranks has a deadline.

#![allow(unreachable_pub)]

mod commits;
mod faults;

mod harness;
mod hooked;
mod hostile;

mod replaced;
mod reshard;
mod verdicts;
