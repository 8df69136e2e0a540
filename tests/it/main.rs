//! The engine without libtorch, seen from outside: ranks are threads, storage is memory or a
//! temporary directory. Every test with several ranks has a deadline.

mod faults;
mod golden;
mod harness;
mod hostile;
mod reshard;
mod verdicts;
