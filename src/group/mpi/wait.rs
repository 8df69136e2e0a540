//! Waiting for MPI without handing it the thread.

use std::time::{Duration, Instant};

use ::mpi::request::Request;

use crate::error::Result;

/// Short waits end fastest if nothing else runs meanwhile.
const SPIN: Duration = Duration::from_micros(50);
/// With more ranks than cores, the one that is waited for needs ours.
const YIELD: Duration = Duration::from_millis(2);
const SLEEP: Duration = Duration::from_micros(200);
/// Time between two looks at what else may have happened.
const CHECK: Duration = Duration::from_millis(20);

/// Waits until `request` is complete, or `check`, which runs now and then, fails. The request is
/// leaked then: MPI may use its buffers for as long as the process lives.
pub(super) fn wait<D: ?Sized>(
    mut request: Request<'static, D>,
    mut check: impl FnMut() -> Result<()>,
) -> Result<&'static D> {
    let (started, mut checked) = (Instant::now(), Instant::now());
    loop {
        match request.test_with_data() {
            Ok((_, data)) => return Ok(data),
            Err(unfinished) => request = unfinished,
        }
        let waited = started.elapsed();
        if waited < SPIN {
            std::hint::spin_loop();
        } else if waited < YIELD {
            std::thread::yield_now();
        } else {
            std::thread::sleep(SLEEP);
        }
        if checked.elapsed() >= CHECK {
            checked = Instant::now();
            if let Err(error) = check() {
                std::mem::forget(request);
                return Err(error);
            }
        }
    }
}
