//! Ctrl-C, noted instead of obeyed, so that what is only there to be measured goes before the
//! process does. A second one ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, ErrorKind, Result};

/// What a shell says of a command that was interrupted.
pub(super) const EXIT_CODE: u8 = 130;

static NOTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Notes signals from now on. Where that does not work they end the process, as they always did.
pub(in crate::cli) fn watch() {
    NOTED.get_or_init(|| {
        let noted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first one finds the flag unset.
            let second = flag::register_conditional_default(signal, Arc::clone(&noted));
            let registered = second.and_then(|_| flag::register(signal, Arc::clone(&noted)));
            if let Err(error) = registered {
                tracing::debug!(signal, %error, "a signal is not watched");
            }
        }
        noted
    });
}

pub(in crate::cli) fn is_noted() -> bool {
    NOTED.get().is_some_and(|noted| noted.load(Ordering::SeqCst))
}

/// # Errors
/// [`ErrorKind::Unsupported`] once a signal has come.
pub(super) fn check() -> Result<()> {
    if is_noted() { Err(Error::new(ErrorKind::Unsupported, "interrupted")) } else { Ok(()) }
}
