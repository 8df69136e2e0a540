//! Nested dictionaries and lists of tensors and plain values: what PyTorch calls a state dict.

/// A key of a dictionary.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Int(i64),
    Text(String),
}

/// A value that is no tensor and holds nothing else.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plain {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
}

/// A state dict; `T` is what is known of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Tree<T> {
    Tensor(T),
    Plain(Plain),
    /// In the order in which it was, or is to be, written; keys are unique.
    Dict(Vec<(Key, Tree<T>)>),
    /// Lists and tuples.
    List(Vec<Tree<T>>),
}
