//! What a callback that fails does to training, and what a save that fails does to a callback.

use tch_checkpoint::autosave::Every;
use tch_checkpoint::handler::{Callback, CallbackContext, CallbackState};
use tch_checkpoint::storage::Fault;
use tch_checkpoint::{Atomicity, Error, ErrorKind, Result};

use crate::callbacks::{Does, request};
use crate::harness::*;
use crate::models::*;

/// Fails at one moment, by an error or a panic.
struct Fails {
    at: &'static str,
    panics: bool,
}

impl Fails {
    fn fail(&self, at: &str) -> Result<()> {
        if self.at != at {
            return Ok(());
        }
        assert!(!self.panics, "it panicked");
        Err(Error::new(ErrorKind::Storage, "it failed"))
    }
}

impl Callback for Fails {
    fn id(&self) -> String {
        "the weak one".to_owned()
    }
    fn on_train_begin(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.fail("begin")
    }
    fn on_step_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.fail("step")
    }
    fn on_epoch_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.fail("epoch")
    }
    fn on_train_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.fail("end")
    }
}

#[test]
fn a_failure_on_one_rank_is_a_warning_on_every_rank_and_training_goes_on() {
    for (at, panics) in [("begin", true), ("step", false), ("step", true), ("epoch", true)]
        .into_iter()
        .chain([("epoch", false), ("end", false)])
    {
        for weak in [0, 1] {
            let (_, storage) = memory();
            let told = on_ranks(2, move |group| {
                let mut handler = usual(&group, &storage);
                let here = group.rank().get() == weak;
                handler.add_callback(Fails { at: if here { at } else { "" }, panics }).unwrap();
                let (trained, told) = captured(|| handler.train(2));
                trained.unwrap();
                assert_eq!(handler.epoch(), 2);
                handler.save("runs/after").unwrap();
                (parameters(&handler), told)
            });
            assert_eq!(told[0].0, told[1].0, "replicas differ");
            for (rank, (_, told)) in told.iter().enumerate() {
                let what = if panics { "it panicked" } else { "it failed" };
                for words in ["the weak one", what, &format!("rank {weak}")] {
                    assert!(told.contains(words), "{at}, on {rank}: no {words} in {told}");
                }
            }
            // Once per epoch, not once per step.
            let warnings = told[weak as usize].1.matches("a callback failed").count();
            assert!(warnings <= 2, "{warnings} warnings at {at}");
        }
    }
}

#[test]
fn after_a_failure_the_coordinators_callback_decides_for_all() {
    for weak in [0, 1] {
        let (memory, storage) = memory();
        let saved = on_ranks(2, move |group| {
            let mut handler = usual(&group, &storage);
            let here = group.rank().get() == weak;
            let asks = Does::new("asks", move |context: &mut CallbackContext<'_>| {
                // On the weak rank it fails once, and later asks for nothing.
                if here && context.epoch() == 1 {
                    return Err(Error::new(ErrorKind::Device, "once"));
                }
                if !here || context.is_coordinator() {
                    context.save(request(&format!("runs/e{}", context.epoch())));
                }
                Ok(())
            });
            let saved = asks.saved.clone();
            handler.add_callback(asks).unwrap();
            handler.train(2).unwrap();
            saved.take()
        });
        let second = ["saving e2", "e2 as e2"].map(str::to_owned);
        if weak == 0 {
            assert_eq!(entries(&memory, "runs"), ["e2"]);
            assert_eq!(saved[0], second);
            assert_eq!(saved[1][0], "e1 as Disagreement", "it must hear that nothing was saved");
            assert_eq!(saved[1][1..], second);
        } else {
            assert_eq!(entries(&memory, "runs"), ["e1", "e2"]);
            assert_eq!(saved[0], saved[1]);
        }
    }
}

#[test]
fn a_save_asked_for_that_fails_is_an_error_of_train_on_every_rank() {
    for rank in [0, 1] {
        let stage = Stage::new(rank);
        let inner = stage.clone();
        let results = on_ranks(2, move |group| {
            let mut handler = usual(&group, &inner.storage(&group));
            handler.auto_save(1, "auto", "e{epoch}").unwrap();
            let asks = Does::new("asks", |context: &mut CallbackContext<'_>| {
                context.save(request("runs/one"));
                context.save(request("runs/two"));
                Ok(())
            });
            let saved = asks.saved.clone();
            handler.add_callback(asks).unwrap();
            // It looks once which checkpoints there are.
            handler.train(0).unwrap();
            assert_eq!(saved.take(), [""; 0]);
            if inner.is_failing(&group) {
                inner.faulty.fail_at(inner.faulty.operations() + 2, Fault::Error(28), true);
            }
            let failed = handler.train(1);
            if inner.is_failing(&group) {
                inner.faulty.reset();
            }
            assert_eq!(saved.take(), ["saving one", "one as Storage", "two as Storage"]);
            assert_eq!(handler.epoch(), 1, "the epoch itself was trained");
            handler.train(1).unwrap();
            failed
        });
        assert_eq!(one_error(&results).os_code(), Some(28));
        assert_eq!(visible(&stage.memory, "runs"), ["one", "two"]);
        assert_eq!(visible(&stage.memory, "auto"), ["e2"]);
    }
}

/// Has a tensor as long as the steps it saw.
struct Grows {
    weak: bool,
    rows: i64,
}

impl Callback for Grows {
    fn id(&self) -> String {
        "grows".to_owned()
    }
    fn on_step_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        if self.weak {
            return Err(Error::new(ErrorKind::Device, "it failed"));
        }
        self.rows += 1;
        Ok(())
    }
    fn save_state(&self) -> Result<CallbackState> {
        Ok(CallbackState::new().with_tensor("rows", &ramp(&[self.rows], 1.0)))
    }
    fn load_state(&mut self, state: &CallbackState) -> Result<()> {
        self.rows = state.tensors()["rows"].size()[0];
        Ok(())
    }
}

/// Before the vote at the end of the epoch only the weak rank knows that its state differs.
#[test]
fn a_save_inside_an_epoch_has_the_coordinators_tensors_whoever_failed_before_it() {
    for weak in [0, 1] {
        let (_, storage) = memory();
        on_ranks(2, move |group| {
            let mut handler = usual(&group, &storage);
            handler.auto_save(Every::steps(2).unwrap(), "auto", "s{step}").unwrap();
            let rank = group.rank().get();
            handler.add_callback(Grows { weak: rank == weak, rows: 1 }).unwrap();
            handler.train(1).unwrap();
            let mut again = loaded(&group, &storage, "auto/s2").unwrap();
            again.add_callback(Grows { weak: false, rows: 0 }).unwrap();
            let rows = again.callback::<Grows>("grows").unwrap().rows;
            assert_eq!(rows, if weak == 0 { 1 } else { 3 });
        });
    }
}

/// Asks for a save while it has no state.
struct Hungry {
    weak: bool,
    fed: bool,
}

impl Callback for Hungry {
    fn id(&self) -> String {
        "hungry".to_owned()
    }
    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if !self.fed {
            context.save(request("runs/hungry"));
        }
        Ok(())
    }
    fn load_state(&mut self, _: &CallbackState) -> Result<()> {
        if self.weak {
            return Err(Error::new(ErrorKind::Device, "it failed"));
        }
        self.fed = true;
        Ok(())
    }
}

/// The load stands, so the callback goes on with another state on that rank than on the others.
#[test]
fn after_a_state_was_lost_on_one_rank_the_coordinators_callback_decides_for_all() {
    for weak in [0, 1] {
        let (memory, storage) = memory();
        on_ranks(2, move |group| {
            let mut handler = usual(&group, &storage);
            let here = group.rank().get() == weak;
            handler.add_callback(Hungry { weak: here, fed: true }).unwrap();
            handler.save("runs/start").unwrap();
            let mut live = usual(&group, &storage);
            live.add_callback(Hungry { weak: here, fed: false }).unwrap();
            let (restored, told) = captured(|| live.restore("runs/start", Atomicity::Atomic));
            restored.unwrap();
            assert_eq!(told.contains("is lost"), here, "{told}");
            let (trained, told) = captured(|| live.train(1));
            trained.unwrap();
            assert!(told.contains("it failed") != here, "told where it is not known yet: {told}");
        });
        let expected: &[&str] = if weak == 0 { &["hungry", "start"] } else { &["start"] };
        assert_eq!(entries(&memory, "runs"), expected);
    }
}
