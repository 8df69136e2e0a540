//! What a rank writes down for the driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tch_checkpoint::Error;

/// How it ended on one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `None` if all went well.
    pub error: Option<Seen>,
    /// When the call ended that failed.
    pub ended: SystemTime,
    /// The names of what this rank was told to be committed.
    pub acked: Vec<String>,
}

/// What a rank was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub kind: String,
    pub rank: Option<u32>,
    pub phase: Option<String>,
    pub text: String,
    pub code: u8,
}

impl Seen {
    pub fn of(error: &Error) -> Self {
        Self {
            kind: format!("{:?}", error.kind()),
            rank: error.rank().map(|rank| rank.get()),
            phase: error.phase().map(str::to_owned),
            text: error.to_string(),
            code: error.exit_code(),
        }
    }
}

pub fn path(dir: &Path, rank: u32) -> PathBuf {
    dir.join(format!("report{rank}"))
}

/// All of it or nothing.
pub fn write(dir: &Path, rank: u32, report: &Report) {
    let path = path(dir, rank);
    let part = path.with_extension("part");
    fs::write(&part, serde_json::to_vec(report).unwrap()).unwrap();
    fs::rename(part, path).unwrap();
}

pub fn read(dir: &Path, rank: u32) -> Option<Report> {
    let bytes = fs::read(path(dir, rank)).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}
