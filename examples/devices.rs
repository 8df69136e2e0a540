//! Says which libtorch this program runs with, and which CUDA devices it finds: what to try first
//! on a new machine.
//!
//! ```sh
//! cargo run --example devices
//! ```

use tch_checkpoint::torch::{cuda_devices, libtorch_version, why_no_cuda};

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
    println!("built for libtorch {}", libtorch_version());
    println!("cuda devices {}", cuda_devices());
    if let Some(reason) = why_no_cuda() {
        println!("training is on CPUs: {reason}");
    }
}
