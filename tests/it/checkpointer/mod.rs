//! `Checkpointer`, on ranks that are threads.

mod bad_input;
mod beside;
mod keeping;
mod resuming;
mod saving;
mod toy;
