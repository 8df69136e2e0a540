//! The loggers: learning rates in the state, history in a file.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::group::Channel;
use tch_checkpoint::handler::{HistoryLogger, LearningRateLogger, NNHandler};
use tch_checkpoint::storage::{Fault, MemoryStorage, Storage};

use crate::harness::*;
use crate::models::*;

fn rates(handler: &NNHandler<Net>, id: &str) -> Vec<(u64, Vec<f64>)> {
    let logger = handler.callback::<LearningRateLogger>(id).unwrap();
    logger.rates().map(|(at, rates)| (at, rates.to_vec())).collect()
}

#[test]
fn learning_rates_are_kept_by_epoch_and_by_step_over_a_resume_and_are_bounded() {
    let (_, storage) = memory();
    on_ranks(2, move |group| {
        let add = |handler: &mut NNHandler<Net>| {
            handler.add_callback(LearningRateLogger::by_epoch().id("epoch")).unwrap();
            handler.add_callback(LearningRateLogger::by_step().keep(4).id("step")).unwrap();
        };
        let mut handler = usual(&group, &storage);
        add(&mut handler);
        handler.train(1).unwrap();
        handler.save("runs/e1").unwrap();
        let mut again = loaded(&group, &storage, "runs/e1").unwrap();
        add(&mut again);
        // As a user's own schedule does.
        again.restore("runs/e1", tch_checkpoint::Atomicity::Atomic).unwrap();
        again.train(1).unwrap();
        assert_eq!(rates(&again, "epoch"), [(1, vec![0.01]), (2, vec![0.01])]);
        let steps: Vec<u64> = rates(&again, "step").into_iter().map(|(at, _)| at).collect();
        assert_eq!(steps, [3, 4, 5, 6]);
        let none = again.add_callback(LearningRateLogger::by_step().keep(0).id("none"));
        assert_eq!(none.unwrap_err().kind(), ErrorKind::InvalidInput);
        // The two have ids of their own by default.
        again.add_callback(LearningRateLogger::by_epoch()).unwrap();
        again.add_callback(LearningRateLogger::by_step()).unwrap();
    });
}

fn lines(storage: &MemoryStorage, path: &str) -> Vec<String> {
    let text = String::from_utf8(storage.read(Path::new(path)).unwrap()).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn epochs_of(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(',').next().unwrap()).collect()
}

#[test]
fn the_history_file_has_each_epoch_once_whatever_was_written_after_the_checkpoint() {
    let (memory, storage) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let add = |handler: &mut NNHandler<Net>| {
            handler.add_callback(HistoryLogger::csv("logs/history.csv")).unwrap();
            handler.add_callback(HistoryLogger::json_lines("history.jsonl")).unwrap();
        };
        let mut handler = usual(&group, &storage);
        add(&mut handler);
        handler.train(2).unwrap();
        handler.save("runs/e2").unwrap();
        handler.train(2).unwrap();
        // All ranks have come to the end of `train`, and none goes on before it was looked at.
        let look = |expected: &[&str]| {
            let check = |_| {
                let lines = lines(&inner, "logs/history.csv");
                assert_eq!(epochs_of(&lines), expected);
                assert_eq!(lines[0], "epoch,epoch_time,loss,lr,val_loss");
                Ok(())
            };
            group.phase_all(Channel::Training, "look", || Ok(()), check).unwrap();
        };
        look(&["epoch", "1", "2", "3", "4"]);
        let mut again = loaded(&group, &storage, "runs/e2").unwrap();
        add(&mut again);
        // Cut back as soon as training begins, and then going on.
        again.train(0).unwrap();
        look(&["epoch", "1", "2"]);
        again.train(1).unwrap();
    });
    assert_eq!(epochs_of(&lines(&memory, "logs/history.csv")), ["epoch", "1", "2", "3"]);
    let json = lines(&memory, "./history.jsonl");
    assert_eq!(json.len(), 3);
    for (line, epoch) in json.iter().zip(1..) {
        let parsed: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(parsed["epoch"], epoch);
        assert!(parsed["loss"].is_f64() && parsed["val_loss"].is_null(), "{line}");
    }
    assert_eq!(entries(&memory, "logs"), ["history.csv"], "no temporary file stays");
}

#[test]
fn a_history_file_that_cannot_be_written_stops_nothing() {
    let stage = Stage::new(0);
    let inner = stage.clone();
    on_ranks(2, move |group| {
        let storage = inner.storage(&group);
        let mut handler = usual(&group, &storage);
        handler.add_callback(HistoryLogger::csv("logs/h.csv")).unwrap();
        if inner.is_failing(&group) {
            inner.faulty.fail_at(inner.faulty.operations() + 3, Fault::Error(28), true);
        }
        let (trained, told) = captured(|| handler.train(1));
        trained.unwrap();
        assert!(told.contains("HistoryLogger(logs/h.csv)"), "{told}");
        if inner.is_failing(&group) {
            inner.faulty.reset();
        }
        // A temporary file that was left behind is no obstacle.
        handler.train(1).unwrap();
    });
    assert_eq!(epochs_of(&lines(&stage.memory, "logs/h.csv")), ["epoch", "1", "2"]);
    let storage: Arc<dyn Storage> = Arc::new(stage.memory);
    on_ranks(1, move |group| {
        let mut handler = usual(&group, &storage);
        for bad in ["", "..", "/"] {
            let error = handler.add_callback(HistoryLogger::csv(bad)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}: {error}");
        }
    });
}

#[test]
fn a_history_file_that_is_ahead_of_the_first_epoch_is_cut_back_too() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let add = |handler: &mut NNHandler<Net>| {
            handler.add_callback(HistoryLogger::csv("h.csv")).unwrap();
        };
        let mut handler = usual(&group, &storage);
        add(&mut handler);
        // Nothing was trained, so nothing is to be told.
        handler.train(0).unwrap();
        assert_eq!(entries(&memory, "."), [""; 0]);
        handler.train_steps(1).unwrap();
        handler.save("runs/s1").unwrap();
        handler.train(2).unwrap();
        assert_eq!(epochs_of(&lines(&memory, "./h.csv")), ["epoch", "1", "2"]);
        let mut again = loaded(&group, &storage, "runs/s1").unwrap();
        add(&mut again);
        again.train_steps(1).unwrap();
        assert_eq!(epochs_of(&lines(&memory, "./h.csv")), ["epoch"]);
    });
}
