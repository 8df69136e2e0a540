//! Which fields a name template may mention.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::nearest::nearest;

const BUILT_IN: [&str; 6] = ["epoch", "step", "loss", "val_loss", "epoch_time", "lr"];
const LR_GROUP: &str = "lr_group_";

/// The fields that an epoch's log holds: `epoch`, `step`, `loss`, `val_loss`, `epoch_time`, `lr`,
/// `lr_group_0`, `lr_group_1`, …, and each metric with its `val_` twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFields {
    names: BTreeSet<String>,
    lr_groups: Option<usize>,
}

impl KnownFields {
    /// The built-in fields, and each metric with its `val_` twin.
    #[must_use]
    pub fn new<I>(metrics: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut names: BTreeSet<String> = BUILT_IN.map(str::to_owned).into();
        for metric in metrics {
            let metric = metric.as_ref();
            names.insert(metric.to_owned());
            names.insert(format!("val_{metric}"));
        }
        Self { names, lr_groups: None }
    }

    /// Admits only `lr_group_0 .. lr_group_<count - 1>`. Default: any number.
    #[must_use]
    pub fn with_lr_groups(mut self, count: usize) -> Self {
        self.lr_groups = Some(count);
        self
    }

    /// Admits one more field, which has no `val_` twin.
    #[must_use]
    pub fn with_field(mut self, name: &str) -> Self {
        self.names.insert(name.to_owned());
        self
    }

    /// Whether an epoch's log can hold `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name) || self.is_lr_group(name)
    }

    fn is_lr_group(&self, name: &str) -> bool {
        let Some(digits) = name.strip_prefix(LR_GROUP) else { return false };
        let Ok(group) = digits.parse::<usize>() else { return false };
        group.to_string() == digits && self.lr_groups.is_none_or(|count| group < count)
    }

    /// Whether an epoch's log can hold `name`, which something is to watch.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if not, with what it may have been meant to be.
    pub fn check(&self, name: &str) -> Result<()> {
        if self.contains(name) {
            return Ok(());
        }
        let meant = self.suggest(name).map(|meant| format!(", did you mean `{meant}`?"));
        let message = format!("no number is called `{name}`{}", meant.unwrap_or_default());
        let help = format!("known: {}; add metrics before", self.list());
        Err(Error::new(ErrorKind::InvalidInput, message).with_help(help))
    }

    /// Every field, built-in ones first, for a message.
    pub(super) fn list(&self) -> String {
        let metrics = self.names.iter().map(String::as_str).filter(|n| !BUILT_IN.contains(n));
        let groups = match self.lr_groups {
            None => "lr_group_N".to_owned(),
            Some(count) => format!("lr_group_N (N below {count})"),
        };
        let built_in = BUILT_IN.into_iter().chain([groups.as_str()]);
        built_in.chain(metrics).collect::<Vec<_>>().join(", ")
    }

    /// The field that `name` was probably meant to be.
    pub(super) fn suggest(&self, name: &str) -> Option<&str> {
        nearest(name, self.names.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_twins_and_learning_rate_groups_are_numbered() {
        let known = KnownFields::new(["acc", "top/5"]);
        for name in ["epoch", "lr", "acc", "val_acc", "top/5", "val_top/5", "lr_group_12"] {
            assert!(known.contains(name), "{name}");
        }
        for name in ["", "val_epoch", "lr_group_", "lr_group_01", "lr_group_+1", "lr_group_x"] {
            assert!(!known.contains(name), "{name}");
        }
        let two = known.with_lr_groups(2);
        assert!(two.contains("lr_group_1") && !two.contains("lr_group_2"));
    }

    #[test]
    fn near_misses_are_recognised_and_far_ones_are_not() {
        let known = KnownFields::new(["accuracy"]);
        for (typed, meant) in [
            ("vall_loss", Some("val_loss")),
            ("Epoch", Some("epoch")),
            (" step ", Some("step")),
            ("acuracy", Some("accuracy")),
            ("val_acuracy", Some("val_accuracy")),
            ("perplexity", None),
        ] {
            assert_eq!(known.suggest(typed), meant, "{typed}");
        }
        assert_eq!(known.suggest(&"e".repeat(100_000)), None);
    }
}
