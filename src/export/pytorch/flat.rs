//! A nested state dict as the flat one that `torch.distributed.checkpoint` stores.
//!
//! Source of the rules: `_nested_dict.py` and `_traverse.py` of that package, by which a load looks
//! for keys: dictionaries are taken apart, lists only if tensors or dictionaries are in them.

use crate::pytorch::{Key, Tree};

/// A name, the path that it stands for, and what is there.
pub(super) type Leaf<'t> = (String, Vec<Key>, &'t Tree<usize>);

pub(super) fn flat(tree: &Tree<usize>) -> Vec<Leaf<'_>> {
    let mut leaves = Vec::new();
    add(&mut leaves, &mut Vec::new(), tree);
    leaves
}

fn add<'t>(leaves: &mut Vec<Leaf<'t>>, path: &mut Vec<Key>, tree: &'t Tree<usize>) {
    match tree {
        Tree::Dict(entries) => {
            for (key, tree) in entries {
                // Keys of dictionaries are texts there, whatever they were.
                path.push(Key::Text(shown(key)));
                add(leaves, path, tree);
                path.pop();
            }
        }
        Tree::List(items) if !is_leaf(tree) => {
            for (number, tree) in (0..).zip(items) {
                path.push(Key::Int(number));
                add(leaves, path, tree);
                path.pop();
            }
        }
        _ => {
            let name = path.iter().map(shown).collect::<Vec<_>>().join(".");
            leaves.push((name, path.clone(), tree));
        }
    }
}

fn is_leaf(tree: &Tree<usize>) -> bool {
    match tree {
        Tree::Dict(_) | Tree::Tensor(_) => false,
        Tree::Plain(_) => true,
        Tree::List(items) => items.iter().all(is_leaf),
    }
}

fn shown(key: &Key) -> String {
    match key {
        Key::Int(int) => int.to_string(),
        Key::Text(text) => text.clone(),
    }
}
