//! Racks that are saved, loaded, trained and resumed, on several ranks.
#![cfg(feature = "torch")]
#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod adapters_alone;
mod bytes;
mod caches;
mod letters;
mod lists;
mod odd;
mod refused;
mod resumed;
mod saves;
mod structures;
