//! Damage of every kind, done to checkpoints on purpose, and found.
//!
//! What is promised, and checked here on both sides of the line:
//!
//! - `verify` finds a single flipped bit anywhere in what a checkpoint consists of: the manifest,
//!   all of every data file (header and padding included), of every sums file, and of every other
//!   file (index, model code). The same holds for files with a manifest inside.
//! - A load finds it in whatever it goes by: the manifest; the header, the sums and every touched
//!   block of each data file that it reads. A load of everything, on any number of ranks, thereby
//!   finds it in the manifest and in every byte of data and sums files. A load of a part does not
//!   read the rest, does not find damage there, and gives right bytes.
//! - No load reads the index or the code: damage there is found by `verify` and by who reads them.
//! - Lengths of all data and sums files are compared by every load.
//! - The error names the file; where the bit lies in a tensor, the tensor and the first byte of
//!   the damaged block. What is hashed as one (a header, the sums of a file) is named by its begin.
//! - A load that fails so leaves its destination unchanged, and nothing panics.
//! - `latest` and `best` are advisory: damaged, they lead to a checkpoint that is whole and was
//!   committed, or to an error.

mod flips;
mod loads;
mod mixed;
mod parts;
mod pointers;
mod random_bits;
mod single_file;
mod structure;
mod subject;
mod tally;
mod written;
