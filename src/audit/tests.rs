//! Replicas on devices, and what their errors do to the other ranks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::device::fake::{FakeDevice, Faults};
use crate::device::{Device, DeviceMemory, Fingerprinter, Locked, Queue, Rings};
use crate::error::{Error, ErrorKind};
use crate::group::Deadlines;
use crate::rank::{Rank, WorldSize};
use crate::state::TensorSource;
use crate::tensor::{Component, Dtype};

/// More than a block, and no whole number of words.
const BYTES: usize = 10_003;
const HANGS: Duration = Duration::from_secs(60);

/// What its fingerprinter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Works,
    CannotBeLoaded,
    IsRefused,
    Fails,
    NeverEnds,
    ForgetsABox,
}

/// A device that hashes.
#[derive(Debug)]
struct Hashing {
    inner: Arc<FakeDevice>,
    kernel: Kernel,
    /// What happened, in order.
    log: Mutex<Vec<&'static str>>,
}

impl Hashing {
    fn new(kernel: Kernel) -> Arc<Self> {
        let inner = FakeDevice::new("fake:0", Faults::default());
        Arc::new(Self { inner, kernel, log: Mutex::default() })
    }

    fn log(&self, event: &'static str) {
        self.log.lock().push(event);
    }
}

/// `Device` of the device in an `Arc`, which its fingerprinters need.
#[derive(Debug)]
struct Shared(Arc<Hashing>);

impl Device for Shared {
    fn name(&self) -> &str {
        self.0.inner.name()
    }

    fn rings(&self) -> &Rings {
        self.0.inner.rings()
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>> {
        self.0.inner.open_queue()
    }

    #[allow(unsafe_code)]
    unsafe fn lock_pages(&self, begin: *mut u8, bytes: usize) -> Result<Locked> {
        // SAFETY: as the caller promises.
        unsafe { self.0.inner.lock_pages(begin, bytes) }
    }

    fn fingerprinter(&self, ranges: usize) -> Option<Box<dyn Fingerprinter>> {
        (self.0.kernel != Kernel::CannotBeLoaded)
            .then(|| Box::new(FakeFingerprinter(self.0.clone(), ranges, Vec::new())) as _)
    }
}

struct FakeFingerprinter(Arc<Hashing>, usize, Vec<(u64, u64)>);

impl Fingerprinter for FakeFingerprinter {
    #[allow(unsafe_code)]
    unsafe fn queue(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.0.log("queued");
        if self.0.kernel == Kernel::IsRefused {
            return Err(Error::new(ErrorKind::Device, "refused"));
        }
        self.2.push((address, bytes));
        assert!(self.2.len() <= self.1, "more than was announced");
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<[u64; 2]>> {
        self.0.log("collected");
        match self.0.kernel {
            Kernel::Fails => return Err(Error::new(ErrorKind::Device, "broken")),
            Kernel::NeverEnds => return Err(Error::new(ErrorKind::Deadline, "silent")),
            Kernel::ForgetsABox => drop(self.2.pop()),
            _ => (),
        }
        Ok(self.2.iter().map(|(address, bytes)| sums_at(*address, *bytes)).collect())
    }
}

impl Drop for FakeFingerprinter {
    fn drop(&mut self) {
        self.0.log("dropped");
    }
}

#[allow(unsafe_code)]
fn sums_at(address: u64, bytes: u64) -> [u64; 2] {
    let begin = std::ptr::with_exposed_provenance::<u8>(usize::try_from(address).unwrap());
    // SAFETY: whoever queued it keeps the range until this device has answered.
    sums_of(unsafe { std::slice::from_raw_parts(begin, usize::try_from(bytes).unwrap()) })
}

/// A box in the memory of a device.
struct OnDevice {
    device: Arc<Hashing>,
    bytes: Vec<u8>,
    reads: AtomicUsize,
}

impl TensorSource for OnDevice {
    fn device_memory(&self) -> Option<DeviceMemory> {
        let memory = self.device.inner.memory(&self.bytes);
        Some(memory.with_device(Arc::new(Shared(self.device.clone()))))
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, SeqCst);
        assert!(self.device_memory().unwrap().read(offset, out)?);
        Ok(())
    }
}

/// A box on the host that is read, which its device is told.
struct OnHost(Arc<Hashing>, bool);

impl TensorSource for OnHost {
    fn read_into(&self, _: u64, out: &mut [u8]) -> Result<()> {
        self.0.log("read");
        assert!(!self.1, "a source that panics");
        out.fill(0);
        Ok(())
    }
}

fn add(state: &mut StateDict, name: &str, source: Arc<dyn TensorSource>, bytes: usize) {
    let spec = TensorSpec::new(Dtype::U8, vec![bytes as u64]).unwrap();
    state.add(&Component::model(), TensorName::new(name).unwrap(), spec, source).unwrap();
}

fn contents(number: u8) -> Vec<u8> {
    (0..BYTES).map(|i| number ^ u8::try_from(i * 7 % 251).unwrap()).collect()
}

/// Three boxes on a device.
fn on_device(device: &Arc<Hashing>, change: impl Fn(&mut Vec<u8>)) -> (StateDict, Arc<OnDevice>) {
    let mut state = StateDict::new();
    let boxes = [0, 1, 2].map(|number| {
        let mut bytes = contents(number);
        if number == 1 {
            change(&mut bytes);
        }
        let device = device.clone();
        let source = Arc::new(OnDevice { device, bytes, reads: AtomicUsize::new(0) });
        add(&mut state, &format!("w{number}"), source.clone(), BYTES);
        source
    });
    let [_, second, _] = boxes;
    (state, second)
}

/// The same on the host.
fn on_host() -> StateDict {
    let mut state = StateDict::new();
    for number in [0, 1, 2] {
        add(&mut state, &format!("w{number}"), Arc::new(contents(number)), BYTES);
    }
    state
}

/// What each of three ranks makes of it, none of which hangs.
fn on_ranks<T: Send + 'static>(
    work: impl Fn(ProcessGroup, usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let groups = ProcessGroup::threads(WorldSize::new(3).unwrap(), Deadlines::default());
    let (work, (sender, results)) = (Arc::new(work), mpsc::channel());
    for (rank, group) in groups.into_iter().enumerate() {
        let (work, sender) = (work.clone(), sender.clone());
        std::thread::spawn(move || sender.send((rank, work(group, rank))));
    }
    drop(sender);
    let mut all: Vec<_> =
        (0..3).map(|_| results.recv_timeout(HANGS).expect("a rank hangs or panicked")).collect();
    all.sort_by_key(|(rank, _)| *rank);
    all.into_iter().map(|(_, result)| result).collect()
}

/// The error of an audit in which rank 1 has this device, and the others none.
fn error_of(kernel: Kernel, change: fn(&mut Vec<u8>)) -> Option<Error> {
    let mut verdicts = on_ranks(move |group, rank| {
        let state = match rank {
            1 => on_device(&Hashing::new(kernel), change).0,
            _ => on_host(),
        };
        audit(&group, &state).err()
    });
    let last = verdicts.pop().unwrap();
    assert_eq!(verdicts, [last.clone(), last.clone()], "ranks disagree");
    last
}

#[test]
fn replicas_on_a_device_that_hashes_one_that_cannot_and_the_host_are_compared() {
    let verdicts = on_ranks(|group, rank| {
        let device = Hashing::new([Kernel::Works, Kernel::CannotBeLoaded][rank % 2]);
        let (state, second) = on_device(&device, |_| ());
        let audited = if rank == 2 { audit(&group, &on_host()) } else { audit(&group, &state) };
        (audited, second.reads.load(SeqCst))
    });
    assert_eq!(verdicts, [(Ok(()), 0), (Ok(()), 1), (Ok(()), 0)]);
}

#[test]
fn a_bit_that_differs_on_a_device_is_found_wherever_it_is_hashed() {
    for kernel in [Kernel::Works, Kernel::CannotBeLoaded] {
        let error = error_of(kernel, |bytes| bytes[BYTES - 1] ^= 128).unwrap();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert_eq!(error.tensor(), Some("w1"), "{error}");
        assert_eq!(error.rank().map(Rank::get), Some(1), "{error}");
    }
}

#[test]
fn an_error_of_a_device_is_every_ranks_and_names_it() {
    for (kernel, kind, said) in [
        (Kernel::IsRefused, ErrorKind::Device, "refused"),
        (Kernel::Fails, ErrorKind::Device, "broken"),
        (Kernel::NeverEnds, ErrorKind::Deadline, "silent"),
        (Kernel::ForgetsABox, ErrorKind::Device, "hashes of 2 boxes, not of 3"),
    ] {
        let error = error_of(kernel, |_| ()).unwrap_or_else(|| panic!("{kernel:?}"));
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.rank().map(Rank::get), Some(1), "{error}");
        assert!(error.message().contains("fake:0"), "{error}");
        assert!(error.message().contains(said), "{error}");
    }
}

#[test]
fn a_device_hashes_while_the_host_does() {
    let device = Hashing::new(Kernel::Works);
    let (mut state, _) = on_device(&device, |_| ());
    add(&mut state, "a", Arc::new(OnHost(device.clone(), false)), BYTES);
    let group = ProcessGroup::threads(WorldSize::new(1).unwrap(), Deadlines::default()).remove(0);
    audit(&group, &state).unwrap();
    let log = ["queued", "queued", "queued", "read", "collected", "dropped"];
    assert_eq!(*device.log.lock(), log);
}

/// Dropping is waiting.
#[test]
fn a_source_that_panics_leaves_no_work_on_a_device() {
    let device = Hashing::new(Kernel::Works);
    let (mut state, _) = on_device(&device, |_| ());
    add(&mut state, "a", Arc::new(OnHost(device.clone(), true)), BYTES);
    let group = ProcessGroup::threads(WorldSize::new(1).unwrap(), Deadlines::default()).remove(0);
    assert_eq!(audit(&group, &state).unwrap_err().kind(), ErrorKind::Panic);
    assert_eq!(device.log.lock().last(), Some(&"dropped"));
}
