//! Traces, as `TCH_CHECKPOINT_TRACE` makes processes write them: one event in a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::shown;

/// Longer lines are no events.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// So many events are read, of all traces together.
const EVENTS_MAX: usize = 1_000_000;
/// With so many bytes of names and paths.
const TEXT_BYTES_MAX: usize = 256 << 20;

/// Something that a rank did of a save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) rank: u32,
    /// In the row of what a save beside training does.
    pub(super) is_beside: bool,
    /// Since 1970.
    pub(super) begin: Duration,
    pub(super) time: Duration,
    pub(super) path: String,
    pub(super) bytes: Option<u64>,
    pub(super) step: Option<u64>,
    pub(super) failed: bool,
}

impl Event {
    pub(super) fn end(&self) -> Duration {
        self.begin.saturating_add(self.time)
    }
}

/// What traces say.
#[derive(Debug, Default)]
pub(super) struct Traces {
    pub(super) events: Vec<Event>,
    /// Lines that are no events: also what was cut off when its process was killed.
    pub(super) unreadable: usize,
    /// Whether there were more events than are read.
    pub(super) is_cut: bool,
    text_bytes: usize,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    #[serde(default)]
    cat: String,
    ph: String,
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    dur: u64,
    pid: u32,
    #[serde(default)]
    tid: u32,
    #[serde(default)]
    args: Arguments,
}

#[derive(Deserialize, Default)]
struct Arguments {
    #[serde(default)]
    path: String,
    bytes: Option<u64>,
    step: Option<u64>,
    #[serde(default)]
    failed: bool,
}

impl Traces {
    /// Adds the saves of one trace.
    pub(super) fn read(&mut self, path: &Path) -> Result<()> {
        let failed = |e: &std::io::Error| Error::io(e, "reading a trace", path);
        let file = File::open(path).map_err(|e| failed(&e))?;
        if !file.metadata().map_err(|e| failed(&e))?.is_file() {
            return Err(no_trace(path));
        }
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        let mut is_first = true;
        loop {
            line.clear();
            let read = lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if read.map_err(|e| failed(&e))? == 0 {
                return Ok(());
            }
            if std::mem::take(&mut is_first) {
                if line != b"[\n" {
                    return Err(no_trace(path));
                }
                continue;
            }
            if self.events.len() >= EVENTS_MAX || self.text_bytes > TEXT_BYTES_MAX {
                self.is_cut = true;
                return Ok(());
            }
            self.line(&line);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.trim_ascii();
        let line = line.strip_suffix(b",").unwrap_or(line);
        if line.is_empty() || line == b"]" {
            return;
        }
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            self.unreadable += 1;
            return;
        };
        if line.ph == "X" && line.cat == "save" {
            self.text_bytes += line.name.len() + line.args.path.len();
            self.events.push(Event {
                name: line.name,
                rank: line.pid,
                is_beside: line.tid == crate::report::chrome::Row::Beside.number(),
                begin: Duration::from_micros(line.ts),
                time: Duration::from_micros(line.dur),
                path: line.args.path,
                bytes: line.args.bytes,
                step: line.args.step,
                failed: line.args.failed,
            });
        }
    }
}

fn no_trace(path: &Path) -> Error {
    let message = format!("{} is no trace of this library", shown::path(path));
    Error::new(ErrorKind::InvalidInput, message)
        .with_help("traces are what processes write that have TCH_CHECKPOINT_TRACE set")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Traces> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        std::fs::write(&path, text).unwrap();
        let mut traces = Traces::default();
        traces.read(&path).map(|()| traces)
    }

    #[test]
    fn a_trace_is_read_as_far_as_it_goes() {
        let event = r#"{"name":"plan","cat":"save","ph":"X","ts":5,"dur":2,"pid":3,"tid":2,"args":{"path":"a"}}"#;
        let load = event.replace("\"save\"", "\"load\"");
        let name = r#"{"name":"process_name","ph":"M","pid":3,"tid":0,"args":{"name":"rank 3"}}"#;
        let traces = read(&format!("[\n{name},\n{event},\n{load},\n{event},\n{{\"na")).unwrap();
        assert_eq!((traces.events.len(), traces.unreadable), (2, 1));
        let first = &traces.events[0];
        assert_eq!((first.rank, first.is_beside, first.end()), (3, true, Duration::from_micros(7)));
    }

    #[test]
    fn names_and_paths_take_no_more_memory_than_there_is_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let event = r#"{"name":"save","cat":"save","ph":"X","pid":0,"args":{"path":"a"}},"#;
        std::fs::write(&path, format!("[\n{event}\n{event}\n")).unwrap();
        for (text_bytes, events) in [(0, 2), (TEXT_BYTES_MAX, 1), (TEXT_BYTES_MAX + 1, 0)] {
            let mut traces = Traces { text_bytes, ..Traces::default() };
            traces.read(&path).unwrap();
            assert_eq!((traces.events.len(), traces.is_cut), (events, events < 2));
        }
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for text in ["notes\n", "{}", "[1]"] {
            assert_eq!(read(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
        assert!(read("").unwrap().events.is_empty());
        let long = format!("[\n\"{}\"\n", "x".repeat(1 << 20));
        assert!(read(&long).unwrap().unreadable > 0);
    }
}
