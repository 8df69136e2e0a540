//! Training, saving and loading through `NNHandler`, on ranks that are threads.
#![cfg(feature = "torch")]

mod auto_save;
mod harness;
mod kinds;
mod loading;
mod models;
mod names;
mod ranks;
mod restore;
mod resume;
mod training;
