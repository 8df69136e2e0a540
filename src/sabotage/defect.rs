//! The defects, each a promise that is not kept.

/// A defect that a build with the feature `sabotage` can be given: proof that the tests which are
/// to find it are tests. Its doc says which `Sn` it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    /// S1: files with tensors and block sums are closed without an fsync.
    DataNotSynced,
    /// S2: the manifest (of a single file: its header) is closed without an fsync.
    ManifestNotSynced,
    /// S3: neither the directory of an attempt nor, after the rename, its parent is fsynced.
    DirectoriesNotSynced,
    /// S4: an attempt gets its name first and its manifest then.
    ManifestAfterRename,
    /// S5: the coordinator decides by the votes that are good, as if no others were missing.
    VotesNotAwaited,
    /// S6: no rank gives up on a silent one.
    NoDeadline,
    /// S7: what is replaced is deleted before its successor is there, and deleting does without
    /// trash and its fsync.
    CarelessDeletion,
    /// S8: block sums are not compared, and the last byte of a manifest is not looked at.
    SumsNotCompared,
    /// S9: errors of fsync and close of a file are not heeded.
    FinishErrorsIgnored,
    /// S10: what can be broadcast, or has elements of the same width, counts as fitting.
    LaxTensors,
    /// S11: a save beside training refers to the state instead of copying it, and succeeds
    /// whatever happens to it.
    LaxBackground,
    /// S12: links are followed, the clock decides what is newest, save ids can be guessed.
    Trusting,
}

#[cfg(feature = "sabotage")]
impl Defect {
    /// All of them; `S1` is the first.
    pub(super) const ALL: [Self; 12] = [
        Self::DataNotSynced,
        Self::ManifestNotSynced,
        Self::DirectoriesNotSynced,
        Self::ManifestAfterRename,
        Self::VotesNotAwaited,
        Self::NoDeadline,
        Self::CarelessDeletion,
        Self::SumsNotCompared,
        Self::FinishErrorsIgnored,
        Self::LaxTensors,
        Self::LaxBackground,
        Self::Trusting,
    ];

    /// The one that is written so: `S` and a number from 1 to 12.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number: usize = text.strip_prefix('S')?.parse().ok()?;
        let found = Self::ALL.get(number.checked_sub(1)?)?;
        (format!("S{number}") == text).then_some(*found)
    }
}
