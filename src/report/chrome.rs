//! Events in Chrome's format, which `chrome://tracing` and Perfetto read: an array whose end may
//! be missing, so that a job that was killed leaves a trace that can be read.
//!
//! Format: "Trace Event Format", Google, section "JSON Array Format".

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::WriteTimes;
use crate::rank::Rank;

/// What every trace begins with.
pub(crate) const BEGIN: &str = "[\n";

/// What stands before every event but the first.
const NEXT: &str = ",\n";

/// Stands for the rank in the name of a trace.
const RANK: &str = "%r";

/// In which row of its rank an event is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// What the caller waits for.
    Caller,
    /// What a save beside training does.
    Beside,
}

impl Row {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Caller => 1,
            Self::Beside => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Beside => "beside training",
        }
    }
}

/// Something that a rank did from then to then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event<'a> {
    pub(crate) name: &'a str,
    /// Of what it is a part: `save` or `load`.
    pub(crate) of: &'a str,
    pub(crate) rank: Rank,
    pub(crate) row: Row,
    /// Since 1970.
    pub(crate) begin: Duration,
    pub(crate) time: Duration,
    /// The checkpoint.
    pub(crate) path: &'a str,
    /// That it is saved at.
    pub(crate) step: Option<u64>,
    pub(crate) bytes: Option<u64>,
    /// Sums over what ran beside each other.
    pub(crate) write: Option<WriteTimes>,
    pub(crate) failed: bool,
}

impl Event<'_> {
    /// What it appends to a trace. Begin and end are rounded alike, so that events stay inside one
    /// another.
    pub(crate) fn appended(&self) -> String {
        let begin = micros(self.begin);
        let mut args = Map::new();
        args.insert("path".to_owned(), self.path.into());
        if let Some(step) = self.step {
            args.insert("step".to_owned(), step.into());
        }
        if let Some(bytes) = self.bytes {
            args.insert("bytes".to_owned(), bytes.into());
        }
        if let Some(WriteTimes { stage, hash, write, fsync, .. }) = self.write {
            let parts = [("stage", stage), ("hash", hash), ("write", write), ("fsync", fsync)];
            let parts = parts.map(|(part, time)| (format!("{part}_us"), micros(time).into()));
            args.extend(parts);
        }
        if self.failed {
            args.insert("failed".to_owned(), Value::Bool(true));
        }
        let event = json!({
            "name": self.name,
            "cat": self.of,
            "ph": "X",
            "ts": begin,
            "dur": micros(self.begin + self.time) - begin,
            "pid": self.rank.get(),
            "tid": self.row.number(),
            "args": args,
        });
        format!("{NEXT}{event}")
    }
}

/// A new trace: the names of a rank and its rows.
pub(crate) fn begin(rank: Rank) -> String {
    let named = |what: &str, row: u32, name: String| {
        let pid = rank.get();
        json!({"name": what, "ph": "M", "pid": pid, "tid": row, "args": {"name": name}}).to_string()
    };
    let row = |row: Row| named("thread_name", row.number(), row.name().to_owned());
    let process = named("process_name", 0, format!("rank {rank}"));
    BEGIN.to_owned() + &[process, row(Row::Caller), row(Row::Beside)].join(NEXT)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The trace of one rank: `%r` in the name of the file stands for its number; else that of the
/// coordinator has the name as it is, and `trace.json` of rank 3 is `trace.rank3.json`.
pub(crate) fn file_of(pattern: &Path, rank: Rank) -> PathBuf {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    if name.contains(RANK) {
        return pattern.with_file_name(name.replace(RANK, &rank.to_string()));
    }
    if rank.is_coordinator() {
        return pattern.to_path_buf();
    }
    let name = match pattern.extension().map(|extension| extension.to_string_lossy()) {
        Some(extension) => {
            let stem = pattern.file_stem().unwrap_or_default().to_string_lossy();
            format!("{stem}.rank{rank}.{extension}")
        }
        None => format!("{name}.rank{rank}"),
    };
    pattern.with_file_name(name)
}
