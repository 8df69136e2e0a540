//! Finding checkpoints that are files, not directories, and files of other tools.

mod extents;
mod find;
mod foreign;

pub(crate) use extents::ExtentDirectory;
pub(crate) use find::{FoundFile, bears_our_mark, find, is_ours, open_plain, place_of, reread};
pub(crate) use foreign::{
    CONFIG_BYTES_MAX, Foreign, Parts, open_directory, open_pytorch, read_index, read_small,
};
