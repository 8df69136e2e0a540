//! The kernel for devices, compiled for the host, sums up what this module does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::Sums;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `None` where there is no C++ compiler.
fn compiled(dir: &Path) -> Option<PathBuf> {
    let program = dir.join("kernel");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let options = ["-std=c++17", "-O1", "-w", "-fsanitize=alignment"];
    let compiling = Command::new(compiler)
        .args(options)
        .arg("-fsanitize-undefined-trap-on-error")
        .arg(format!("-I{ROOT}/src/device/cuda"))
        .arg("-o")
        .arg(&program)
        .arg(format!("{ROOT}/src/audit/fingerprint/kernel_host.cpp"))
        .output();
    let output = compiling.ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

#[derive(Debug)]
struct Case {
    odd: u32,
    blocks: u32,
    threads: u32,
    bytes: Vec<u8>,
}

fn run(program: &Path, cases: &[Case]) -> Vec<[u64; 2]> {
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let all: Vec<u8> = cases.iter().flat_map(Case::written).collect();
    let writer = std::thread::spawn(move || input.write_all(&all));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    writer.join().unwrap().unwrap();
    let (words, _) = output.stdout.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().map(|pair| pair.map(u64::from_ne_bytes)).collect()
}

impl Case {
    fn written(&self) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap();
        let header = [len, self.odd, self.blocks, self.threads];
        let mut all: Vec<u8> = header.iter().flat_map(|n| n.to_ne_bytes()).collect();
        all.extend(&self.bytes);
        all
    }
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (0u32..16, 1u32..4, prop::sample::select(vec![32u32, 64, 96, 256]));
    let len = prop_oneof![0..70usize, 4000..4200usize, 0..40_000usize];
    let bytes = len.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len));
    (shape, bytes).prop_map(|((odd, blocks, threads), bytes)| Case { odd, blocks, threads, bytes })
}

/// It can be made again only where NVRTC is (`src/device/cuda/make-ptx.py`).
#[test]
fn the_code_for_devices_is_that_of_the_kernel_and_for_old_drivers_too() {
    let [source, ptx] = [
        include_str!("../../device/cuda/fingerprint.cu"),
        include_str!("../../device/cuda/fingerprint.ptx"),
    ];
    let crc = crc32fast::hash(source.as_bytes());
    let made_of = format!("fingerprint.cu with CRC-32 {crc:08x}\n");
    assert!(ptx.contains(&made_of), "run src/device/cuda/make-ptx.py");
    for needed in [".version 8.0\n", ".target sm_70\n", ".entry fingerprint("] {
        assert!(ptx.contains(needed), "{needed}");
    }
}

#[test]
fn the_kernel_sums_up_what_the_host_does_for_every_length_alignment_and_grid() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = compiled(dir.path()) else {
        eprintln!("no C++ compiler: not tested");
        return;
    };
    let mut runner = TestRunner::deterministic();
    let drawn = (0..200).map(|_| case().new_tree(&mut runner).unwrap().current());
    let edges = [0, 1, 15, 16, 17, 4095, 4096, 4097, 8192, 12_300];
    let every = edges.iter().flat_map(|len| {
        let bytes: Vec<u8> = (0..=255).cycle().take(*len).collect();
        (0..16).map(move |odd| Case { odd, blocks: 1, threads: 64, bytes: bytes.clone() })
    });
    let cases: Vec<Case> = drawn.chain(every).collect();
    let summed = run(&program, &cases);
    assert_eq!(summed.len(), cases.len());
    for (case, sums) in cases.iter().zip(summed) {
        let (odd, len) = (case.odd, case.bytes.len());
        let expected = Sums::of(0, &case.bytes).low_and_high();
        assert_eq!(sums, expected, "{len} bytes from {odd} on, {} × {}", case.blocks, case.threads);
    }
}
