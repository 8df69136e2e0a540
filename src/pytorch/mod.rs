//! What PyTorch writes and reads: `torch.save` archives and `torch.distributed.checkpoint`
//! directories, without Python and without running anything that they hold.
//!
//! Both are nested dictionaries of tensors and plain values ([`Tree`]).

mod tree;

pub(crate) use tree::{Key, Plain, Tree};
