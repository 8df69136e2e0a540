//! `completions` and `man`: what other programs want to know of this command.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};

use super::{Arguments, Output, Stop};
use crate::error::{Error, ErrorKind};

#[derive(Args)]
pub(super) struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

#[derive(Args)]
pub(super) struct Man {
    /// Where they go; made if missing, pages that are there are replaced.
    dir: PathBuf,
}

pub(super) fn completions(out: &mut Output<'_>, arguments: &Completions) -> Result<u8, Stop> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    out.text(&script)?;
    Ok(0)
}

pub(super) fn man(out: &mut Output<'_>, arguments: &Man) -> Result<u8, Stop> {
    let dir = &arguments.dir;
    std::fs::create_dir_all(dir).map_err(|error| failed(&error, dir))?;
    let written = clap_mangen::generate_to(Arguments::command(), dir);
    written.map_err(|error| failed(&error, dir))?;
    out.line(format!("man pages are in {}", crate::shown::path(dir)))?;
    Ok(0)
}

fn failed(error: &io::Error, dir: &Path) -> Error {
    Error::new(ErrorKind::Storage, format!("writing man pages: {error}")).with_path(dir)
}
