//! The calls of the driver against a stand-in for it, which is stricter than the real one: in a
//! process of its own, since a library is looked for once.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys;

use super::*;
use crate::device::DeviceMemory;
use crate::device::direct::{Part, Queues};
use crate::group::Progress;
use crate::memory::region::Region;

const INNER: &str = "device::cuda::fake_driver::inner";
const IN_THERE: &str = "TCH_CHECKPOINT_TEST_FAKE_DRIVER";

/// The stand-in, where there is a compiler.
fn library(dir: &Path) -> Option<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/device/cuda/fake_driver/libcuda.c");
    let library = dir.join("libcuda.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source);
    match compiler.output() {
        Ok(done) => {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Some(())
        }
        Err(error) => {
            eprintln!("SKIPPED: no C compiler ({error})");
            None
        }
    }
}

fn run_inner(fails: &str) -> Option<()> {
    let dir = tempfile::tempdir().unwrap();
    library(dir.path())?;
    let mut paths = vec![dir.path().to_path_buf()];
    paths.extend(std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", INNER, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", std::env::join_paths(paths).unwrap())
        .env("FAKE_CUDA_FAIL", fails)
        .env(IN_THERE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inner.stdout);
    assert!(inner.status.success(), "{said}\n{}", String::from_utf8_lossy(&inner.stderr));
    assert!(said.contains("1 passed"), "{said}");
    Some(())
}

#[test]
fn the_driver_is_called_as_it_wants_to_be() {
    if Path::new("/dev/nvidia0").exists() {
        eprintln!("SKIPPED: there is a real driver");
        return;
    }
    for fails in ["0", "2"] {
        if run_inner(fails).is_none() {
            return;
        }
    }
}

/// What the stand-in has counted.
#[allow(unsafe_code)]
fn count(which: i32) -> i64 {
    type Count = unsafe extern "C" fn(i32) -> i64;
    // SAFETY: the stand-in is loaded, and its function takes and gives a number.
    unsafe {
        let count = sys::culib().get::<Count>(b"fakeCount").unwrap();
        count(which)
    }
}

#[test]
#[ignore = "needs the stand-in, which another test gives it"]
fn inner() {
    assert!(std::env::var_os(IN_THERE).is_some(), "started by hand");
    let fails = std::env::var("FAKE_CUDA_FAIL").unwrap() != "0";
    assert!(device(2).unwrap_err().message().contains("the driver shows 2"));
    assert_ne!(device_id(0).unwrap(), device_id(1).unwrap());
    let device = device(1).unwrap();
    assert_eq!(device.name(), "cuda:1");
    let bytes: Vec<u8> = (0..9_000_000u32).map(|i| (i % 251) as u8).collect();
    let (address, len) = (bytes.as_ptr().expose_provenance() as u64, bytes.len());
    // SAFETY: freed at the end, when all is copied.
    #[allow(unsafe_code)]
    let memory =
        unsafe { DeviceMemory::new(Arc::clone(&device), address, len as u64, Arc::new(())) };
    let mut out = vec![0; len];
    let read = memory.read(0, &mut out);
    if fails {
        let error = read.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        let words = "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS, 700)";
        assert!(error.message().contains(words), "{error}");
    } else {
        assert!(read.unwrap() && out == bytes);
        direct(&device, &memory, &bytes);
        upload(&device, &bytes);
    }
    assert!(device.fingerprinter(1).is_none(), "no kernel, no panic");
    assert_eq!(count(0), count(1), "every context that was entered was left");
    assert!(count(3) > 0, "copies waited for what was computed");
}

/// A whole region, whose pages are unlocked when it goes.
fn direct(device: &Arc<dyn Device>, memory: &DeviceMemory, bytes: &[u8]) {
    let mut region = Region::new(bytes.len() as u64).unwrap();
    assert!(region.lock(device.as_ref(), device.rings().budget()).unwrap());
    let (locks, unlocks, streams) = (count(4), count(5), count(7));
    let mut queues = Queues::default();
    queues.open(device).unwrap();
    assert_eq!(count(7), streams + 1);
    let part = Part { from: memory.clone(), offset: 0, to: 0..bytes.len() };
    let region = queues.fill(region, &[part], &Progress::default()).unwrap();
    assert!(region.bytes()[..bytes.len()] == *bytes);
    drop((region, queues));
    assert_eq!((count(4), count(5)), (locks, unlocks + 1));
    assert_eq!(count(7), streams, "its stream was destroyed");
}

fn upload(device: &Arc<dyn Device>, bytes: &[u8]) {
    let mut target = vec![0; bytes.len()];
    let address = target.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let memory =
        unsafe { DeviceMemory::new(Arc::clone(device), address, bytes.len() as u64, Arc::new(())) };
    memory.write(0, bytes).unwrap().unwrap().settle().unwrap();
    assert!(target == bytes);
}
