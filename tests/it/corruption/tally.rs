//! Counting what was tried and what was found.

use tch_checkpoint::{Error, ErrorKind, Result};

use super::subject::Spot;
use crate::tier;

/// Undetected cases that are listed when a test fails.
const LISTED: usize = 20;

/// How many cases were tried, and how many were found with the right file and place.
#[derive(Debug, Default)]
pub struct Tally {
    tried: u64,
    by_verify: u64,
    by_load: u64,
    unexpected: Vec<String>,
}

/// What the errors about one damage are to say.
#[derive(Debug, Clone, Default)]
pub struct Expected<'a> {
    /// The files that may be named; empty for any.
    pub paths: Vec<&'a str>,
    /// Tensor and offset, exactly; `None` for any.
    pub spot: Option<Spot>,
    /// Whether files are gone, or of other saves: other kinds of errors than damage are right then.
    pub files_differ: bool,
}

impl<'a> Expected<'a> {
    pub fn at(path: &'a str) -> Self {
        Self { paths: vec![path], ..Self::default() }
    }

    pub fn spot(self, tensor: Option<&str>, offset: Option<u64>) -> Self {
        Self { spot: Some(Spot { tensor: tensor.map(str::to_owned), offset }), ..self }
    }

    fn fits(&self, error: &Error) -> bool {
        let kinds = [ErrorKind::NotFound, ErrorKind::Mismatch, ErrorKind::Superseded];
        let kind = error.kind();
        let right_kind = kind == ErrorKind::Corrupt || (self.files_differ && kinds.contains(&kind));
        let path = error.path().unwrap_or_default();
        let right_path = self.paths.is_empty() || self.paths.contains(&path);
        right_kind && right_path && self.spot.as_ref().is_none_or(|spot| *spot == Spot::of(error))
    }
}

impl Tally {
    /// Takes what `verify` and a load said of a damage.
    pub fn take(
        &mut self,
        what: impl Fn() -> String,
        (damage, loaded): (&[Error], &Result<()>),
        expected: &Expected<'_>,
    ) {
        self.tried += 1;
        let verified = !damage.is_empty() && damage.iter().all(|error| expected.fits(error));
        let refused = loaded.as_ref().is_err_and(|error| expected.fits(error));
        self.by_verify += u64::from(verified);
        self.by_load += u64::from(refused);
        if !(verified && refused) && self.unexpected.len() < LISTED {
            let text =
                format!("{}: expected {expected:?}; verify: {damage:?}; load: {loaded:?}", what());
            self.unexpected.push(text);
        }
    }

    pub fn tried(&self) -> u64 {
        self.tried
    }

    pub fn add(&mut self, other: Self) {
        self.tried += other.tried;
        self.by_verify += other.by_verify;
        self.by_load += other.by_load;
        self.unexpected.extend(other.unexpected);
    }

    /// Reports the figure.
    ///
    /// # Panics
    /// If a single case was not found by either, or was blamed on another place; or if there was none.
    pub fn all_found(&self, what: &str) {
        let Self { tried, by_verify, by_load, unexpected } = self;
        tier::figure(
            what,
            format!("{tried} tried, {by_verify} found by verify, {by_load} by a load"),
        );
        assert!(*tried > 0, "{what}: nothing was tried");
        assert!(unexpected.is_empty(), "{what}: {unexpected:#?}");
        assert_eq!((by_verify, by_load), (tried, tried), "{what}");
    }
}
