//! Progressive training: a model that grows by stacks, of which the newest is trained.

mod adapters;
mod architecture;
mod builder;
mod described;
mod layers;
mod precision;
mod rack;
mod stack;
mod variables;

pub use adapters::LoraConfig;
pub use architecture::{Architecture, Layer};
pub use builder::RackBuilder;
pub use described::{AdapterInfo, BuildingMode, RackInfo, StackId, StackInfo};
pub use layers::{Layers, Linear, LinearConfig};
pub use precision::StackPrecision;
pub use rack::Rack;
pub use stack::Stack;
