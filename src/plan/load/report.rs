//! What does not fit between a checkpoint and a destination, all at once.

use std::fmt::{Display, Write as _};

use serde::{Deserialize, Serialize};

use super::LoadRules;
use crate::error::{Error, ErrorKind, Result};
use crate::report::LoadTimes;
use crate::tensor::{TensorName, TensorSpec};

/// How many offenders of one sort an error lists.
const LISTED_MAX: usize = 20;

/// A tensor that is not what the destination expects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// The name under which it is wanted.
    pub name: TensorName,
    /// What the destination has.
    pub wanted: TensorSpec,
    /// What the checkpoint has.
    pub found: TensorSpec,
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (wanted {}, found {})", self.name, self.wanted, self.found)
    }
}

/// Everything that does not fit, each list by name; and, once loaded, what that took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Wanted, but not in the checkpoint.
    pub missing: Vec<TensorName>,
    /// In the checkpoint, but not wanted, nor any alias of it.
    pub unexpected: Vec<TensorName>,
    /// Of another dtype or global shape.
    pub mismatched: Vec<Mismatch>,
    /// What the load took, by all ranks; zero before it has ended.
    pub times: LoadTimes,
}

impl LoadReport {
    /// Sorts each list and keeps one entry per name.
    pub(super) fn tidy(&mut self) {
        self.missing.sort();
        self.missing.dedup();
        self.mismatched.sort_by(|a, b| a.name.cmp(&b.name));
        self.mismatched.dedup_by(|a, b| a.name == b.name);
    }

    /// Whether everything fits, also under strict rules.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }

    /// One JSON object in one line: the names, and under `times` that of [`LoadTimes::to_json`].
    /// Deserialising it gives this report again.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = json.as_object_mut() {
            fields.insert("times".to_owned(), self.times.to_value());
        }
        json.to_string()
    }

    /// Decides whether a load may go on under `rules`.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] that lists all offenders, the first 20 of each sort by name.
    pub fn check(&self, rules: &LoadRules) -> Result<()> {
        let names_matter = rules.strict && !(self.missing.is_empty() && self.unexpected.is_empty());
        if self.mismatched.is_empty() && !names_matter {
            return Ok(());
        }
        let mut text = String::from("the checkpoint does not fit");
        list(&mut text, "of another dtype or shape", &self.mismatched);
        if rules.strict {
            list(&mut text, "missing in the checkpoint", &self.missing);
            list(&mut text, "unexpected in the checkpoint", &self.unexpected);
        }
        let help = if self.mismatched.is_empty() {
            "nothing was loaded; without `strict`, names that only one side has are ignored"
        } else {
            "nothing was loaded; dtypes and shapes must be equal"
        };
        Err(Error::new(ErrorKind::Mismatch, text).with_help(help))
    }
}

/// Appends `; 2 <what>: a, b` to an error's text, at most the first 20.
pub(crate) fn list<T: Display>(text: &mut String, what: &str, offenders: &[T]) {
    if offenders.is_empty() {
        return;
    }
    let shown: Vec<String> = offenders.iter().take(LISTED_MAX).map(T::to_string).collect();
    // Writing to a string cannot fail.
    let _ = write!(text, "; {} {what}: {}", offenders.len(), shown.join(", "));
    if offenders.len() > LISTED_MAX {
        let _ = write!(text, " and {} more", offenders.len() - LISTED_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn one_offender_of_any_sort_is_enough() {
        let (name, spec) =
            (TensorName::new("w").unwrap(), TensorSpec::new(Dtype::F32, []).unwrap());
        let mismatch = Mismatch { name: name.clone(), wanted: spec.clone(), found: spec };
        let clean = LoadReport::default();
        assert!(clean.is_clean());
        let missing = LoadReport { missing: vec![name.clone()], ..clean.clone() };
        let unexpected = LoadReport { unexpected: vec![name], ..clean.clone() };
        let mismatched = LoadReport { mismatched: vec![mismatch], ..clean };
        for report in [missing, unexpected, mismatched] {
            assert!(!report.is_clean(), "{report:?}");
        }
    }
}
