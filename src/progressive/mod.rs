//! Progressive training: a model that grows by stacks, of which the newest is trained.

mod adapters;
mod described;
mod precision;

pub use adapters::LoraConfig;
pub use described::{AdapterInfo, BuildingMode, RackInfo, StackId, StackInfo};
pub use precision::StackPrecision;
