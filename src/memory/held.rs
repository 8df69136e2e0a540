//! How much there is at a time of what is counted, for tests. By thread of the system: exact in a
//! model, whose threads are all of one.

use std::cell::Cell;
use std::thread::LocalKey;

/// How many there are, and the most that there were.
pub(crate) type Count = Cell<(isize, isize)>;

thread_local! {
    pub(crate) static BUFFERS: Count = const { Cell::new((0, 0)) };
    pub(crate) static REGIONS: Count = const { Cell::new((0, 0)) };
}

/// One that is there until this is dropped.
pub(crate) struct Held(&'static LocalKey<Count>);

impl Held {
    pub(crate) fn new(count: &'static LocalKey<Count>) -> Self {
        let (now, most) = count.get();
        count.set((now + 1, most.max(now + 1)));
        Self(count)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.try_with(|count| {
            let (now, most) = count.get();
            count.set((now - 1, most));
        });
    }
}
