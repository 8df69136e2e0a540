//! What no command does: started by the tests as a program of its own.

use std::path::Path;
use std::process::Command;

use tch_checkpoint::OnExisting;

use crate::scene::save_here;

const DIR: &str = "TCH_CHECKPOINT_TEST_DIR";
const STEP: &str = "TCH_CHECKPOINT_TEST_STEP";

/// Saves `step` into `dir` by four ranks, in place of what is there.
pub fn replacing(dir: &Path, step: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver::replace", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(DIR, dir).env(STEP, step.to_string()).env_remove("RUST_BACKTRACE");
    command
}

#[test]
#[ignore = "a program for the tests"]
fn replace() {
    let (Some(dir), Ok(step)) = (std::env::var_os(DIR), std::env::var(STEP)) else { return };
    let step = step.parse().unwrap();
    match save_here(Path::new(&dir), step, OnExisting::Replace, 4) {
        Ok(checkpoint) => {
            println!("\nCOMMITTED {step} {}", checkpoint.save_id);
            std::process::exit(0);
        }
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(error.exit_code().into());
        }
    }
}
