//! What `latest` and `best` say: links, and the same as small JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName};
use crate::manifest::CheckpointInfo;
use crate::memory::zeroed;
use crate::storage::Directory;

/// Version of the JSON of a pointer.
const POINTER_VERSION: u32 = 1;
/// The longest pointer that is read, or written with its metrics.
const POINTER_BYTES_MAX: usize = 1 << 20;

/// What `latest.json` and `best.json` hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    #[serde(rename = "tch_checkpoint_pointer")]
    version: u32,
    /// The checkpoint, in the same directory.
    pub(crate) name: CheckpointName,
    /// The save under that name, as it is written in names of files.
    save_id: String,
    step: u64,
    epoch: u64,
    metrics: BTreeMap<String, Number>,
    created_unix_ms: u64,
}

/// A number; JSON has no NaN and no infinities: those are text, `NaN`, `inf` and `-inf`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Text(String),
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        if value.is_finite() { Self::Finite(value) } else { Self::Text(value.to_string()) }
    }
}

impl Pointer {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for what is no committed checkpoint.
    pub(crate) fn to(info: &CheckpointInfo) -> Result<Self> {
        let save_id = info.save_id.filter(|_| info.is_committed()).ok_or_else(|| {
            let message = format!("`{}` is not committed, nothing may point to it", info.name);
            Error::new(ErrorKind::InvalidInput, message)
        })?;
        let metrics = info.metrics.iter().map(|(name, value)| (name.clone(), (*value).into()));
        Ok(Self {
            version: POINTER_VERSION,
            name: CheckpointName::new(&info.name)?,
            save_id: save_id.to_string(),
            step: info.step,
            epoch: info.epoch,
            metrics: metrics.collect(),
            created_unix_ms: info.created_unix_ms,
        })
    }

    /// Its JSON with a line break at the end. Metrics that would make it longer than what is read
    /// are left out.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let bytes = self.to_json()?;
        if bytes.len() <= POINTER_BYTES_MAX {
            return Ok(bytes);
        }
        Self { metrics: BTreeMap::new(), ..self.clone() }.to_json()
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("no JSON form: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// What a pointer names: by the text of its link, else by its JSON. `None` if there is neither.
///
/// # Errors
/// [`ErrorKind::Storage`].
pub(crate) fn read(parent: &dyn Directory, pointer: &str) -> Result<Option<Named>> {
    match read_link(parent, pointer)? {
        None => Ok(read_json(parent, pointer)?.map(Ok)),
        named => Ok(named),
    }
}

/// A checkpoint of the directory, or the text of a link that leads out of it, to a hidden entry or
/// to another pointer.
pub(crate) type Named = std::result::Result<CheckpointName, String>;

/// What the link of a pointer names, if there is one.
pub(crate) fn read_link(parent: &dyn Directory, pointer: &str) -> Result<Option<Named>> {
    match parent.read_link(pointer) {
        Ok(text) => Ok(Some(CheckpointName::new(&text).map_err(|_| text))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What the JSON of a pointer names, if there is one.
pub(crate) fn read_json(parent: &dyn Directory, pointer: &str) -> Result<Option<CheckpointName>> {
    let bytes = read_file(parent, &layout::pointer_json(pointer))?;
    Ok(bytes.and_then(|bytes| parse(&bytes)).map(|pointer| pointer.name))
}

/// The bytes of a regular file that may be a pointer.
pub(crate) fn read_file(parent: &dyn Directory, name: &str) -> Result<Option<Vec<u8>>> {
    let file = match parent.open_file(name) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => return Ok(None),
        opened => opened?,
    };
    if file.len() > POINTER_BYTES_MAX as u64 {
        return Ok(None);
    }
    let mut bytes = zeroed(file.len())?;
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

/// A pointer, of this or a later version; `None` for any other file.
pub(crate) fn parse(bytes: &[u8]) -> Option<Pointer> {
    serde_json::from_slice(bytes).ok()
}
