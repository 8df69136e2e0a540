//! The command `tch-checkpoint`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tch_checkpoint::cli::main()
}
