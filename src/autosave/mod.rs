//! Decisions of automatic saving: when ([`Every`]) and under which name ([`NameTemplate`]).

mod name;
mod schedule;

pub use name::{KnownFields, NameTemplate, Number, Rendered, unique_name};
pub use schedule::Every;
