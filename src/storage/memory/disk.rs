//! How much of a file system in memory is taken.

use parking_lot::Mutex;

/// Counts the bytes of all files; full at a capacity, if there is one.
#[derive(Debug, Default)]
pub(super) struct Disk(Mutex<Usage>);

#[derive(Debug, Default)]
struct Usage {
    capacity: Option<u64>,
    used: u64,
}

impl Disk {
    pub(super) fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    pub(super) fn used(&self) -> u64 {
        self.0.lock().used
    }

    /// What is left of the capacity.
    pub(super) fn available(&self) -> Option<u64> {
        let usage = self.0.lock();
        usage.capacity.map(|capacity| capacity.saturating_sub(usage.used))
    }

    /// Takes `bytes`; false, and nothing taken, if they do not fit.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let mut usage = self.0.lock();
        let used = usage.used.saturating_add(bytes);
        let fits = bytes == 0 || usage.capacity.is_none_or(|capacity| used <= capacity);
        if fits {
            usage.used = used;
        }
        fits
    }

    pub(super) fn give_back(&self, bytes: u64) {
        let mut usage = self.0.lock();
        usage.used = usage.used.saturating_sub(bytes);
    }
}
