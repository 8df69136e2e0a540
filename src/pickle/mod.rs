//! Python's pickles as data: read by a machine that knows a few instructions and calls nothing,
//! and written. Source of the format: `pickletools.py` of CPython.
//!
//! A pickle is a program for a machine with a stack, which imports what it names and calls it. Here
//! an import is the name alone, and a call is a note of what would have been called with what:
//! whoever reads the result decides what that stands for. Names that the reader does not expect end
//! the reading.

mod long;
mod machine;
mod memo;
mod opcode;
mod view;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use view::{Made, View};
pub(crate) use write::Writer;

use crate::error::{Error, ErrorKind, Result};

/// Longest pickle that is read.
pub(crate) const PICKLE_BYTES_MAX: u64 = 256 << 20;
/// Most things that a pickle may hold: what shared structures and short instructions can claim in
/// memory is bounded by it.
const NODES_MAX: usize = 1 << 24;
/// How deep consumers follow what is nested; deeper is refused, and so is what holds itself.
pub(crate) const DEPTH_MAX: usize = 100;

/// Where a thing lies among those of its pickle.
type Id = u32;

/// A thing in a pickle. Parts are named by number, so that shared parts are there once, what holds
/// itself is harmless, and dropping needs no stack.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, whatever it is.
    Huge,
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What would be imported.
    Global(String, String),
    /// What a call would give.
    Made(Box<Call>),
    /// What the one who unpickles would be asked for.
    Persistent(Id),
}

/// A call that is not made, and what would be done to its result.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    callable: Id,
    arguments: Id,
    state: Option<Id>,
    items: Vec<Id>,
    entries: Vec<(Id, Id)>,
}

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
    bytes: usize,
}

impl Pickle {
    /// Reads the pickle at the front of `bytes`, and says how long it is. `may` is asked about
    /// each name that would be imported, as module and name.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with the offset for what is no pickle; [`ErrorKind::Incompatible`] for
    /// a name that is not expected, and for instructions that nothing here needs;
    /// [`ErrorKind::Unsupported`] for more than fits the limits.
    pub(crate) fn read(bytes: &[u8], may: &dyn Fn(&str, &str) -> bool) -> Result<(Self, usize)> {
        if bytes.len() as u64 > PICKLE_BYTES_MAX {
            let message = format!("a pickle of {} bytes, at most {PICKLE_BYTES_MAX}", bytes.len());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        machine::run(bytes, may)
    }

    /// What the program ends with.
    pub(crate) fn root(&self) -> View<'_> {
        View::new(self, self.root)
    }

    /// How many bytes it had.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    fn node(&self, id: Id) -> &Node {
        usize::try_from(id).ok().and_then(|index| self.nodes.get(index)).unwrap_or(&Node::None)
    }
}
