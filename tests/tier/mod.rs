//! How much a test does (the short tier or the long one), what it needs of the machine, and the
//! figures that it reports.
//!
//! `TCH_CHECKPOINT_TEST_TIER=full` asks for the long tier; the default is the short one.
//! `TCH_CHECKPOINT_TEST_WITHOUT=root,strace` opts out of tests whose needs cannot be met: they then
//! say `SKIPPED`. Without it a need that is not met is a failure, never a silent pass.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::Path;
use std::process::{Command, Stdio};

const OPT_OUT: &str = "TCH_CHECKPOINT_TEST_WITHOUT";
/// The one without windows comes first.
const CHROMIUM: [&str; 4] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
const TIER: &str = "TCH_CHECKPOINT_TEST_TIER";
const PYTHON: &str = "TCH_CHECKPOINT_PYTHON";

/// `short` as a rule, `full` in the long tier.
pub fn count(short: u64, full: u64) -> u64 {
    if is_full() { full } else { short }
}

/// Whether the long tier is asked for.
pub fn is_full() -> bool {
    match std::env::var(TIER).as_deref() {
        Err(_) | Ok("" | "short") => false,
        Ok("full") => true,
        Ok(other) => panic!("{TIER} is `{other}`: `short` or `full`"),
    }
}

/// Something of the machine that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To be root: mounting, quotas.
    Root,
    /// A loop device for an image.
    Loop,
    /// FUSE, for block devices that fail or record.
    Fuse,
    /// Block devices that can be made slow: cgroups (version 1) with `blkio`.
    Blkio,
    /// Chromium, by any of the names under which systems have it.
    Chromium,
    /// A program, by its name.
    Program(&'static str),
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Loop => "loop",
            Self::Fuse => "fuse",
            Self::Blkio => "blkio",
            Self::Chromium => "chromium",
            Self::Program(name) => name,
        }
    }

    fn is_met(self) -> bool {
        match self {
            Self::Root => rustix::process::geteuid().is_root(),
            Self::Loop => Path::new("/dev/loop-control").exists(),
            Self::Fuse => Path::new("/dev/fuse").exists(),
            Self::Blkio => {
                Path::new("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device").exists()
            }
            Self::Chromium => CHROMIUM.into_iter().any(exists),
            Self::Program(name) => exists(name),
        }
    }
}

/// Whether the test can go on; `false` only if the user has opted out of a need, which is said.
///
/// # Panics
/// If a need is not met and nobody opted out of it.
pub fn has(needs: &[Need]) -> bool {
    let opted_out = std::env::var(OPT_OUT).unwrap_or_default();
    let opted_out: Vec<&str> = opted_out.split(',').map(str::trim).collect();
    if let Some(need) = needs.iter().find(|need| opted_out.contains(&need.name())) {
        say(&format!("SKIPPED, since {OPT_OUT} names `{}`", need.name()));
        return false;
    }
    let missing: Vec<_> = needs.iter().filter(|n| !n.is_met()).map(|n| n.name()).collect();
    assert!(
        missing.is_empty(),
        "this test needs {missing:?}, which this machine has not: run launch/setup.sh --tests as \
         root, or opt out with {OPT_OUT}={}",
        missing.join(",")
    );
    true
}

/// A measured figure, for `tests/full.sh` to collect.
pub fn figure(what: &str, figure: impl std::fmt::Display) {
    say(&format!("figure: {what}: {figure}"));
}

/// A Python that has these modules: the one that `TCH_CHECKPOINT_PYTHON` names, else `python3`.
/// `None`, which is said, if the latter has them not.
///
/// # Panics
/// If a Python was named and has them not.
pub fn python(modules: &str) -> Option<Command> {
    let named = std::env::var_os(PYTHON);
    let program = named.clone().unwrap_or_else(|| "python3".into());
    let mut asked = Command::new(&program);
    asked.args(["-c", &format!("import {modules}")]).stdin(Stdio::null());
    if asked.output().is_ok_and(|ran| ran.status.success()) {
        let mut command = Command::new(program);
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
        return Some(command);
    }
    assert!(named.is_none(), "{PYTHON} names {program:?}, which has not {modules}");
    say(&format!("SKIPPED: python3 has not {modules}, and {PYTHON} names no other"));
    None
}

fn say(text: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("{text} [{test}]");
}

fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(extra).any(|dir| dir.join(program).exists())
}

/// A program that [`has`] has found, also where `sbin` is not in the path.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
    command
}

/// The browser that [`has`] has found.
pub fn chromium() -> Command {
    program(CHROMIUM.into_iter().find(|name| exists(name)).unwrap_or("chromium"))
}
