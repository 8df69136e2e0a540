//! Decisions of automatic saving: when ([`Interval`]) and under which name ([`NameTemplate`]).

mod name;
mod schedule;

pub use name::{KnownFields, NameTemplate, Number, Rendered, unique_name};
pub use schedule::Interval;
