//! What to export, and how: options, and what is valid of them.

use serde::{Deserialize, Serialize};

use crate::cast::is_castable;
use crate::error::{Error, ErrorKind, Result};
use crate::export::{HuggingFace, PyTorch, PyTorchForm};
use crate::globs::Globs;
use crate::layout;
use crate::tensor::{Component, Dtype};

/// What to export, and how. By default all of the model, as it is, and never over an existing
/// file.
///
/// Patterns are those of [`select`](crate::select); they and [`ExportOptions::submodules`] speak of
/// names without [`ExportOptions::strip_prefix`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportOptions {
    /// Patterns of the names to export; empty for all. Not together with `exclude`.
    pub include: Vec<String>,
    /// Patterns of the names to leave out. Not together with `include`.
    pub exclude: Vec<String>,
    /// The components to export; `None` for all. Default: `model`.
    pub components: Option<Vec<Component>>,
    /// A prefix that every exported name has and shall lose (`module.`).
    pub strip_prefix: Option<String>,
    /// Parts of the model, such as `encoder` or `encoder.layers.0`, each exported to a file
    /// `<part>.safetensors` of its own; what is in none of them is left out. Empty: one file.
    pub submodules: Vec<String>,
    /// A directory as Hugging Face tools write it, whose files are of limited size. Not together
    /// with `submodules`. Default: no.
    pub hugging_face: Option<HuggingFace>,
    /// What PyTorch opens, with model, optimizer and values as one state dict. Not together with
    /// `submodules` or `hugging_face`. Default: no.
    pub pytorch: Option<PyTorch>,
    /// Whether names keep the name of their part (`encoder.weight` and not `weight` in
    /// `encoder.safetensors`). Default: no.
    pub keep_submodule_prefix: bool,
    /// Whether each name of a tied tensor gets its bytes. Default: no, they are written once.
    pub repeat_tied: bool,
    /// F16, BF16, F32 or F64, to which floating tensors are cast: rounded to nearest, ties to
    /// even. Default: as they are.
    pub cast: Option<Dtype>,
    /// Whether an earlier export under this name is replaced. Default: no.
    pub overwrite: bool,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            exclude: Vec::new(),
            components: Some(vec![Component::model()]),
            strip_prefix: None,
            submodules: Vec::new(),
            hugging_face: None,
            pytorch: None,
            keep_submodule_prefix: false,
            repeat_tied: false,
            cast: None,
            overwrite: false,
        }
    }
}

/// Valid options.
pub(super) struct Rules<'o> {
    pub(super) options: &'o ExportOptions,
    pub(super) include: Globs,
    pub(super) exclude: Globs,
}

impl ExportOptions {
    /// Whether a directory is written, and not a file.
    pub(super) fn is_directory(&self) -> bool {
        let is_dcp = |asked: &PyTorch| asked.form == PyTorchForm::Dcp;
        let is_dcp = self.pytorch.as_ref().is_some_and(is_dcp);
        is_dcp || !self.submodules.is_empty() || self.hugging_face.is_some()
    }

    /// Everything that can be said without a checkpoint.
    pub(super) fn check(&self) -> Result<Rules<'_>> {
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        if !self.include.is_empty() && !self.exclude.is_empty() {
            return bad("`include` and `exclude` exclude each other: give one".to_owned());
        }
        if let Some(dtype) = self.cast.filter(|dtype| !is_castable(*dtype)) {
            return bad(format!("cast: {dtype} is none of F16, BF16, F32, F64"));
        }
        if self.strip_prefix.as_ref().is_some_and(String::is_empty) {
            return bad("strip_prefix: is empty".to_owned());
        }
        if self.components.as_ref().is_some_and(Vec::is_empty) {
            return bad("components: is empty, nothing would be exported".to_owned());
        }
        if let Some(form) = &self.hugging_face {
            if !self.submodules.is_empty() {
                return bad("`submodules` and `hugging_face` exclude each other".to_owned());
            }
            form.check()?;
        }
        if self.pytorch.is_some() && (self.hugging_face.is_some() || !self.submodules.is_empty()) {
            return bad("`pytorch` excludes `submodules` and `hugging_face`".to_owned());
        }
        for (index, part) in self.submodules.iter().enumerate() {
            if self.submodules.iter().take(index).any(|before| before == part) {
                return bad(format!("submodules: `{part}` is given twice"));
            }
            if !layout::is_file_name(&file_of(part)) || part.ends_with('.') {
                return bad(format!("submodules: `{part}` cannot be the name of a file"));
            }
        }
        Ok(Rules {
            options: self,
            include: Globs::new("include", &self.include)?,
            exclude: Globs::new("exclude", &self.exclude)?,
        })
    }
}

/// The file of one part of a model.
pub(super) fn file_of(part: &str) -> String {
    format!("{part}{}", layout::SAFETENSORS)
}
