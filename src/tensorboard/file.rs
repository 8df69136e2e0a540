//! A new event file, under a name that TensorBoard reads after all that are there.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Write};
use std::path::Path;

use super::event::{start, version};
use super::record::framed;
use crate::clock;

/// What names of event files begin with; the time in seconds follows, which orders them.
const PREFIX: &str = "events.out.tfevents.";
/// How many names are tried.
const TRIES: u64 = 100;
/// A name of a machine is cut to so many characters.
const HOST_MAX: usize = 64;

/// Makes a file whose points begin with step `first`; those of other files from there on are
/// forgotten when it is read.
pub(super) fn begin(directory: &Path, first: u64) -> Result<File> {
    std::fs::create_dir_all(directory)?;
    let mut file = create(directory)?;
    let time = clock::unix_time();
    let mut events = framed(&version(time));
    events.extend(framed(&start(time, first)));
    file.write_all(&events)?;
    Ok(file)
}

/// Files are read in the order of their names, so that a clock that was set back, or two processes
/// in one second, must not bring a new one before an old one.
fn create(directory: &Path) -> Result<File> {
    let latest = latest(directory)?.map_or(0, |time| time.saturating_add(1));
    let time = clock::unix_time().as_secs().max(latest);
    let (host, process) = (host(), std::process::id());
    for time in time..time.saturating_add(TRIES) {
        let name = format!("{PREFIX}{time:010}.{host}.{process}");
        let mut options = OpenOptions::new();
        match options.append(true).create_new(true).open(directory.join(name)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made,
        }
    }
    Err(Error::new(ErrorKind::AlreadyExists, "every name that was tried is taken"))
}

/// The time in the name of the last event file.
fn latest(directory: &Path) -> Result<Option<u64>> {
    let mut latest = None;
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let time = rest.and_then(|rest| rest.split('.').next()).and_then(|time| time.parse().ok());
        latest = latest.max(time);
    }
    Ok(latest)
}

fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let host: String = name.chars().filter(plain).take(HOST_MAX).collect();
    if host.is_empty() { "host".to_owned() } else { host }
}
