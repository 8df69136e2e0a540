//! Standard output without panics, and what ends a verb.

use std::fmt::Display;
use std::io::{self, IsTerminal, StdoutLock, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, printable};
use crate::shown;

/// Why a verb ended early.
pub(super) enum Stop {
    Error(Error),
    /// The reader of our output has seen enough (`| head`).
    ClosedPipe,
    /// Our output cannot be written: no word about any checkpoint, so neither is the exit code.
    Output(io::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The code of a verdict that stands even if the reader of the text about it has left.
pub(super) fn verdict(code: u8, said: Result<(), Stop>) -> Result<u8, Stop> {
    match said {
        Ok(()) | Err(Stop::ClosedPipe) => Ok(code),
        Err(stop) => Err(stop),
    }
}

/// In one piece, as other ranks write to the same place; if nobody reads it, nothing can be done.
pub(super) fn complain(error: &dyn Display) {
    drop(io::stderr().write_all(format!("tch-checkpoint: {error}\n").as_bytes()));
}

/// Standard output, on which every line is seen at once.
pub(super) struct Output<'a>(StdoutLock<'a>);

impl Output<'_> {
    pub(super) fn new() -> Self {
        Self(io::stdout().lock())
    }

    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Stop> {
        let text = printable(text.as_ref());
        writeln!(self.0, "{text}").and_then(|()| self.0.flush()).map_err(stop)
    }

    /// Whether nobody will read any more: the other end of a pipe was closed.
    pub(super) fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        polled.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
    }

    /// Lines of a terminal in the place of the last `drawn` ones.
    pub(super) fn redraw(&mut self, drawn: usize, lines: &[String]) -> Result<(), Stop> {
        let mut text = if drawn > 0 { format!("\x1b[{drawn}A\r\x1b[J") } else { String::new() };
        for line in lines {
            text.push_str(&shown::line(line));
            text.push('\n');
        }
        self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush()).map_err(stop)
    }

    /// One line of JSON, which stays JSON.
    pub(super) fn json(&mut self, value: &serde_json::Value) -> Result<(), Stop> {
        self.line(shown::json(value))
    }

    /// The text of a file: byte by byte, but for what could drive a terminal on a terminal.
    pub(super) fn text(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let written = if self.0.is_terminal() {
            self.0.write_all(for_terminal(bytes).as_bytes())
        } else {
            self.0.write_all(bytes)
        };
        written.and_then(|()| self.0.flush()).map_err(stop)
    }

    /// A table with an empty line before it.
    pub(super) fn table(&mut self, table: &comfy_table::Table) -> Result<(), Stop> {
        self.line("")?;
        self.rows(table)
    }

    /// A table.
    pub(super) fn rows(&mut self, table: &comfy_table::Table) -> Result<(), Stop> {
        table.lines().try_for_each(|line| self.line(line.trim_end()))
    }
}

/// Text without control characters, but for line breaks and tabs.
fn for_terminal(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split('\t').map(|part| printable(&part.replace("\r\n", "\n")));
    lines.collect::<Vec<_>>().join("\t")
}

fn stop(error: io::Error) -> Stop {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Stop::ClosedPipe;
    }
    Stop::Output(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cannot_drive_a_terminal() {
        let shown = for_terminal(b"fn a() {\r\n\t\"\x1b[2J\"\x07 \xff\n}");
        assert_eq!(shown, "fn a() {\n\t\"\\u{1b}[2J\"\\u{7} \u{fffd}\n}");
    }
}
