//! How much is asked of a storage at once: what it does in a moment.
//!
//! The inside of one system call shows no progress. So that a slow storage is not taken for a dead
//! one, writes and reads become shorter where their bytes take long, and what the page cache has
//! taken is brought to the device bit by bit instead of by the fsync at the end.

use std::time::Duration;

use super::pipeline::Progress;
use crate::clock;
use crate::error::Result;
use crate::memory::buffers::BUFFER_BYTES;
use crate::sabotage::{self, Defect};
use crate::storage::{DIRECT_ALIGNMENT, WriteFile};

/// About as long one call is to take: far less than a deadline, far more than the call itself
/// costs.
const MOMENT: Duration = Duration::from_millis(250);
/// Before anything is known of a storage.
const FIRST_BYTES: usize = 1 << 20;
const BYTES_MIN: usize = 64 << 10;
/// Most bytes between two looks at what the page cache holds: so many may lie before a storage that
/// becomes slow all of a sudden.
const UNSETTLED_BYTES_MAX: usize = 256 << 20;

/// How many bytes are asked for at once; a power of two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Portion {
    bytes: usize,
    max: usize,
    /// The newest call: its bytes, and what it took.
    last: Option<(usize, Duration)>,
    /// The newest one before it of another size.
    other: Option<(usize, Duration)>,
}

impl Portion {
    pub(super) const fn up_to(max: usize) -> Self {
        Self { bytes: FIRST_BYTES, max, last: None, other: None }
    }

    pub(super) const fn bytes(self) -> usize {
        self.bytes
    }

    /// Learns from so many bytes that took so long.
    pub(super) fn took(&mut self, bytes: usize, time: Duration) {
        if bytes < self.bytes && time <= MOMENT * 2 {
            return;
        }
        if self.last.is_some_and(|(last, _)| last != bytes) {
            self.other = self.last;
        }
        self.last = Some((bytes, time));
        let most = self.bytes.saturating_mul(2).min(self.max);
        #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
        let bytes = (self.wanted(bytes, time) as usize).clamp(BYTES_MIN, most);
        self.bytes = 1 << bytes.ilog2();
    }

    /// Bytes of a call as long as is wanted: a moment, or what every call takes, however little it
    /// asks for, and the same for its bytes. Shorter calls would be no faster then.
    fn wanted(&self, bytes: usize, time: Duration) -> f64 {
        if time < MOMENT / 2 {
            return f64::INFINITY;
        }
        let time = time.as_secs_f64();
        let per_byte = match self.other {
            Some((others, took)) => (time - took.as_secs_f64()) / (bytes as f64 - others as f64),
            // Nothing to compare with: the bytes are what took so long, or it is tried out.
            None if time > 2.0 * MOMENT.as_secs_f64() => time / bytes as f64,
            None => 0.0,
        };
        let fixed = (time - per_byte.max(0.0) * bytes as f64).max(0.0);
        fixed.max(MOMENT.as_secs_f64()) / per_byte.max(f64::MIN_POSITIVE)
    }
}

/// What a storage has shown of its speed.
#[derive(Debug)]
pub(super) struct Pacing {
    write: Portion,
    settle: Portion,
    /// Bytes since the page cache was looked at.
    unsettled: usize,
    /// Whether there was something in it then.
    is_cached: bool,
}

impl Pacing {
    pub(super) const fn new() -> Self {
        let write = Portion::up_to(BUFFER_BYTES);
        Self { write, settle: Portion::up_to(UNSETTLED_BYTES_MAX), unsettled: 0, is_cached: true }
    }

    /// What comes next belongs to another file, and nothing of it lies in the page cache.
    pub(super) const fn next_file(&mut self) {
        self.unsettled = 0;
    }

    /// Writes all of `bytes` at `offset`, and tells `progress` of each part.
    ///
    /// # Errors
    /// As [`WriteFile::write_at`], with the offset of the part.
    pub(super) fn write(
        &mut self,
        file: &dyn WriteFile,
        offset: u64,
        bytes: &[u8],
        progress: Progress<'_>,
    ) -> Result<()> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (part, after) = rest.split_at(self.portion(at).min(rest.len()));
            let begun = clock::now();
            file.write_at(at, part).map_err(|e| e.with_offset(at))?;
            self.write.took(part.len(), clock::now().saturating_duration_since(begun));
            self.settle(file, part.len())?;
            progress(part.len() as u64);
            (at, rest) = (at.saturating_add(part.len() as u64), after);
        }
        Ok(())
    }

    /// Bytes of the next part: no more than the device takes in a moment, if the page cache takes
    /// everything at once, and what follows begins where direct I/O can go on.
    fn portion(&self, at: u64) -> usize {
        let settled = if self.is_cached { self.settle.bytes } else { usize::MAX };
        let bytes = self.write.bytes.min(settled);
        let begin = usize::try_from(at % DIRECT_ALIGNMENT as u64).unwrap_or_default();
        (begin + bytes).next_multiple_of(DIRECT_ALIGNMENT) - begin
    }

    fn settle(&mut self, file: &dyn WriteFile, written: usize) -> Result<()> {
        self.unsettled += written;
        if self.unsettled < self.settle.bytes {
            return Ok(());
        }
        let begun = clock::now();
        self.is_cached = false;
        sabotage::unless(Defect::DataNotSynced, || {
            self.is_cached = file.write_back()?;
            Ok(())
        })?;
        if self.is_cached {
            self.settle.took(self.unsettled, clock::now().saturating_duration_since(begun));
        }
        self.unsettled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::{Error, ErrorKind};

    const MIB: usize = 1 << 20;

    fn after(bytes: usize, times: &[u64]) -> usize {
        let mut portion = Portion { bytes, ..Portion::up_to(BUFFER_BYTES) };
        for time in times {
            portion.took(portion.bytes, Duration::from_millis(*time));
        }
        portion.bytes
    }

    #[test]
    fn a_slow_storage_is_asked_for_less_and_a_fast_one_for_more() {
        assert_eq!(after(MIB, &[1, 1, 1, 1, 1]), BUFFER_BYTES);
        assert_eq!(after(MIB, &[200, 300, 400]), MIB);
        // 1 MiB a second: an eighth of that takes half a moment, a quarter all of it.
        assert_eq!(after(MIB, &[1000]), MIB / 4);
        assert_eq!(after(BUFFER_BYTES, &[8000]), MIB / 4);
        assert_eq!(after(MIB, &[1_000_000]), BYTES_MIN);
        assert_eq!(after(MIB, &[1_000_000, 1, 1]), 4 * BYTES_MIN);
    }

    /// Calls for so many bytes, and the longest of them once something is known, where every call
    /// takes `fixed` and a second for `bytes_s` bytes.
    fn calls(total: u64, fixed: f64, bytes_s: f64) -> (u32, f64) {
        let (mut portion, mut done) = (Portion::up_to(UNSETTLED_BYTES_MAX), 0);
        let (mut count, mut longest) = (0, 0f64);
        while done < total {
            let bytes = portion.bytes();
            let time = fixed + bytes as f64 / bytes_s;
            portion.took(bytes, Duration::from_secs_f64(time));
            done += bytes as u64;
            if count > 0 {
                longest = longest.max(time);
            }
            count += 1;
        }
        (count, longest)
    }

    #[test]
    fn what_every_call_takes_is_no_reason_for_short_ones() {
        for fixed in [0.1, 0.2, 0.3, 0.6, 2.0, 20.0] {
            let (count, longest) = calls(10 << 30, fixed, 1e9);
            assert!(count <= 150, "{fixed} s: {count} calls");
            assert!(longest <= 2.0 * fixed + 0.5, "{fixed} s: {longest} s");
        }
        for rate in [2e5, 1e6, 1e7] {
            let (_, longest) = calls(100 << 20, 0.01, rate);
            assert!(longest <= 0.6, "{rate} B/s: {longest} s");
        }
    }

    #[test]
    fn a_short_write_says_little_about_a_long_one() {
        let mut portion = Portion::up_to(BUFFER_BYTES);
        portion.took(100, Duration::ZERO);
        assert_eq!(portion.bytes, FIRST_BYTES);
        portion.took(100, Duration::from_secs(1));
        assert_eq!(portion.bytes, BYTES_MIN);
    }

    /// Notes what it is asked for; its page cache fails where it is told to.
    #[derive(Default)]
    struct Noting {
        writes: Mutex<Vec<(u64, usize)>>,
        settled: Mutex<u32>,
        fails: bool,
    }

    impl WriteFile for Noting {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
            self.writes.lock().unwrap().push((offset, bytes.len()));
            Ok(())
        }

        fn reserve(&self, _: u64) -> Result<()> {
            Ok(())
        }

        fn write_back(&self) -> Result<bool> {
            *self.settled.lock().unwrap() += 1;
            if self.fails { Err(Error::new(ErrorKind::Storage, "lost")) } else { Ok(true) }
        }

        fn finish(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_is_written_once_and_parts_end_where_direct_writes_can_begin() {
        let (file, bytes) = (Noting::default(), vec![0; 5 * MIB + 17]);
        let told = Mutex::new(0);
        let progress = |bytes| *told.lock().unwrap() += bytes;
        Pacing::new().write(&file, 5000, &bytes, &progress).unwrap();
        let mut at = 5000;
        let writes = file.writes.into_inner().unwrap();
        assert!(writes.len() > 1, "{writes:?}");
        for (index, (offset, len)) in writes.iter().enumerate() {
            assert!(*offset == at && (index == 0 || at % 4096 == 0), "{writes:?}");
            at += *len as u64;
        }
        // All but its begin can go direct.
        assert!(writes[0].1 >= MIB, "{writes:?}");
        assert_eq!((at - 5000, *told.lock().unwrap()), (bytes.len() as u64, bytes.len() as u64));
    }

    #[test]
    fn what_the_page_cache_holds_is_brought_to_the_device_now_and_then() {
        let (file, bytes) = (Noting::default(), vec![0; 4 * MIB]);
        let mut pacing = Pacing::new();
        pacing.write(&file, 0, &bytes[..MIB - 1], &|_| ()).unwrap();
        assert_eq!(*file.settled.lock().unwrap(), 0);
        pacing.write(&file, MIB as u64 - 1, &bytes, &|_| ()).unwrap();
        assert!(*file.settled.lock().unwrap() > 0);
        let failing = Noting { fails: true, ..Noting::default() };
        let lost = Pacing::new().write(&failing, 0, &bytes, &|_| ()).unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::Storage);
    }

    /// It was fsynced with that one: to bring the little that there is of the next to the device
    /// takes no time, which would pass for the time of all of it.
    #[test]
    fn what_lay_in_a_file_that_is_finished_is_not_counted_for_the_next() {
        let (files, bytes) = ([Noting::default(), Noting::default()], vec![0; MIB - 1]);
        let mut pacing = Pacing::new();
        for file in &files {
            pacing.write(file, 0, &bytes, &|_| ()).unwrap();
            pacing.next_file();
        }
        assert_eq!(files.map(|file| file.settled.into_inner().unwrap()), [0, 0]);
    }
}
