//! `doctor`: whether what training and checkpoints need is here, and what to do where it is not.
//!
//! Every look has a deadline, and nothing is left behind.

mod disk;
mod elf;
mod libraries;
mod network;
mod program;
mod system;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{Output, Stop};
use crate::shown::line;

#[derive(Args)]
pub(super) struct Doctor {
    /// Where checkpoints are to go.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// A program that trains: whether it was linked so that it keeps CUDA.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// One JSON object for each thing instead of text.
    #[arg(long)]
    json: bool,
}

/// How it is with a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// Works, or is not needed by everybody.
    Warning,
    /// Something will fail.
    Problem,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What was found of one thing.
#[derive(Debug, Clone)]
struct Finding {
    check: &'static str,
    level: Level,
    said: String,
    /// What to do.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, said: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, said: said.into(), fix: None }
    }

    fn warning(check: &'static str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, said: said.into(), fix: Some(fix.into()) }
    }

    fn problem(check: &'static str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Problem, said: said.into(), fix: Some(fix.into()) }
    }

    fn lines(&self) -> Vec<String> {
        let (level, check) = (self.level.as_str(), self.check);
        let mut lines = vec![format!("{level:7}  {check:8}  {}", line(&self.said))];
        let fix = self.fix.iter().map(|fix| format!("{:19}-> {}", "", line(fix)));
        lines.extend(fix);
        lines
    }

    fn as_json(&self) -> serde_json::Value {
        json!({
            "check": self.check, "level": self.level.as_str(), "said": self.said, "fix": self.fix,
        })
    }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Doctor) -> Result<u8, Stop> {
    let dir = arguments.dir.clone();
    let program = arguments.program.clone();
    let looks: [Box<dyn FnOnce() -> Vec<Finding>>; 9] = [
        Box::new(libraries::libtorch),
        Box::new(move || program.map_or_else(Vec::new, |path| program::linked(&path))),
        Box::new(libraries::cuda),
        Box::new(libraries::nccl),
        Box::new(libraries::mpi),
        Box::new(network::ports),
        Box::new(move || disk::disk(&dir)),
        Box::new(system::clock),
        Box::new(system::limits),
    ];
    let mut counts = [0usize; 3];
    for look in looks {
        for finding in look() {
            if let Some(count) = counts.get_mut(finding.level as usize) {
                *count += 1;
            }
            if arguments.json {
                out.json(&finding.as_json())?;
            } else {
                finding.lines().into_iter().try_for_each(|text| out.line(text))?;
            }
        }
    }
    if !arguments.json {
        let [ok, warnings, problems] = counts;
        out.line("")?;
        out.line(format!("{ok} ok, {warnings} warnings, {problems} problems"))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_what_to_do_another_one() {
        let finding = Finding::problem("disk", "full\u{1b}[2J", "remove something");
        let lines = finding.lines();
        assert_eq!(lines[1], "                   -> remove something");
        assert!(lines[0].starts_with("problem  disk      full"), "{}", lines[0]);
        assert!(!lines[0].contains('\u{1b}'));
        assert_eq!(Finding::ok("clock", "right").lines(), ["ok       clock     right"]);
        assert_eq!(finding.as_json()["fix"], "remove something");
    }
}
