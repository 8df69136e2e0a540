//! Event files of a handler, read by TensorBoard itself where a Python has it.

use std::path::Path;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::handler::{NNHandler, TensorBoardLogger};

use crate::harness::*;
use crate::models::*;
use crate::tier;

const PRINT: &str = r#"
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
for tag in sorted(events.Tags()["scalars"]):
    print(tag, [event.step for event in events.Scalars(tag)], sep=": ")
"#;

fn event_files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Three epochs of three steps, back to the second, and one more.
#[test]
fn tensorboard_sees_the_epochs_of_a_handler_once_and_what_saves_take() {
    let (_, storage) = memory();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let add = |handler: &mut NNHandler<Net>| {
            handler.add_callback(TensorBoardLogger::new(&at).every_steps(3)).unwrap();
        };
        let mut handler = usual(&group, &storage);
        add(&mut handler);
        handler.auto_save(1, "runs", "e{epoch}").unwrap();
        handler.train(2).unwrap();
        handler.save("kept/e2").unwrap();
        handler.train(1).unwrap();
        let mut again = loaded(&group, &storage, "kept/e2").unwrap();
        add(&mut again);
        again.train(1).unwrap();
    });
    assert_eq!(event_files(dir.path()), 2, "one rank writes, a file for each process");
    let Some(mut python) = tier::python("tensorboard.backend.event_processing.event_accumulator")
    else {
        return;
    };
    let ran = python.args(["-c", PRINT]).arg(dir.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let told = String::from_utf8(ran.stdout).unwrap();
    let line = |tag: &str| told.lines().find_map(|line| line.strip_prefix(&format!("{tag}: ")));
    for tag in ["loss", "epoch", "epoch_time"] {
        assert_eq!(line(tag), Some("[3, 6, 9]"), "{tag}: {told}");
    }
    assert_eq!(line("lr"), Some("[3, 3, 6, 6, 9, 9]"), "{told}");
    assert_eq!(line("checkpoint/bytes").map(|steps| &steps[..5]), Some("[3, 6"), "{told}");
    assert_eq!(line("val_loss"), None, "nothing was validated: {told}");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let (_, storage) = memory();
    on_ranks(1, move |group| {
        let mut handler = usual(&group, &storage);
        for logger in [TensorBoardLogger::new(""), TensorBoardLogger::new("a").every_steps(0)] {
            let refused = handler.add_callback(logger).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        }
    });
}
