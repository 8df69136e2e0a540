//! Which tensors of a destination are filled from a checkpoint, and under which names they are
//! found there: pure.
//!
//! A [`Selection`] is made of [`SelectionRules`], which are plain data and fit into a configuration
//! file. Its patterns speak of the *destination's* names, those of the model at hand:
//!
//! | pattern | matches |
//! |---|---|
//! | `head.weight` | that name |
//! | `encoder.*` | everything below `encoder`, at any depth |
//! | `*.bias` | every bias |
//! | `layers.[0-3].*`, `{embed,head}.*`, `layer?.*` | character classes, alternatives, one character |
//!
//! `*` matches any run of characters, dots included, as in Python's `fnmatch`; `**` is the same.
//! `\` takes the meaning from the character after it.

mod rename;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::globs::Globs;
use crate::manifest::{Manifest, TensorRecord};
use crate::tensor::Component;

pub use rename::Rename;
use rename::RenameMap;

/// What a [`Selection`] is made of. The default selects the whole model and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectionRules {
    /// Patterns of names to be filled; empty for all. Default: empty.
    pub include: Vec<String>,
    /// Patterns of names that stay as they are, also if included. Default: empty.
    pub exclude: Vec<String>,
    /// The components of the checkpoint from which tensors are taken; `None` for all. Default:
    /// `model`, which is the weights alone.
    pub components: Option<Vec<Component>>,
    /// Where stored names are not those of the destination; see [`Rename`]. Of two rules that
    /// fit a name, the first one counts. Default: empty.
    pub rename: Vec<Rename>,
}

impl Default for SelectionRules {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            exclude: Vec::new(),
            components: Some(vec![Component::model()]),
            rename: Vec::new(),
        }
    }
}

/// Valid rules of what to fill, and from where.
#[derive(Debug, Clone)]
pub struct Selection {
    rules: SelectionRules,
    include: Globs,
    exclude: Globs,
    rename: RenameMap,
}

impl Default for Selection {
    /// The whole model.
    fn default() -> Self {
        Self {
            rules: SelectionRules::default(),
            include: Globs::default(),
            exclude: Globs::default(),
            rename: RenameMap::default(),
        }
    }
}

impl Selection {
    /// ```
    /// use tch_checkpoint::select::{Rename, Selection, SelectionRules};
    ///
    /// let selection = Selection::new(SelectionRules {
    ///     include: vec!["encoder.*".into()],
    ///     exclude: vec!["*.bias".into()],
    ///     // Another program stored `module.backbone.…` what is `encoder.…` here.
    ///     rename: vec![Rename::new("module.backbone.*", "encoder.*")],
    ///     ..SelectionRules::default()
    /// })?;
    /// assert!(selection.selects("encoder.layers.0.weight"));
    /// assert!(!selection.selects("head.weight"));
    /// let stored = selection.stored_name("encoder.layers.0.weight");
    /// assert_eq!(stored.as_deref(), Some("module.backbone.layers.0.weight"));
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the pattern or rule: one that
    /// cannot be read, or a rename rule that could never apply, also because a rule before it takes
    /// the same destination from another stored name.
    pub fn new(rules: SelectionRules) -> Result<Self> {
        Ok(Self {
            include: Globs::new("include", &rules.include)?,
            exclude: Globs::new("exclude", &rules.exclude)?,
            rename: RenameMap::new(&rules.rename)?,
            rules,
        })
    }

    /// What it was made of.
    #[must_use]
    pub fn rules(&self) -> &SelectionRules {
        &self.rules
    }

    /// Whether the destination's tensor of this name is to be filled.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.matches(name)) && !self.exclude.matches(name)
    }

    /// The stored name of the destination's tensor `name`; `None` if what is stored under that
    /// very name has become something else by a rule.
    #[must_use]
    pub fn stored_name(&self, name: &str) -> Option<String> {
        self.rename.stored_name(name)
    }

    /// Whether tensors of this component are taken.
    #[must_use]
    pub fn takes(&self, component: &Component) -> bool {
        self.rules.components.as_ref().is_none_or(|list| list.contains(component))
    }

    /// The tensor of a checkpoint from which `name` is filled, if it is selected and there.
    #[must_use]
    pub fn find<'m>(&self, manifest: &'m Manifest, name: &str) -> Option<&'m TensorRecord> {
        let stored = self.selects(name).then(|| self.stored_name(name))??;
        manifest.tensor(&stored).filter(|tensor| self.takes(&tensor.component))
    }
}

#[cfg(test)]
mod tests;
