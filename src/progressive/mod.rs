//! Progressive training: a model that grows by stacks, of which the newest is trained.

mod adapters;
mod adapters_alone;
mod architecture;
mod builder;
mod cache;
mod described;
mod layers;
mod list;
mod load;
mod peft;
mod precision;
mod rack;
mod run_state;
mod save;
mod snapshot;
mod stack;
mod state;
mod trainer;
mod training;
mod variables;

pub use adapters::LoraConfig;
pub use architecture::{Architecture, Layer};
pub use builder::RackBuilder;
pub use cache::ActivationCache;
pub use described::{AdapterInfo, BuildingMode, RackInfo, StackId, StackInfo};
pub use layers::{Layers, Linear, LinearConfig};
pub use list::{
    Contents, ProgressiveCheckpoint, get_rack_info, get_stack_info, get_training_info,
    list_checkpoints, load_progressive_checkpoint,
};
pub use peft::{PeftAdapter, PeftLinear, PeftOptions, read_peft, write_peft};
pub use precision::StackPrecision;
pub use rack::Rack;
pub use snapshot::RackSnapshot;
pub use stack::Stack;
pub use trainer::{Batches, LossFn, ProgressiveTrainer};
pub use training::{Stage, StageHistory, TrainingConfig, TrainingInfo, TrunkStrategy};
