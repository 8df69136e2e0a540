//! What PyTorch writes and reads: `torch.save` archives and `torch.distributed.checkpoint`
//! directories, without Python and without running anything that they hold.
//!
//! Both are nested dictionaries of tensors and plain values ([`Tree`]).

mod archive;
pub(crate) mod dcp;
mod described;
mod names;
mod pickled;
mod source;
mod tree;
mod zip;

pub(crate) use archive::{Archive, Member};
pub(crate) use described::{Described, counts, described, dtype, dtype_name, is_known};
pub use names::Algorithm;
pub(crate) use names::{Found, NameRules, Named, NamedTensor, named, tree_of};
pub(crate) use pickled::{Whole, pickled};
pub(crate) use source::Source;
pub(crate) use tree::{Key, Plain, Tree};
pub(crate) use zip::ZipWriter;
