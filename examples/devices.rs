//! Says which libtorch this program runs with, and which CUDA devices it finds: what to try first
//! on a new machine.
//!
//! ```sh
//! cargo run --example devices
//! ```

use std::io::{self, Write};

use tch_checkpoint::torch::{cuda_devices, libtorch_version, why_no_cuda};

fn main() -> io::Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).without_time().init();
    let mut out = io::stdout();
    writeln!(out, "built for libtorch {}", libtorch_version())?;
    writeln!(out, "cuda devices {}", cuda_devices())?;
    match why_no_cuda() {
        Some(reason) => writeln!(out, "training is on CPUs: {reason}"),
        None => Ok(()),
    }
}
