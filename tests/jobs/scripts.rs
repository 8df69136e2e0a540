//! The scripts of `launch/`, and stubs of the commands that they call.

#![allow(dead_code, reason = "not every test program asks for all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::launched::Launch;

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("launch").join(name)
}

pub fn start(
    script_name: &str,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command, &Path),
) -> Launch {
    let mut command = Command::new(script(script_name));
    Launch::prepared(command.args(arguments).stdin(Stdio::null()), prepare)
}

/// Puts a shell script in the place of a command.
pub fn stub(command: &mut Command, dir: &Path, name: &str, body: &str) {
    // Written by another process: were it open for writing here while another test forks, the
    // system would refuse to run it ("text file busy").
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh").args(["-c", write]).arg(dir.join(name)).arg(body).status();
    assert!(written.unwrap().success());
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", dir.display()));
}
