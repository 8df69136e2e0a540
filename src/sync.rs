//! Locks, threads, channels and flags of what runs beside training: those of parking_lot, std and
//! crossbeam.
//!
//! In unit tests of this crate a model checker can take them over (`modelled`), so that the code
//! that uses them is run through thousands of orders in which its threads could have run. What
//! follows is all that it can take over; nothing else may block a thread there.

#[cfg(test)]
pub(crate) mod explore;
#[cfg(test)]
mod modelled;
#[cfg(not(test))]
mod plain;

#[cfg(test)]
pub(crate) use modelled::*;
#[cfg(not(test))]
pub(crate) use plain::*;
