//! Decisions of automatic saving: when ([`Every`]), under which name ([`NameTemplate`]), and what
//! stays ([`Retention`]).

mod mode;
mod name;
pub mod names;
mod retention;
mod schedule;
mod triggers;

pub use mode::Mode;
pub use name::{KnownFields, NameTemplate, Number, Rendered, unique_name};
pub(crate) use retention::better_first;
pub use retention::{Decision, KeepBest, Reason, Retention};
pub use schedule::Every;
pub use triggers::{Counters, Due, Triggers};
