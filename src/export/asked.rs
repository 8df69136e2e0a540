//! What every rank asks for in phase "export", which must be the same.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ExportOptions;
use crate::agree::unlike;
use crate::catalog::{CheckpointPath, Wanted};
use crate::error::Result;

/// What one rank asks for.
#[derive(Serialize, Deserialize)]
pub(super) struct Asked {
    wanted: Wanted,
    out: String,
    options: ExportOptions,
}

impl Asked {
    /// # Errors
    /// That of [`CheckpointPath::parse`] for `out`.
    pub(super) fn of(wanted: &Wanted, out: &Path, options: &ExportOptions) -> Result<Self> {
        CheckpointPath::parse(out)?;
        let out = out.to_string_lossy().into_owned();
        Ok(Self { wanted: wanted.clone(), out, options: options.clone() })
    }

    /// The first field in which another rank differs, in words.
    pub(super) fn difference(&self, theirs: &Self) -> Option<String> {
        let Self { wanted, out, options } = self;
        let ExportOptions {
            include,
            exclude,
            components,
            strip_prefix,
            submodules,
            keep_submodule_prefix,
            repeat_tied,
            cast,
            hugging_face,
            pytorch,
            overwrite,
        } = options;
        let other = &theirs.options;
        unlike("the checkpoint to be exported", wanted, &theirs.wanted)
            .or_else(|| unlike("where it is exported to", out, &theirs.out))
            .or_else(|| unlike("`include`", include, &other.include))
            .or_else(|| unlike("`exclude`", exclude, &other.exclude))
            .or_else(|| unlike("`components`", components, &other.components))
            .or_else(|| unlike("`strip_prefix`", strip_prefix, &other.strip_prefix))
            .or_else(|| unlike("`submodules`", submodules, &other.submodules))
            .or_else(|| {
                let theirs = &other.keep_submodule_prefix;
                unlike("`keep_submodule_prefix`", keep_submodule_prefix, theirs)
            })
            .or_else(|| unlike("`repeat_tied`", repeat_tied, &other.repeat_tied))
            .or_else(|| unlike("`cast`", cast, &other.cast))
            .or_else(|| unlike("`hugging_face`", hugging_face, &other.hugging_face))
            .or_else(|| unlike("`pytorch`", pytorch, &other.pytorch))
            .or_else(|| unlike("`overwrite`", overwrite, &other.overwrite))
    }
}
