//! Tensors as a tree of modules, in which repeated ones are shown once.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::format::bytes;
use crate::cli::grid::{Column, Grid};
use crate::manifest::{Manifest, TensorRecord};
use crate::shown::line;

/// Deeper names are not taken apart further: they may be made to have thousands of levels.
const DEPTH_MAX: usize = 32;

/// A part of a name: a number sorts as such.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(u64),
    Word(String),
}

impl Key {
    /// `007` is no number: it would not be written so.
    fn of(part: &str) -> Self {
        match part.parse::<u64>() {
            Ok(number) if number.to_string() == part => Self::Number(number),
            _ => Self::Word(part.to_owned()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Word(word) => line(word),
        }
    }
}

/// A module, a tensor, or both.
#[derive(Default)]
struct Node<'m> {
    tensor: Option<&'m TensorRecord>,
    /// The stored name of a tensor that has this one as well.
    alias: Option<&'m str>,
    children: BTreeMap<Key, Node<'m>>,
    below: Below<'m>,
}

/// What a node and all below it hold.
#[derive(Default)]
struct Below<'m> {
    tensors: u64,
    bytes: u64,
    dtypes: BTreeSet<&'m str>,
    /// Equal for nodes whose content has the same names, shapes and dtypes.
    structure: String,
}

/// All tensors of a checkpoint as a table, component by component.
pub(super) fn grid(manifest: &Manifest) -> Grid {
    let mut roots: BTreeMap<&str, Node<'_>> = BTreeMap::new();
    for tensor in manifest.tensors() {
        let root = roots.entry(tensor.component.as_str()).or_default();
        root.at(tensor.name.as_str()).tensor = Some(tensor);
    }
    for (alias, target) in manifest.aliases() {
        let Some(tensor) = manifest.tensor(target.as_str()) else { continue };
        let root = roots.entry(tensor.component.as_str()).or_default();
        root.at(alias.as_str()).alias = Some(target.as_str());
    }
    let mut rows = Rows::new(manifest.tensor_bytes());
    for (component, mut root) in roots {
        root.sum_up();
        rows.node("", &format!("[{}]", line(component)), &root, 1);
        rows.children("", &root);
    }
    rows.grid
}

impl<'m> Node<'m> {
    fn at(&mut self, name: &str) -> &mut Self {
        name.splitn(DEPTH_MAX, '.')
            .fold(self, |node, part| node.children.entry(Key::of(part)).or_default())
    }

    fn sum_up(&mut self) {
        let mut below = Below::default();
        if let Some(tensor) = self.tensor {
            let spec = &tensor.spec;
            (below.tensors, below.bytes) = (1, spec.size_bytes());
            below.dtypes.insert(spec.dtype().as_str());
            below.structure = format!("{spec}*{}", tensor.pieces.len());
        }
        below.structure.push_str(self.alias.map_or("", |_| "="));
        for (key, child) in &mut self.children {
            child.sum_up();
            below.tensors += child.below.tensors;
            below.bytes += child.below.bytes;
            below.dtypes.extend(&child.below.dtypes);
            below.structure.push_str(&format!("({}:{})", key.text(), child.below.structure));
        }
        self.below = below;
    }

    /// Its only child, if that is all it is.
    fn only_child(&self) -> Option<(&Key, &Self)> {
        let is_module = self.tensor.is_none() && self.alias.is_none() && self.children.len() == 1;
        self.children.first_key_value().filter(|_| is_module)
    }
}

struct Rows {
    grid: Grid,
    all_bytes: u64,
}

impl Rows {
    fn new(all_bytes: u64) -> Self {
        let grid = Grid::new([
            ("tensor", Column::Middle(24)),
            ("dtype", Column::End(5)),
            ("shape", Column::End(10)),
            ("size", Column::Right),
            ("share", Column::Right),
            ("pieces", Column::Right),
        ]);
        Self { grid, all_bytes }
    }

    /// A row for a node that is there so many times.
    fn node(&mut self, prefix: &str, label: &str, node: &Node<'_>, times: u64) {
        let (shape, pieces) = match (node.tensor, node.alias) {
            (Some(tensor), _) => {
                (format!("{:?}", tensor.spec.shape()), tensor.pieces.len().to_string())
            }
            (None, Some(target)) => (format!("= {}", line(target)), String::new()),
            (None, None) if node.below.tensors * times == 1 => {
                ("1 tensor".to_owned(), String::new())
            }
            (None, None) => (format!("{} tensors", node.below.tensors * times), String::new()),
        };
        let dtypes: Vec<&str> = node.below.dtypes.iter().copied().collect();
        let size = node.below.bytes.saturating_mul(times);
        let has_size = node.alias.is_none() || node.tensor.is_some();
        let known = |text: String| if has_size { text } else { String::new() };
        self.grid.row([
            format!("{prefix}{label}"),
            dtypes.join(","),
            shape,
            known(bytes(size)),
            known(share(size, self.all_bytes)),
            pieces,
        ]);
    }

    fn children(&mut self, prefix: &str, node: &Node<'_>) {
        let runs = runs(node);
        for (index, run) in runs.iter().enumerate() {
            let is_last = index + 1 == runs.len();
            let (branch, below) = if is_last { ("└ ", "  ") } else { ("├ ", "│ ") };
            let mut label = run.label();
            let mut shown = run.first;
            while let Some((key, child)) = shown.only_child() {
                label = format!("{label}.{}", key.text());
                shown = child;
            }
            self.node(&format!("{prefix}{branch}"), &label, shown, run.times);
            self.children(&format!("{prefix}{below}"), shown);
        }
    }
}

/// Children that follow each other as numbers and have the same structure.
struct Run<'n, 'm> {
    key: &'n Key,
    last: &'n Key,
    first: &'n Node<'m>,
    times: u64,
}

impl Run<'_, '_> {
    fn label(&self) -> String {
        match self.times {
            1 => self.key.text(),
            times => format!("{}..{} (x{times})", self.key.text(), self.last.text()),
        }
    }
}

fn runs<'n, 'm>(node: &'n Node<'m>) -> Vec<Run<'n, 'm>> {
    let mut runs: Vec<Run<'n, 'm>> = Vec::new();
    for (key, child) in &node.children {
        if let (Key::Number(number), Some(run)) = (key, runs.last_mut())
            && *run.last == Key::Number(number.wrapping_sub(1))
            && run.first.below.structure == child.below.structure
            && child.alias.is_none()
        {
            run.last = key;
            run.times += 1;
            continue;
        }
        runs.push(Run { key, last: key, first: child, times: 1 });
    }
    runs
}

/// `12%` of all; what is there is more than nothing.
fn share(part: u64, all: u64) -> String {
    let percent = u128::from(part) * 100 / u128::from(all.max(1));
    if percent == 0 && part > 0 { "<1%".to_owned() } else { format!("{percent}%") }
}
