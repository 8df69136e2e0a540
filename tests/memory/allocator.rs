//! An allocator that refuses a chosen one of the large allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// From this size on an allocation counts as large.
pub const LARGE: usize = 64 << 10;

static ARMED: AtomicBool = AtomicBool::new(false);
static TRACING: AtomicBool = AtomicBool::new(false);
static FROM: AtomicUsize = AtomicUsize::new(LARGE);
static TO: AtomicUsize = AtomicUsize::new(usize::MAX);
static SEEN: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static CHOSEN: AtomicU64 = AtomicU64::new(0);
static PERSISTENT: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// While a backtrace is printed, which allocates.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

struct Refusing;

fn is_refused(size: usize) -> bool {
    if !ARMED.load(SeqCst) || size < FROM.load(SeqCst) || size > TO.load(SeqCst) {
        return false;
    }
    // A panic is a failure already, and allocates for its message.
    if BUSY.try_with(Cell::get).unwrap_or(true) || std::thread::panicking() {
        return false;
    }
    let number = SEEN.fetch_add(1, SeqCst) + 1;
    let chosen = CHOSEN.load(SeqCst);
    let is_chosen = number == chosen || (PERSISTENT.load(SeqCst) && number > chosen);
    if is_chosen {
        REFUSED.fetch_add(1, SeqCst);
        if TRACING.load(SeqCst) {
            BUSY.set(true);
            eprintln!("{size} bytes refused:\n{}", std::backtrace::Backtrace::force_capture());
            BUSY.set(false);
        }
    }
    is_chosen
}

// SAFETY: passes everything on to the system's allocator, or refuses with null as it may; the
// counters are atomic and allocate nothing.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && is_refused(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Which allocations are refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The number of the first, among those of `sizes`, counted from 1.
    pub number: u64,
    /// Whether all after it are refused as well: memory stays short.
    pub persistent: bool,
    pub sizes: RangeInclusive<usize>,
}

/// Runs `body` under a refusal, which counts on every thread of the process; how many allocations
/// were refused.
pub fn refusing<T>(refusal: &Refusal, tracing: bool, body: impl FnOnce() -> T) -> (T, u64) {
    static ONE: Mutex<()> = Mutex::new(());
    // Poisoned by a test that failed: the next one sets all anew.
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    SEEN.store(0, SeqCst);
    REFUSED.store(0, SeqCst);
    CHOSEN.store(refusal.number, SeqCst);
    PERSISTENT.store(refusal.persistent, SeqCst);
    FROM.store(*refusal.sizes.start(), SeqCst);
    TO.store(*refusal.sizes.end(), SeqCst);
    TRACING.store(tracing, SeqCst);
    ARMED.store(true, SeqCst);
    let result = body();
    ARMED.store(false, SeqCst);
    (result, REFUSED.load(SeqCst))
}
