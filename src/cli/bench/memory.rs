//! Memory: whether there is enough, and how much of it was used at most.

use std::fs;

use crate::error::{Error, ErrorKind, Result};

/// What everything else of the process may take.
const SLACK: u64 = 256 << 20;

/// Whether this host has room for so many bytes; nothing is allocated.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if not.
pub(super) fn check_room(bytes: u64) -> Result<()> {
    let need = bytes.saturating_add(SLACK);
    match available() {
        Some(there) if need > there => {
            let message = format!(
                "it needs {} MiB of memory, this host has {} MiB left",
                need >> 20,
                there >> 20
            );
            Err(Error::new(ErrorKind::InvalidInput, message).with_help("use a smaller spec"))
        }
        _ => Ok(()),
    }
}

/// Memory of this host that can be had, in bytes; `None` where it does not say.
pub(super) fn available() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// How much memory this process has at most beyond what it had at first.
pub(super) struct Peak {
    base: u64,
    /// Whether the kernel forgets older peaks.
    resets: bool,
}

impl Peak {
    /// From now on.
    pub(super) fn start() -> Self {
        // 5 makes the peak start again at what is there now (proc(5)).
        let resets = fs::write("/proc/self/clear_refs", "5").is_ok();
        Self { base: status(if resets { "VmRSS:" } else { "VmHWM:" }).unwrap_or_default(), resets }
    }

    /// Forgets earlier peaks, not what was there at first.
    pub(super) fn again(&self) {
        if self.resets {
            // If it does not work any more, the figure is too high, and so on the safe side.
            drop(fs::write("/proc/self/clear_refs", "5"));
        }
    }

    /// Bytes since then.
    pub(super) fn beyond(&self) -> u64 {
        status("VmHWM:").unwrap_or_default().saturating_sub(self.base)
    }
}

fn status(key: &str) -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/self/status").ok()?, key)
}

/// Bytes in a line such as `VmRSS:   1234 kB`.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read() {
        let text = "VmPeak:\t  99 kB\nVmHWM:\t    1234 kB\nVmRSS:\t x kB\n";
        assert_eq!(kib_of(text, "VmHWM:"), Some(1234 * 1024));
        assert_eq!((kib_of(text, "VmRSS:"), kib_of(text, "VmSwap:")), (None, None));
    }

    #[test]
    fn what_no_host_has_is_refused() {
        let error = check_room(u64::MAX / 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("of memory"), "{error}");
        assert!(check_room(0).is_ok());
    }
}
