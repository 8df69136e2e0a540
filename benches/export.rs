//! An export to a Hugging Face directory beside the limit of the disk: the same bytes of the same
//! files read and written past the page cache, in large blocks, one thread reading while another
//! writes, and fsynced; once into one file, and once into a new directory of files as large as the
//! export's, since where a file system puts what is new makes a difference. Prints the best of some
//! rounds, and the medians of the ratios of each round.
//!
//! `cargo bench --no-default-features --bench export -- [DIR]`; `DIR` lies on the disk in question.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a program of its own")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};
use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::export::{ExportOptions, HuggingFace, export};
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{CheckpointPath, ProcessGroup, Result, SaveOptions, save};

const BLOCK: usize = 8 << 20;
const ALIGNMENT: usize = 4096;
/// Blocks that are under way.
const DEPTH: usize = 4;
const SHARD_BYTES: u64 = 200_000_000;
const ROUNDS: usize = 7;
/// What was removed is discarded by the device meanwhile.
const SETTLED: Duration = Duration::from_secs(3);

/// Bytes that do not compress, and take no memory.
struct Mixed(u64);

impl TensorSource for Mixed {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        for (at, bytes) in (offset..).step_by(8).zip(out.chunks_mut(8)) {
            let mixed = (at ^ self.0.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bytes.copy_from_slice(&mixed.rotate_left(29).to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

/// The weights of GPT-2 (124M) and one moment of Adam for each: about 1 GB in 296 tensors.
fn state() -> StateDict {
    let mut shapes =
        vec![("wte".to_owned(), vec![50257, 768]), ("wpe".to_owned(), vec![1024, 768])];
    for layer in 0..12 {
        for (name, shape) in [
            ("ln_1.weight", vec![768]),
            ("ln_1.bias", vec![768]),
            ("attn.c_attn.weight", vec![768, 2304]),
            ("attn.c_attn.bias", vec![2304]),
            ("attn.c_proj.weight", vec![768, 768]),
            ("attn.c_proj.bias", vec![768]),
            ("ln_2.weight", vec![768]),
            ("ln_2.bias", vec![768]),
            ("mlp.c_fc.weight", vec![768, 3072]),
            ("mlp.c_fc.bias", vec![3072]),
            ("mlp.c_proj.weight", vec![3072, 768]),
            ("mlp.c_proj.bias", vec![768]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    shapes.extend([("ln_f.weight".to_owned(), vec![768]), ("ln_f.bias".to_owned(), vec![768])]);
    let mut state = StateDict::new();
    for (number, (name, shape)) in (0..).zip(shapes) {
        for (component, name) in [
            (Component::model(), name.clone()),
            (Component::optimizer(), format!("optimizer.{name}.exp_avg")),
        ] {
            let spec = TensorSpec::new(Dtype::F32, shape.clone()).unwrap();
            let source = Arc::new(Mixed(number));
            state.add(&component, TensorName::new(name).unwrap(), spec, source).unwrap();
        }
    }
    state
}

/// The data files of a checkpoint.
fn files(at: &Path) -> Vec<PathBuf> {
    let found = catalog::find(&LocalStorage::new(), &Wanted::parse(at).unwrap()).unwrap();
    found.manifest.data_files().iter().map(|file| at.join(&file.name)).collect()
}

fn forget(files: &[PathBuf]) {
    for path in files {
        let file = File::open(path).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// A block, and where it begins on a page.
fn block() -> (Vec<u8>, usize) {
    let memory = vec![1; BLOCK + ALIGNMENT];
    let begin = memory.as_ptr().align_offset(ALIGNMENT);
    (memory, begin)
}

fn open(path: &Path, flags: OFlags) -> File {
    let flags = flags | OFlags::DIRECT | OFlags::CLOEXEC;
    File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).unwrap())
}

/// A file in `dir`, with room for so many bytes.
fn raw(dir: &Path, number: usize, bytes: u64) -> File {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = open(&dir.join(format!("raw-{number}")), flags);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes).unwrap();
    file
}

/// Copies all of `files` into files of so many bytes each.
fn copy(files: &[PathBuf], to: &Path, bytes: u64) {
    let (give_full, full) = sync_channel::<((Vec<u8>, usize), usize)>(DEPTH);
    let (give_free, free) = sync_channel(DEPTH);
    (0..DEPTH).for_each(|_| give_free.send(block()).unwrap());
    thread::scope(|scope| {
        scope.spawn(move || {
            for path in files {
                let file = open(path, OFlags::RDONLY);
                let mut at = 0;
                loop {
                    let (mut memory, begin) = free.recv().unwrap();
                    let count = rustix::io::pread(&file, &mut memory[begin..begin + BLOCK], at);
                    let count = count.unwrap();
                    at += count as u64;
                    give_full.send(((memory, begin), count)).unwrap();
                    if count < BLOCK {
                        break;
                    }
                }
            }
        });
        let (mut outs, mut at) = (vec![raw(to, 0, bytes)], 0);
        for ((memory, begin), count) in full {
            let count = count.next_multiple_of(ALIGNMENT);
            if at + count as u64 > bytes {
                outs.push(raw(to, outs.len(), bytes));
                at = 0;
            }
            let (out, mut done) = (outs.last().unwrap(), 0);
            while done < count {
                let part = &memory[begin + done..begin + count];
                done += rustix::io::pwrite(out, part, at + done as u64).unwrap();
            }
            at += count as u64;
            // The reader may be done.
            let _ = give_free.send((memory, begin));
        }
        outs.iter().for_each(|out| out.sync_all().unwrap());
    });
}

fn exported(from: &Path, to: &Path) {
    let options = ExportOptions {
        components: None,
        hugging_face: Some(HuggingFace { max_shard_bytes: SHARD_BYTES, ..HuggingFace::default() }),
        ..ExportOptions::default()
    };
    let (solo, wanted) = (ProcessGroup::solo(), Wanted::parse(from).unwrap());
    export(&solo, &LocalStorage::new(), &wanted, to, &options).unwrap();
}

fn main() {
    let place = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let place = place.map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(place).unwrap();
    let at = |name: &str| dir.path().join(name);
    let (from, solo) = (at("checkpoint"), ProcessGroup::solo());
    let path = CheckpointPath::parse(&from).unwrap();
    save(&solo, &LocalStorage::new(), &path, &state(), &SaveOptions::default()).unwrap();
    let files = files(&from);
    let bytes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let gb_per_s = |time: Duration| bytes as f64 / 1e9 / time.as_secs_f64();
    let room = bytes.next_multiple_of(ALIGNMENT as u64) + BLOCK as u64 * files.len() as u64;
    let (mut best, mut ratios) = ([f64::MIN; 3], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        let mut rates = [0.0; 3];
        // Each first in turn.
        for what in (round..round + 3).map(|n| n % 3) {
            forget(&files);
            rustix::fs::sync();
            thread::sleep(SETTLED);
            let begun = Instant::now();
            match what {
                0 => copy(&files, dir.path(), room),
                1 => {
                    fs::create_dir(at("raw")).unwrap();
                    copy(&files, &at("raw"), SHARD_BYTES);
                }
                _ => exported(&from, &at("hf")),
            }
            rates[what] = gb_per_s(begun.elapsed());
            best[what] = best[what].max(rates[what]);
            let _ = fs::remove_file(at("raw-0"));
            let _ = fs::remove_dir_all(at("raw"));
            let _ = fs::remove_dir_all(at("hf"));
        }
        let [one, several, export] = rates;
        println!(
            "round {round}: one file {one:.2} GB/s, files {several:.2} GB/s, export {export:.2} GB/s"
        );
        ratios[0].push(export / one);
        ratios[1].push(export / several);
    }
    let [one, several, export] = best;
    println!(
        "export of {bytes} bytes: best {one:.2} GB/s of one file, {several:.2} GB/s of files, \
         {export:.2} GB/s of the export"
    );
    let [to_one, to_several] = ratios.map(|mut ratios| {
        ratios.sort_by(f64::total_cmp);
        ratios[ROUNDS / 2]
    });
    println!("median ratios: {to_one:.2} to one file, {to_several:.2} to files");
}
