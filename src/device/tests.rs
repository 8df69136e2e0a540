use std::sync::Arc;
use std::time::Duration;

use super::budget::Budget;
use super::direct::{Part, Queues};
use super::fake::{FakeDevice, Faults};
use super::ring::{Ring, SLOT_BYTES};
use super::*;
use crate::group::Progress;
use crate::memory::region::Region;

const LAG: Duration = Duration::from_millis(3);
/// Of a device that hangs.
const SHORT: Duration = Duration::from_millis(50);

fn healthy() -> Arc<FakeDevice> {
    FakeDevice::new("fake:0", Faults { delay: LAG, ..Faults::default() })
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
}

fn ring(device: &Arc<FakeDevice>) -> Ring {
    Ring::new(device.as_ref(), &Budget::new(u64::MAX)).unwrap().unwrap()
}

#[test]
fn a_ring_reads_what_lies_there_in_any_length_and_from_any_place() {
    let device = healthy();
    let bytes = pattern(9 * SLOT_BYTES + 77);
    let memory = device.memory(&bytes);
    for (offset, len) in [(0, 0), (5, 1), (3, SLOT_BYTES), (1, SLOT_BYTES + 1), (0, bytes.len())] {
        let mut out = vec![0; len];
        device.rings().read(&memory, offset as u64, &mut out).unwrap();
        assert_eq!(out, bytes[offset..offset + len], "{len} bytes from {offset}");
    }
    let mut beyond = [0; 2];
    let error = device.rings().read(&memory, bytes.len() as u64 - 1, &mut beyond).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_is_written_may_change_at_once_and_has_arrived_when_it_is_settled() {
    let device = healthy();
    let (bytes, mut target) = (pattern(6 * SLOT_BYTES + 5), vec![0; 6 * SLOT_BYTES + 5]);
    let memory = device.memory_mut(&mut target);
    let mut given = bytes.clone();
    let pending = device.rings().write(&memory, 0, &given).unwrap().unwrap();
    given.fill(0xEE);
    pending.settle().unwrap();
    assert!(target == bytes);
}

#[test]
fn a_read_waits_for_what_the_computing_stream_was_given_before() {
    let device = healthy();
    device.compute_for(Duration::from_millis(40));
    let bytes = pattern(10);
    device.rings().read(&device.memory(&bytes), 0, &mut [0; 10]).unwrap();
    assert!(!device.computes(), "it was read while it was still computed");
}

#[test]
fn a_failed_copy_is_an_error_and_the_next_one_gets_a_new_ring() {
    for faults in [
        Faults { refuse: Some(2), ..Faults::default() },
        Faults { fail: Some(2), ..Faults::default() },
    ] {
        let device = FakeDevice::new("fake:0", faults);
        let bytes = pattern(3 * SLOT_BYTES);
        let mut out = vec![0; bytes.len()];
        let error = device.rings().read(&device.memory(&bytes), 0, &mut out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device, "{faults:?}");
        device.rings().read(&device.memory(&bytes), 0, &mut out).unwrap();
        assert!(out == bytes);
    }
}

#[test]
fn a_write_that_fails_later_is_an_error_when_it_is_settled() {
    let device =
        FakeDevice::new("fake:0", Faults { fail: Some(1), delay: LAG, ..Faults::default() });
    let mut target = vec![0; 10];
    let memory = device.memory_mut(&mut target);
    let pending = device.rings().write(&memory, 0, &[7; 10]).unwrap().unwrap();
    assert_eq!(pending.settle().unwrap_err().kind(), ErrorKind::Device);
}

#[test]
fn a_device_that_hangs_is_an_error_and_its_slots_are_never_used_again() {
    let device = FakeDevice::new("fake:0", Faults { hang: Some(2), ..Faults::default() });
    let bytes = pattern(3 * SLOT_BYTES);
    let mut ring = ring(&device).with_patience(SHORT);
    let mut out = vec![0; bytes.len()];
    let error = ring.read(&device.memory(&bytes), 0, &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    assert_eq!(ring.read(&device.memory(&bytes), 0, &mut out).unwrap_err(), error);
    let (before, _) = device.locked();
    drop(ring);
    let (after, _) = device.locked();
    assert!(after > 0 && after < before, "what the device may still write to was freed");
}

#[test]
fn locked_memory_stays_within_its_bound_and_without_any_nothing_is_copied() {
    let bytes = pattern(3 << 20);
    for (mib, can) in [(0, false), (1, true), (17, true)] {
        let budget = Budget::new(mib << 20);
        let device = FakeDevice::with_budget("fake:0", Faults::default(), &budget);
        let mut out = vec![0; bytes.len()];
        let copied = device.rings().read(&device.memory(&bytes), 0, &mut out).unwrap();
        assert_eq!((copied, out == bytes), (can, can), "{mib} MiB");
        assert!(device.locked().1 <= mib << 20);
    }
}

#[test]
fn threads_beside_one_another_lock_no_more_than_four_rings() {
    let device = healthy();
    let bytes = pattern(2 * SLOT_BYTES);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut out = vec![0; bytes.len()];
                device.rings().read(&device.memory(&bytes), 0, &mut out).unwrap();
                assert!(out == bytes);
            });
        }
    });
    assert!(device.locked().1 <= 4 * 4 * (SLOT_BYTES as u64 + 4096));
}

fn parts(memory: &DeviceMemory, ranges: &[std::ops::Range<usize>]) -> Vec<Part> {
    let part = |to: &std::ops::Range<usize>| Part {
        from: memory.clone(),
        offset: to.start as u64,
        to: to.clone(),
    };
    ranges.iter().map(part).collect()
}

fn locked_region(device: &Arc<FakeDevice>, len: usize) -> Region {
    let mut region = Region::new(len as u64).unwrap();
    assert!(region.lock(device.as_ref(), &Budget::new(u64::MAX)).unwrap());
    region
}

fn queues(device: &Arc<FakeDevice>) -> Queues {
    let (mut queues, device): (_, Arc<dyn Device>) = (Queues::default(), device.clone());
    queues.open(&device).unwrap();
    queues.open(&device).unwrap();
    queues
}

#[test]
fn a_region_gets_its_parts_and_tells_progress() {
    let device = healthy();
    let (bytes, progress) = (pattern(40 << 20), Progress::default());
    let region = locked_region(&device, bytes.len());
    let parts = parts(&device.memory(&bytes), &[0..100, 4096..40 << 20]);
    let region = queues(&device).fill(region, &parts, &progress).unwrap();
    assert!(region.bytes()[..100] == bytes[..100]);
    assert!(region.bytes()[4096..40 << 20] == bytes[4096..]);
    assert!(region.bytes()[100..4096].iter().all(|byte| *byte == 0));
    assert_eq!(progress.total(), 100 + (40 << 20) - 4096);
}

#[test]
fn thousands_of_small_parts_never_fill_the_stream_of_a_busy_device() {
    let device = FakeDevice::new("fake:0", Faults::default());
    let (bytes, progress) = (pattern(5000), Progress::default());
    let region = locked_region(&device, bytes.len());
    device.compute_for(Duration::from_millis(100));
    let ranges: Vec<_> = (0..bytes.len()).map(|at| at..at + 1).collect();
    let parts = parts(&device.memory(&bytes), &ranges);
    let region = queues(&device).fill(region, &parts, &progress).unwrap();
    assert!(region.bytes()[..5000] == bytes[..]);
    assert_eq!(progress.total(), 5000);
}

#[test]
fn a_part_of_any_size_never_fills_the_stream_of_a_busy_device() {
    let device = FakeDevice::new("fake:0", Faults::default());
    let (bytes, progress) = (vec![7; 80 << 20], Progress::default());
    let region = locked_region(&device, bytes.len());
    device.compute_for(Duration::from_millis(500));
    let parts = parts(&device.memory(&bytes), &[0..1, 1..bytes.len()]);
    let region = queues(&device).fill(region, &parts, &progress).unwrap();
    assert!(region.bytes()[..bytes.len()] == bytes[..]);
    assert_eq!(progress.total(), 80 << 20);
}

#[test]
fn after_a_failed_upload_no_other_one_is_on_its_way() {
    let bad = FakeDevice::new("fake:0", Faults { fail: Some(1), ..Faults::default() });
    let slow = FakeDevice::new("fake:1", Faults { delay: LAG, ..Faults::default() });
    let (mut first, mut second) = (vec![0; 10], vec![0; 10]);
    let memories = [bad.memory_mut(&mut first), slow.memory_mut(&mut second)];
    let mut uploads = Uploads::default();
    for memory in &memories {
        uploads.add(memory.write(0, &[7; 10]).unwrap().unwrap());
    }
    assert_eq!(uploads.settle().unwrap_err().kind(), ErrorKind::Device);
    assert_eq!(second, [7; 10], "it has arrived before anybody frees it");
}

#[test]
fn a_region_is_given_up_only_where_the_device_may_still_write_to_it() {
    let bytes = pattern(1000);
    for (faults, kind, is_freed) in [
        (Faults { refuse: Some(2), ..Faults::default() }, ErrorKind::Device, true),
        (Faults { fail: Some(1), ..Faults::default() }, ErrorKind::Device, false),
        (Faults { hang: Some(2), ..Faults::default() }, ErrorKind::Deadline, false),
    ] {
        let device = FakeDevice::new("fake:0", faults);
        let region = locked_region(&device, bytes.len());
        let parts = parts(&device.memory(&bytes), &[0..500, 500..1000]);
        let mut queues = queues(&device);
        if faults.hang.is_some() {
            queues = queues.with_patience(SHORT);
        }
        let error = queues.fill(region, &parts, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{faults:?}");
        assert_eq!(device.locked().0 == 0, is_freed, "{faults:?}");
    }
}

#[test]
fn a_part_beyond_the_region_or_its_memory_is_refused() {
    let device = healthy();
    let bytes = pattern(1000);
    for range in [0..1001, 100_000..100_001] {
        let region = locked_region(&device, 1000);
        let parts = parts(&device.memory(&bytes), std::slice::from_ref(&range));
        let error = queues(&device).fill(region, &parts, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn queues_copy_what_was_there_when_they_were_opened() {
    let device = healthy();
    device.compute_for(Duration::from_millis(30));
    let bytes = pattern(100);
    let mut queues = queues(&device);
    let parts = parts(&device.memory(&bytes), &[0..50, 50..100]);
    let region = locked_region(&device, 100);
    queues.fill(region, &parts, &Progress::default()).unwrap();
    assert!(!device.computes());
}
