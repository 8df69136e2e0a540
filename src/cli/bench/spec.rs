//! A spec: which tensors a workload has, and the seed of their bytes. One that exists has names
//! that differ, and bytes that can be counted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{Dtype, TensorName, TensorSpec};

/// Most tensors of a spec.
pub(super) const TENSORS_MAX: usize = 1_000_000;
/// Longest file that is read as a spec.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Longest name of a workload.
const NAME_BYTES_MAX: usize = 200;
/// Each tensor begins at a multiple of it in the stream of all bytes: a word.
const WORD: u64 = 8;

/// What is saved and loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    name: String,
    seed: u64,
    tensors: Vec<SpecTensor>,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpecTensor {
    pub(super) name: TensorName,
    pub(super) spec: TensorSpec,
    /// Where it begins in the stream of all bytes.
    pub(super) at: u64,
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
struct Text {
    name: String,
    seed: u64,
    tensors: Vec<(String, Vec<u64>, String)>,
}

impl Spec {
    /// # Errors
    /// [`ErrorKind::InvalidInput`], naming the tensor, for what no checkpoint can hold, names that
    /// occur twice, and more tensors or bytes than can be counted.
    pub(super) fn new(
        name: impl Into<String>,
        seed: u64,
        tensors: impl IntoIterator<Item = (TensorName, TensorSpec)>,
    ) -> Result<Self> {
        let name = name.into();
        if name.len() > NAME_BYTES_MAX {
            return Err(bad("the name of the workload is longer than 200 bytes"));
        }
        let (mut seen, mut laid, mut bytes, mut end) = (BTreeSet::new(), Vec::new(), 0, 0);
        for (name, spec) in tensors {
            let of = |e: Error| e.with_tensor(name.as_str());
            if laid.len() == TENSORS_MAX {
                return Err(bad(format!("more than {TENSORS_MAX} tensors")));
            }
            if !seen.insert(name.clone()) {
                return Err(of(bad("a name that occurs twice")));
            }
            let size = spec.size_bytes();
            let too_large = || of(bad("the tensors together have more bytes than can be counted"));
            bytes = counted(bytes, size).ok_or_else(too_large)?;
            let at = end;
            let next = size.checked_next_multiple_of(WORD);
            end = next.and_then(|next| counted(end, next)).ok_or_else(too_large)?;
            laid.push(SpecTensor { name, spec, at });
        }
        Ok(Self { name, seed, tensors: laid, bytes })
    }

    /// Reads a spec that `bench workload` printed, or that was written by hand.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Storage`] for a file that cannot be read; else as
    /// [`Spec::parse`].
    pub(super) fn read(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(&e, "reading the spec", path);
        let file = File::open(path).map_err(failed)?;
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(bad("the spec is longer than 256 MiB").with_path(path));
        }
        Self::parse(&text).map_err(|e| {
            e.with_path(path).with_help("`tch-checkpoint bench workload W2` prints a spec")
        })
    }

    /// # Errors
    /// [`ErrorKind::InvalidInput`] for text that is no spec; as [`Spec::new`].
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let text: Text =
            serde_json::from_slice(text).map_err(|e| bad(format!("not a spec: {e}")))?;
        let tensor = |(name, shape, dtype): (String, Vec<u64>, String)| {
            let name = TensorName::new(name)?;
            let Some(dtype) = Dtype::parse(&dtype) else {
                let known = Dtype::ALL.map(Dtype::as_str).join(", ");
                let message = format!("dtype `{dtype}` is none of {known}");
                return Err(bad(message).with_tensor(name.as_str()));
            };
            let spec = TensorSpec::new(dtype, shape).map_err(|e| e.with_tensor(name.as_str()))?;
            Ok((name, spec))
        };
        let tensors = text.tensors.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
        Self::new(text.name, text.seed, tensors)
    }

    /// One line of JSON, which [`Spec::parse`] reads.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn to_json(&self) -> Result<String> {
        let tensor = |t: &SpecTensor| {
            (t.name.to_string(), t.spec.shape().to_vec(), t.spec.dtype().to_string())
        };
        let tensors = self.tensors.iter().map(tensor).collect();
        let text = Text { name: self.name.clone(), seed: self.seed, tensors };
        serde_json::to_string(&text).map_err(|e| bad(e.to_string()))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn tensors(&self) -> &[SpecTensor] {
        &self.tensors
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The sum, as long as a file can be that long.
fn counted(sum: u64, more: u64) -> Option<u64> {
    sum.checked_add(more).filter(|sum| i64::try_from(*sum).is_ok())
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(tensors: &str) -> Error {
        let text = format!(r#"{{"name": "x", "seed": 1, "tensors": [{tensors}]}}"#);
        Spec::parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_no_state_can_be_is_refused_with_its_name() {
        let many = format!(r#"["d", [{}1], "U8"]"#, "1,".repeat(64));
        let cases = [
            (r#"["a", [2], "F32"], ["a", [2], "F32"]"#, "occurs twice"),
            (r#"["b", [2], "F31"]"#, "`F31` is none of BOOL"),
            (r#"["c", [4294967296, 4294967296], "U8"]"#, "overflows"),
            (&many, "65 dimensions"),
            (r#"["e", [9223372036854775807], "U8"], ["f", [1], "U8"]"#, "than can be counted"),
            (r#"["", [1], "U8"]"#, "is empty"),
            (r#"["g", [-1], "U8"]"#, "not a spec"),
            (r#"["g", [1.5], "U8"]"#, "not a spec"),
            (r#"["g", [1]]"#, "not a spec"),
        ];
        for (tensors, words) in cases {
            let error = error(tensors);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(words), "{words} is not in {error}");
        }
        assert_eq!(error(r#"["a", [2], "F32"], ["a", [2], "F32"]"#).tensor(), Some("a"));
    }

    #[test]
    fn tensors_begin_at_words() {
        let text = br#"{"name": "x", "seed": 7, "extra": 0,
            "tensors": [["a", [3], "U8"], ["b", [], "F64"], ["c", [0, 5], "F32"], ["d", [1], "BF16"]]}"#;
        let spec = Spec::parse(text).unwrap();
        let at: Vec<u64> = spec.tensors().iter().map(|t| t.at).collect();
        assert_eq!((at, spec.bytes(), spec.seed()), (vec![0, 8, 16, 16], 3 + 8 + 2, 7));
        assert_eq!(Spec::parse(spec.to_json().unwrap().as_bytes()).unwrap(), spec);
    }
}
