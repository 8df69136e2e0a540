//! Data files: plain safetensors, and beside them one file with the block sums of each rank.
//!
//! [`write_shards`] streams the pieces that a [`SavePlan`](crate::plan::SavePlan) gives to a rank
//! through a few reused buffers; [`ShardReader`] reads byte ranges of pieces and hands out nothing
//! whose sum does not match.

mod bulk;
mod crew;
mod cut;
mod filled;
mod header;
pub(crate) mod image;
mod opened;
mod pacing;
mod piece;
mod pipeline;
mod ranges;
mod reader;
mod single;
mod stream;
mod sums;
mod verify;
mod writer;

pub(crate) use bulk::{Part, Place, Sharing, Takers};
pub(crate) use cut::{Boxes, Cut};
pub(crate) use filled::{FilledFile, write_filled};
pub use header::{
    DATA_ALIGNMENT, HEADER_JSON_MAX, Header, HeaderTensor, ParsedHeader, read_header,
};
pub use piece::PieceAt;
pub(crate) use ranges::{RangePiece, write_ranges};
pub use reader::ShardReader;
pub(crate) use single::{SingleFile, SingleText, plain_header, read_single, single_header};
pub(crate) use stream::{Out, write_stream};
pub use sums::sum;
pub use verify::{DAMAGE_MAX, Damage};
pub use writer::write_shards;

use std::path::PathBuf;

use crate::error::Error;
use crate::storage::Directory;

/// `error` with the path of `name` in `dir`, unless the storage has named one.
fn at_file(error: Error, dir: &dyn Directory, name: &str) -> Error {
    if error.path().is_some() { error } else { error.with_path(file_path(dir, name)) }
}

fn file_path(dir: &dyn Directory, name: &str) -> PathBuf {
    dir.path().join(name)
}

#[cfg(test)]
mod tests;
