//! From a flat state dict to the nested one that it was.

use std::collections::BTreeMap;

use super::super::{Key, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;

/// Puts every value where its path says. Numbers from zero on are a list.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if two values would be in one place, or one inside another.
pub(crate) fn nested<T>(values: impl Iterator<Item = (Vec<Key>, Tree<T>)>) -> Result<Tree<T>> {
    let mut root = Branch::default();
    for (path, value) in values {
        let shown = || path.iter().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
        let mut branch = &mut root;
        let mut rest = path.iter().peekable();
        while let Some(key) = rest.next() {
            let node = branch.node(key);
            match (node, rest.peek()) {
                (Node::Branch(below), Some(_)) => branch = below,
                (node @ Node::Nothing, None) => {
                    *node = Node::Value(value);
                    break;
                }
                (node @ Node::Nothing, Some(_)) => {
                    *node = Node::Branch(Branch::default());
                    let Node::Branch(below) = node else { break };
                    branch = below;
                }
                _ => {
                    let message = format!("two values at ({})", short(&shown()));
                    return Err(Error::new(ErrorKind::Corrupt, message));
                }
            }
        }
    }
    Ok(root.tree())
}

struct Branch<T> {
    /// Where each key is.
    places: BTreeMap<Key, usize>,
    /// In the order in which they came.
    nodes: Vec<(Key, Node<T>)>,
}

enum Node<T> {
    Nothing,
    Value(Tree<T>),
    Branch(Branch<T>),
}

impl<T> Default for Branch<T> {
    fn default() -> Self {
        Self { places: BTreeMap::new(), nodes: Vec::new() }
    }
}

impl<T> Branch<T> {
    fn node(&mut self, key: &Key) -> &mut Node<T> {
        let place = *self.places.entry(key.clone()).or_insert(self.nodes.len());
        if place == self.nodes.len() {
            self.nodes.push((key.clone(), Node::Nothing));
        }
        // It was just made, if it was not there.
        let (_, node) = &mut self.nodes[place];
        node
    }

    /// As deep as the longest path.
    fn tree(self) -> Tree<T> {
        let count = self.nodes.len();
        let numbers = self.places.keys().zip(0i64..);
        let is_list = count > 0 && numbers.into_iter().all(|(key, n)| *key == Key::Int(n));
        let places = self.places;
        let mut entries: Vec<(Key, Tree<T>)> = Vec::with_capacity(count);
        for (key, node) in self.nodes {
            let tree = match node {
                Node::Nothing => continue,
                Node::Value(tree) => tree,
                Node::Branch(branch) => branch.tree(),
            };
            entries.push((key, tree));
        }
        if !is_list {
            return Tree::Dict(entries);
        }
        drop(places);
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Tree::List(entries.into_iter().map(|(_, tree)| tree).collect())
    }
}
