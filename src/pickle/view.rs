//! Looking at what a pickle holds.

use super::{Id, Node, Pickle};
use crate::shown::short;

/// A thing in a pickle. Every question is answered from its own parts alone: nothing here follows
/// what is nested.
#[derive(Clone, Copy)]
pub(crate) struct View<'p> {
    pickle: &'p Pickle,
    id: Id,
}

/// What a call would have given: an object of a class, or whatever a function returns.
#[derive(Clone, Copy)]
pub(crate) struct Made<'p> {
    pub(crate) module: &'p str,
    pub(crate) name: &'p str,
    /// A tuple.
    pub(crate) arguments: View<'p>,
    /// What it would be filled with afterwards.
    pub(crate) state: Option<View<'p>>,
}

impl<'p> View<'p> {
    pub(super) fn new(pickle: &'p Pickle, id: Id) -> Self {
        Self { pickle, id }
    }

    fn node(self) -> &'p Node {
        self.pickle.node(self.id)
    }

    fn views(self, ids: &'p [Id]) -> impl ExactSizeIterator<Item = View<'p>> + use<'p> {
        let pickle = self.pickle;
        ids.iter().map(move |id| View { pickle, id: *id })
    }

    /// The same for the same thing, which may be in several places.
    #[cfg(test)]
    pub(crate) fn identity(self) -> u32 {
        self.id
    }

    pub(crate) fn is_none(self) -> bool {
        *self.node() == Node::None
    }

    pub(crate) fn bool(self) -> Option<bool> {
        if let Node::Bool(value) = self.node() { Some(*value) } else { None }
    }

    /// An integer of 64 bits; no boolean.
    pub(crate) fn int(self) -> Option<i64> {
        if let Node::Int(value) = self.node() { Some(*value) } else { None }
    }

    /// Whether it is an integer beyond 64 bits.
    pub(crate) fn is_huge(self) -> bool {
        *self.node() == Node::Huge
    }

    /// An integer that is not negative.
    pub(crate) fn count(self) -> Option<u64> {
        self.int().and_then(|value| u64::try_from(value).ok())
    }

    pub(crate) fn float(self) -> Option<f64> {
        if let Node::Float(value) = self.node() { Some(*value) } else { None }
    }

    pub(crate) fn text(self) -> Option<&'p str> {
        if let Node::Text(value) = self.node() { Some(value) } else { None }
    }

    pub(crate) fn bytes(self) -> Option<&'p [u8]> {
        if let Node::Bytes(value) = self.node() { Some(value) } else { None }
    }

    /// Of a list, tuple or set.
    pub(crate) fn items(self) -> Option<impl ExactSizeIterator<Item = View<'p>> + use<'p>> {
        match self.node() {
            Node::List(ids) | Node::Tuple(ids) | Node::Set(ids) => Some(self.views(ids)),
            _ => None,
        }
    }

    /// Of a dictionary, or of what a call gives that is filled like one; in order.
    pub(crate) fn entries(
        self,
    ) -> Option<impl ExactSizeIterator<Item = (View<'p>, View<'p>)> + use<'p>> {
        let entries = match self.node() {
            Node::Dict(entries) => entries,
            Node::Made(call) if call.items.is_empty() => &call.entries,
            _ => return None,
        };
        let pickle = self.pickle;
        let view = move |id: &Id| View { pickle, id: *id };
        Some(entries.iter().map(move |(key, value)| (view(key), view(value))))
    }

    /// What a dictionary has under a text.
    pub(crate) fn get(self, key: &str) -> Option<View<'p>> {
        self.entries()?.find(|(own, _)| own.text() == Some(key)).map(|(_, value)| value)
    }

    /// Module and name of what would be imported.
    pub(crate) fn global(self) -> Option<(&'p str, &'p str)> {
        if let Node::Global(module, name) = self.node() { Some((module, name)) } else { None }
    }

    pub(crate) fn made(self) -> Option<Made<'p>> {
        let Node::Made(call) = self.node() else { return None };
        let view = |id| View { pickle: self.pickle, id };
        let (module, name) = view(call.callable).global()?;
        let state = call.state.map(view);
        Some(Made { module, name, arguments: view(call.arguments), state })
    }

    /// What the one who unpickles would be asked for.
    pub(crate) fn persistent(self) -> Option<View<'p>> {
        let Node::Persistent(id) = self.node() else { return None };
        Some(View { pickle: self.pickle, id: *id })
    }

    /// What it is, in a few words, for messages.
    pub(crate) fn what(self) -> String {
        match self.node() {
            Node::None => "None".to_owned(),
            Node::Bool(_) => "a boolean".to_owned(),
            Node::Int(_) | Node::Huge => "an integer".to_owned(),
            Node::Float(_) => "a number".to_owned(),
            Node::Text(_) => "a text".to_owned(),
            Node::Bytes(_) => "bytes".to_owned(),
            Node::List(_) => "a list".to_owned(),
            Node::Tuple(_) => "a tuple".to_owned(),
            Node::Set(_) => "a set".to_owned(),
            Node::Dict(_) => "a dictionary".to_owned(),
            Node::Global(module, name) => format!("`{}.{}`", short(module), short(name)),
            Node::Made(_) => self.made().map_or_else(String::new, |made| {
                format!("an object of `{}.{}`", short(made.module), short(made.name))
            }),
            Node::Persistent(_) => "a storage".to_owned(),
        }
    }
}

impl<'p> Made<'p> {
    pub(crate) fn is(&self, module: &str, name: &str) -> bool {
        (self.module, self.name) == (module, name)
    }

    /// The argument of this number.
    pub(crate) fn argument(&self, index: usize) -> Option<View<'p>> {
        self.arguments.items()?.nth(index)
    }
}
