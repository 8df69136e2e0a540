//! `latest` and `best`: damaged, they lead to a checkpoint that is whole and was committed, or to an
//! error, and saving goes on.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig};
use tch_checkpoint::storage::{Directory, MemoryStorage, Storage};
use tch_checkpoint::{ErrorKind, ProcessGroup, read_tensor};

use crate::checkpointer::toy::{Toy, at, config};
use crate::harness::*;
use crate::tier;

const RUN: &str = "dir/run";

/// A run of three checkpoints, of which the second is the best.
struct Run {
    memory: MemoryStorage,
    checkpointer: Checkpointer,
}

impl Run {
    fn new() -> Self {
        let memory = MemoryStorage::new();
        let config = CheckpointerConfig {
            save_every_steps: Some(10),
            monitor: Some("loss".to_owned()),
            ..config(Path::new("dir"))
        };
        let storage = Arc::new(memory.clone());
        let checkpointer = Checkpointer::with_storage(&ProcessGroup::solo(), storage, config);
        let mut run = Self { memory, checkpointer: checkpointer.unwrap() };
        for (step, loss) in [(10, 0.5), (20, 0.25), (30, 0.75)] {
            run.save(step, loss);
        }
        run
    }

    fn save(&mut self, step: u64, loss: f64) {
        let at = at(step).metric("loss", loss);
        let saved = Toy::after(step, 0).with(|parts| self.checkpointer.step_callback(&at, parts));
        assert!(saved.unwrap().save.is_some());
    }

    fn directory(&self) -> Arc<dyn Directory> {
        self.memory.open_dir(Path::new(RUN)).unwrap()
    }

    /// The step to which a pointer leads: a whole checkpoint with the content of that step.
    fn led_to(&self, pointer: &str) -> Option<u64> {
        let wanted = Wanted::parse(Path::new(RUN).join(pointer)).unwrap();
        let found = match catalog::find(&self.memory, &wanted) {
            Ok(found) => found,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                return None;
            }
        };
        assert_good(&self.memory, &format!("{RUN}/{}", found.name));
        let step = found.manifest.step();
        let (_, bytes) = read_tensor(&self.memory, &wanted, "weights").unwrap();
        assert!(bytes == Toy::after(step, 0).weights, "{pointer} led to other bytes");
        Some(step)
    }

    fn set_link(&self, pointer: &str, text: &str) -> bool {
        let dir = self.directory();
        let _ = dir.remove_file(pointer);
        dir.create_link(pointer, text).is_ok()
    }
}

/// Every text that one flipped bit makes of another, as a reader sees it.
fn flipped(text: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..text.len() * 8).map(|bit| {
        let mut text = text.to_vec();
        text[bit / 8] ^= 1 << (bit % 8);
        text
    })
}

/// `latest` goes by manifests, so that nothing in the pointer matters; `best` by the link.
#[test]
fn every_bit_of_the_links_leads_to_a_whole_checkpoint_or_to_an_error() {
    let run = Run::new();
    assert_eq!((run.led_to("latest"), run.led_to("best")), (Some(30), Some(20)));
    let (mut other, mut errors) = (0, 0);
    for pointer in ["latest", "best"] {
        let text = run.directory().read_link(pointer).unwrap();
        for text in flipped(text.as_bytes()) {
            if !run.set_link(pointer, &String::from_utf8_lossy(&text)) {
                continue;
            }
            match run.led_to(pointer) {
                Some(30) if pointer == "latest" => {}
                Some(step) => {
                    assert!([10, 30].contains(&step), "step {step}");
                    other += 1;
                }
                None => errors += 1,
            }
        }
        run.set_link(pointer, &text);
    }
    assert_eq!((run.led_to("latest"), run.led_to("best")), (Some(30), Some(20)));
    assert!(errors > 150 && other <= 2, "{errors} errors, {other} other checkpoints");
    tier::figure("flipped bits of links", format!("{errors} errors, {other} led to another one"));
}

/// Without links the JSON counts.
#[test]
fn every_bit_of_the_json_leads_to_a_whole_checkpoint_or_to_an_error() {
    let run = Run::new();
    let (mut right, mut other, mut errors) = (0, 0, 0);
    for with_link in [true, false] {
        for pointer in ["latest", "best"] {
            let file = Path::new(RUN).join(format!("{pointer}.json"));
            let json = run.memory.read(&file).unwrap();
            if !with_link {
                run.directory().remove_file(pointer).unwrap();
            }
            let expected = run.led_to(pointer);
            assert!(expected.is_some());
            // A file that is not read is looked at now and then.
            for flipped in flipped(&json).step_by(if with_link { 11 } else { 1 }) {
                run.memory.write(&file, &flipped).unwrap();
                match run.led_to(pointer) {
                    step if step == expected => right += 1,
                    Some(step) => {
                        assert!(!with_link && pointer == "best", "step {step}");
                        other += 1;
                    }
                    None => {
                        assert!(!with_link && pointer == "best");
                        errors += 1;
                    }
                }
            }
            run.memory.write(&file, &json).unwrap();
        }
    }
    assert!(errors > 500 && other <= 2, "{errors} errors, {other} other checkpoints");
    let figure = format!("{right} right, {errors} errors, {other} led to another one");
    tier::figure("flipped bits of pointers in JSON", figure);
}

/// A damaged pointer does not stop a run: the next save commits and moves what is still a pointer.
#[test]
fn saving_goes_on_with_damaged_pointers() {
    let mut run = Run::new();
    run.set_link("best", "checkpoint_step_00000\u{1}20");
    run.set_link("latest", "..");
    for file in ["best.json", "latest.json"] {
        let file = Path::new(RUN).join(file);
        run.memory.corrupt(&file, 1, 0x20).unwrap();
    }
    run.save(40, 0.125);
    assert_eq!((run.led_to("latest"), run.led_to("best")), (Some(40), Some(40)));
    let link = |name| run.directory().read_link(name).unwrap();
    assert_eq!([link("latest"), link("best")], ["checkpoint_step_00000040"; 2]);
}
