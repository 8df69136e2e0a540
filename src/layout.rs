//! Every name on disk, in one place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result, printable};
use crate::rank::{Rank, WorldSize};
#[cfg(feature = "sabotage")]
use crate::sabotage::{self, Defect};
use crate::tensor::Component;

mod code;
mod hugging_face;

pub(crate) use code::check_code_file;
use code::components;
pub use code::{CODE_BYTES_MAX, CODE_FILE_BYTES_MAX, CODE_FILES_MAX, is_code_path};
pub use hugging_face::HF_CONFIG;
pub(crate) use hugging_face::{
    EXPORT_COMPONENT, EXPORT_CONFIG, EXPORT_EPOCH, EXPORT_MARKS, EXPORT_SAVE_ID, EXPORT_STEP,
    HF_FILES_MAX, MODEL_CONFIG, PEFT_CONFIG, PEFT_MODEL, hf_file, hf_index, is_hf_index,
    parse_hf_file,
};

/// The commit record of a checkpoint, inside its directory.
pub const MANIFEST: &str = "manifest.bin";
/// The advisory lock of a directory of checkpoints.
pub const LOCK: &str = ".tch-checkpoint.lock";
/// The index that Hugging Face readers look for.
pub const HF_INDEX: &str = "model.safetensors.index.json";
/// The link to the newest checkpoint of a directory.
pub const LATEST: &str = "latest";
/// The link to the best checkpoint of a directory.
pub const BEST: &str = "best";
/// How the names of files with tensors end.
pub const SAFETENSORS: &str = ".safetensors";
/// Folder of a checkpoint that holds model source.
pub const CODE_DIR: &str = "code";

/// What some file systems have in their top directory, for the superuser alone.
pub(crate) const LOST_FOUND: &str = "lost+found";

/// Longest name of a checkpoint, in bytes; leaves room for what an attempt adds to it.
pub const CHECKPOINT_NAME_BYTES_MAX: usize = 200;
/// Longest name of a file inside a checkpoint, in bytes.
pub const FILE_NAME_BYTES_MAX: usize = 160;
/// Most components of the name of a file under [`CODE_DIR`].
const FILE_NAME_DEPTH_MAX: usize = 8;
/// Names that mean something else in a directory of checkpoints.
const RESERVED: [&str; 4] = [LATEST, BEST, "latest.json", "best.json"];

/// Identity of one attempt to save: 128 random bits, 32 hexadecimal digits in file names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SaveId([u8; 16]);

impl SaveId {
    /// A save id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A fresh save id from the operating system's random source.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if there is no such source.
    pub fn random() -> Result<Self> {
        #[cfg(feature = "sabotage")]
        if sabotage::is_on(Defect::Trusting) {
            return Ok(Self(sabotage::counted().to_be_bytes()));
        }
        let mut bytes = [0; 16];
        crate::clock::fill_random(&mut bytes).map_err(|e| {
            let message = format!("no random bytes for a save id: {e}");
            Error::new(ErrorKind::Unsupported, message)
        })?;
        Ok(Self(bytes))
    }

    /// Reads exactly what `Display` writes: 32 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for anything else.
    pub fn parse(hex: &str) -> Result<Self> {
        let invalid =
            || Error::new(ErrorKind::InvalidInput, format!("`{}` is no save id", shown(hex)));
        let digits = hex.as_bytes();
        if digits.len() != 32 {
            return Err(invalid());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let value = pair.iter().try_fold(0, |v, d| Some(v << 4 | hex_value(*d)?));
            *byte = value.ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn shown(name: &str) -> String {
    printable(name).chars().take(80).collect()
}

impl fmt::Display for SaveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SaveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SaveId({self})")
    }
}

/// Name of a checkpoint within its directory: one component that is neither hidden nor reserved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointName(String);

impl CheckpointName {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name, one over [`CHECKPOINT_NAME_BYTES_MAX`]
    /// bytes, one with `/` or control characters, one that begins with a dot, or a reserved one.
    pub fn new(name: &str) -> Result<Self> {
        let fault = if name.is_empty() {
            "is empty"
        } else if name.len() > CHECKPOINT_NAME_BYTES_MAX {
            "is longer than 200 bytes"
        } else if name.starts_with('.') {
            "begins with a dot"
        } else if name.contains('/') || name.chars().any(char::is_control) {
            "holds `/` or control characters"
        } else if RESERVED.contains(&name) {
            "is reserved for the links to the newest and the best checkpoint"
        } else {
            return Ok(Self(name.to_owned()));
        };
        let message = format!("checkpoint name `{}` {fault}", shown(name));
        Err(Error::new(ErrorKind::InvalidInput, message).with_help("choose another name"))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CheckpointName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(&name)
    }
}

impl From<CheckpointName> for String {
    fn from(name: CheckpointName) -> Self {
        name.0
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Directory of an attempt that is not committed.
#[must_use]
pub fn partial_dir(name: &CheckpointName, id: &SaveId) -> String {
    format!(".{name}.{id}.partial")
}

/// The file of one component, of several under one stem: `{stem}_{component}.safetensors`. A stem
/// that ends in `.safetensors` itself counts without that.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it would be too long for a name.
pub fn component_file(stem: &CheckpointName, component: &Component) -> Result<CheckpointName> {
    let stem = stem.as_str().strip_suffix(SAFETENSORS).unwrap_or(stem.as_str());
    CheckpointName::new(&format!("{stem}_{component}{SAFETENSORS}"))
}

/// The stem of the name of a `model` file that [`component_file`] made; `None` for other names.
#[must_use]
pub fn stem_of(name: &CheckpointName) -> Option<CheckpointName> {
    let ending = format!("_{}{SAFETENSORS}", Component::model());
    CheckpointName::new(name.as_str().strip_suffix(&ending)?).ok()
}

/// Where a checkpoint waits while its successor takes its name.
#[must_use]
pub fn old_dir(name: &CheckpointName, id: &SaveId) -> String {
    format!(".{name}.{id}.old")
}

/// The JSON beside a pointer, [`LATEST`] or [`BEST`].
#[must_use]
pub fn pointer_json(pointer: &str) -> String {
    format!("{pointer}.json")
}

/// Where a pointer is made before it takes its name.
#[must_use]
pub fn pointer_temporary(id: &SaveId) -> String {
    format!(".pointer-{id}")
}

/// Where a checkpoint or an attempt goes before it is unlinked.
#[must_use]
pub fn trash_dir(id: &SaveId) -> String {
    format!(".trash-{id}")
}

/// The pin beside a checkpoint: while it is there, no policy removes the checkpoint. Its content
/// means nothing, so that `touch` makes one.
#[must_use]
pub fn pin_file(name: &CheckpointName) -> String {
    format!(".{name}.pin")
}

/// The checkpoint that a name made by [`pin_file`] pins; `None` for any other name.
#[must_use]
pub fn parse_pin_file(entry_name: &str) -> Option<CheckpointName> {
    CheckpointName::new(entry_name.strip_prefix('.')?.strip_suffix(".pin")?).ok()
}

/// A data file of `rank`; `nth` counts its files of one component from 0.
#[must_use]
pub fn data_file(
    component: &Component,
    rank: Rank,
    world: WorldSize,
    nth: u32,
    id: &SaveId,
) -> String {
    let ordinal = if nth == 0 { String::new() } else { format!("-{}", u64::from(nth) + 1) };
    format!("{component}-{}{ordinal}.{id}.safetensors", share(rank, world))
}

/// The file with the block sums of all data files of `rank`.
#[must_use]
pub fn sums_file(rank: Rank, world: WorldSize, id: &SaveId) -> String {
    format!("sums-{}.{id}.bin", share(rank, world))
}

/// `00001-of-00004`: ranks are counted from 1 in file names, as Hugging Face does.
fn share(rank: Rank, world: WorldSize) -> String {
    format!("{:05}-of-{:05}", u64::from(rank.get()) + 1, world.get())
}

/// What the name of a data file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFileName {
    /// The component whose tensors it holds.
    pub component: Component,
    /// The rank that wrote it.
    pub rank: Rank,
    /// World size of that save.
    pub world_size: WorldSize,
    /// Count of this rank's files of the component before it.
    pub nth: u32,
    /// The save that wrote it.
    pub save_id: SaveId,
}

impl DataFileName {
    /// Reads exactly what [`data_file`] writes; `None` for any other name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (share, save_id) = split_save_id(name.strip_suffix(".safetensors")?)?;
        let (component, share) = share.split_once('-')?;
        let component = Component::new(component).ok()?;
        let (share, nth) = match share.splitn(4, '-').collect::<Vec<_>>()[..] {
            [_, _, _] => (share, 0),
            [_, _, _, ordinal] => {
                let nth = ordinal.parse::<u64>().ok()?.checked_sub(1)?;
                (share.strip_suffix(ordinal)?.strip_suffix('-')?, u32::try_from(nth).ok()?)
            }
            _ => return None,
        };
        let (rank, world_size) = parse_share(share)?;
        let parsed = Self { component, rank, world_size, nth, save_id };
        (data_file(&parsed.component, rank, world_size, nth, &save_id) == name).then_some(parsed)
    }
}

/// The save id in a name that [`sums_file`] wrote; `None` for any other name.
#[must_use]
pub fn parse_sums_file(name: &str) -> Option<SaveId> {
    let (share, save_id) = split_save_id(name.strip_suffix(".bin")?)?;
    let (rank, world_size) = parse_share(share.strip_prefix("sums-")?)?;
    (sums_file(rank, world_size, &save_id) == name).then_some(save_id)
}

fn split_save_id(name: &str) -> Option<(&str, SaveId)> {
    let (rest, id) = name.rsplit_once('.')?;
    Some((rest, SaveId::parse(id).ok()?))
}

fn parse_share(share: &str) -> Option<(Rank, WorldSize)> {
    let (rank, world) = share.split_once("-of-")?;
    let rank = rank.parse::<u32>().ok()?.checked_sub(1)?;
    let world = WorldSize::new(world.parse().ok()?).ok()?;
    (rank < world.get()).then_some((Rank::new(rank), world))
}

/// Whether `name` is one harmless component: 1 to [`FILE_NAME_BYTES_MAX`] of `[A-Za-z0-9._-]`,
/// not beginning with a dot.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    components(name.as_bytes()) == 1
}

/// Whether `name` may be a file besides data and sums: a [`is_file_name`] that is not the
/// manifest, or several of them joined by `/` under [`CODE_DIR`].
#[must_use]
pub fn is_other_file_name(name: &str) -> bool {
    match name.split_once('/') {
        None => is_file_name(name) && name != MANIFEST,
        Some((folder, path)) => folder == CODE_DIR && is_code_path(path),
    }
}

/// What an attempt, a deletion or the move of a pointer left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Debris {
    /// An attempt, live or dead.
    Partial {
        /// The checkpoint it was to become.
        name: CheckpointName,
        /// The attempt.
        save_id: SaveId,
    },
    /// A checkpoint that was being replaced.
    Old {
        /// The name it had.
        name: CheckpointName,
        /// The attempt that replaced it.
        save_id: SaveId,
    },
    /// Something being deleted.
    Trash {
        /// The id in its name.
        save_id: SaveId,
    },
    /// A pointer that did not take its name: a link or a file, the others are directories.
    Pointer {
        /// The id in its name.
        save_id: SaveId,
    },
}

impl Debris {
    /// Recognises names made by [`partial_dir`], [`old_dir`], [`trash_dir`] and
    /// [`pointer_temporary`], and nothing else.
    #[must_use]
    pub fn parse(entry_name: &str) -> Option<Self> {
        let hidden = entry_name.strip_prefix('.')?;
        let parts = |rest: &str| {
            let (name, save_id) = split_save_id(rest)?;
            Some((CheckpointName::new(name).ok()?, save_id))
        };
        if let Some(rest) = hidden.strip_suffix(".partial") {
            return parts(rest).map(|(name, save_id)| Self::Partial { name, save_id });
        }
        if let Some(rest) = hidden.strip_suffix(".old") {
            return parts(rest).map(|(name, save_id)| Self::Old { name, save_id });
        }
        if let Some(id) = hidden.strip_prefix("pointer-") {
            return SaveId::parse(id).ok().map(|save_id| Self::Pointer { save_id });
        }
        let save_id = SaveId::parse(hidden.strip_prefix("trash-")?).ok()?;
        Some(Self::Trash { save_id })
    }
}

#[cfg(test)]
mod tests;
