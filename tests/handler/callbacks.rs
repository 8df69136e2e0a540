//! When callbacks run, and what they can ask for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Tensor, no_grad};
use tch_checkpoint::handler::{Callback, CallbackContext, SaveRequest};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::{Checkpoint, CheckpointPath, Error, ErrorKind, Result};

use crate::harness::*;
use crate::models::*;

type Moments = Rc<RefCell<Vec<String>>>;

/// Writes down what it sees.
struct Recorder {
    name: &'static str,
    seen: Moments,
}

impl Recorder {
    fn note(&self, moment: &str, context: &CallbackContext<'_>) -> Result<()> {
        let mut logs = context.logs().clone();
        logs.remove("epoch_time");
        let (epoch, step, history) = (context.epoch(), context.step(), context.history().epochs());
        let (rates, name) = (context.optimizer().unwrap().lr(), self.name);
        let text = format!("{name} {moment} {epoch} {step} {history} {rates} {logs:?}");
        assert_eq!(context.variables().len(), 4);
        self.seen.borrow_mut().push(text);
        Ok(())
    }
}

impl Callback for Recorder {
    fn id(&self) -> String {
        self.name.to_owned()
    }
    fn on_train_begin(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.note("begin", context)
    }
    fn on_step_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.note("step", context)
    }
    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.note("epoch", context)
    }
    fn on_train_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.note("end", context)
    }
}

#[test]
fn hooks_run_in_order_on_every_rank_with_the_same_numbers() {
    for n in [1, 2] {
        let seen = on_ranks(n, |group| {
            let (_, storage) = memory();
            let mut handler = usual(&group, &storage);
            handler.set_val_loader(data(9), LOADER);
            let seen = Moments::default();
            for name in ["first", "second"] {
                handler.add_callback(Recorder { name, seen: seen.clone() }).unwrap();
            }
            handler.train(2).unwrap();
            assert_eq!(handler.stop_reason(), None);
            seen.take()
        });
        assert!(seen.iter().all(|rank| *rank == seen[0]), "{seen:#?}");
        let moments: Vec<String> = seen[0]
            .iter()
            .map(|text| text.split(' ').take(5).collect::<Vec<_>>().join(" "))
            .collect();
        let mut expected = Vec::new();
        for (moment, numbers) in [
            ("begin", "0 0 0"),
            ("step", "0 1 0"),
            ("step", "0 2 0"),
            ("step", "0 3 0"),
            ("epoch", "1 3 1"),
            ("step", "1 4 1"),
            ("step", "1 5 1"),
            ("step", "1 6 1"),
            ("epoch", "2 6 2"),
            ("end", "2 6 2"),
        ] {
            expected.extend(["first", "second"].map(|name| format!("{name} {moment} {numbers}")));
        }
        assert_eq!(moments, expected);
        let of_epochs = seen[0].iter().filter(|text| text.contains(" epoch "));
        assert!(of_epochs.clone().all(|text| text.contains("val_loss") && !text.contains("NaN")));
        assert!(seen[0].iter().filter(|text| text.contains(" step ")).all(|t| t.ends_with("{}")));
    }
}

/// Does what a closure says, at the end of each epoch.
pub struct Does<F> {
    id: &'static str,
    epoch_end: F,
    pub saved: Rc<RefCell<Vec<String>>>,
}

impl<F> Does<F>
where
    F: FnMut(&mut CallbackContext<'_>) -> Result<()> + 'static,
{
    pub fn new(id: &'static str, epoch_end: F) -> Self {
        Self { id, epoch_end, saved: Rc::default() }
    }
}

impl<F> Callback for Does<F>
where
    F: FnMut(&mut CallbackContext<'_>) -> Result<()> + 'static,
{
    fn id(&self) -> String {
        self.id.to_owned()
    }
    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        (self.epoch_end)(context)
    }
    fn on_saving(&mut self, request: &SaveRequest) {
        self.saved.borrow_mut().push(format!("saving {}", request.name()));
    }
    fn on_saved(&mut self, request: &SaveRequest, outcome: Result<&Checkpoint, &Error>) {
        let outcome = match outcome {
            Ok(checkpoint) => checkpoint.name.to_string(),
            Err(error) => format!("{:?}", error.kind()),
        };
        self.saved.borrow_mut().push(format!("{} as {outcome}", request.name()));
    }
}

pub fn request(name: &str) -> SaveRequest {
    SaveRequest::new(&CheckpointPath::parse(name).unwrap())
}

/// Looks at the end of training at what is there.
struct AtEnd(Rc<RefCell<Vec<String>>>);

impl Callback for AtEnd {
    fn id(&self) -> String {
        "at end".to_owned()
    }
    fn on_train_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.0.replace(entries(context.storage(), "runs"));
        context.save(request("runs/after"));
        context.stop("too late to mean anything");
        Ok(())
    }
}

#[test]
fn saves_asked_for_come_before_the_automatic_one_and_the_end_after_both() {
    let (memory, storage) = memory();
    on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.auto_save(-1, "runs", "auto").unwrap();
        let before = Rc::new(RefCell::new(Vec::new()));
        let noted = before.clone();
        let asks = Does::new("asks", move |context: &mut CallbackContext<'_>| {
            noted.borrow_mut().push(entries(context.storage(), "runs"));
            context.save(request("runs/mine"));
            context.stop("enough");
            Ok(())
        });
        let saved = asks.saved.clone();
        let at_end: Rc<RefCell<Vec<String>>> = Rc::default();
        handler.add_callback(asks).unwrap();
        handler.add_callback(AtEnd(at_end.clone())).unwrap();
        handler.train(5).unwrap();
        assert_eq!((handler.epoch(), handler.stop_reason()), (1, Some("enough")));
        assert_eq!(before.take(), [[""; 0]]);
        assert_eq!(saved.take(), ["saving mine", "mine as mine"]);
        // The stopped epoch counts as the last one, which interval -1 saves.
        assert_eq!(at_end.take(), ["auto", "mine"]);

        // The next call trains again.
        handler.train(1).unwrap();
        assert_eq!(saved.take(), ["saving mine", "mine as mine-v1"]);
        assert_eq!(handler.epoch(), 2);
    });
    assert_eq!(
        entries(&memory, "runs"),
        ["after", "after-v1", "auto", "auto-v1", "mine", "mine-v1"]
    );
}

struct StopsAtOnce;

impl Callback for StopsAtOnce {
    fn id(&self) -> String {
        "stops at once".to_owned()
    }
    fn on_train_begin(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        context.stop("there is nothing to learn");
        Ok(())
    }
    fn on_step_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        panic!("a step was trained")
    }
}

#[test]
fn a_stop_before_the_first_epoch_trains_nothing() {
    on_ranks(2, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.add_callback(StopsAtOnce).unwrap();
        handler.train(3).unwrap();
        assert_eq!((handler.epoch(), handler.step()), (0, 0));
        assert_eq!(handler.stop_reason(), Some("there is nothing to learn"));
    });
}

#[test]
fn ranks_that_ask_for_different_things_get_one_error() {
    let failed = on_ranks(2, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        let stops = Does::new("odd", |context: &mut CallbackContext<'_>| {
            if !context.is_coordinator() {
                context.stop("here alone");
            }
            Ok(())
        });
        handler.add_callback(stops).unwrap();
        handler.train(1)
    });
    let error = one_error(&failed);
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    assert!(error.message().contains("`odd`"), "{error}");
    assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(1));
}

#[test]
fn ranks_with_different_callbacks_are_refused_before_training() {
    let (_, storage) = memory();
    let failed = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        let name = if group.is_coordinator() { "a" } else { "b" };
        handler.add_callback(Recorder { name, seen: Moments::default() }).unwrap();
        let saved = handler.save("runs/a").unwrap_err();
        assert_eq!(saved.kind(), ErrorKind::Disagreement, "{saved}");
        let failed = handler.train(1);
        assert_eq!(handler.step(), 0);
        failed
    });
    let error = one_error(&failed);
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    assert!(error.message().contains("callbacks"), "{error}");
}

/// Its id is whatever the test says.
struct Named(String);

impl Callback for Named {
    fn id(&self) -> String {
        self.0.clone()
    }
    fn on_step_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        context.stop("now");
        context.save(request("runs/now"));
        Ok(())
    }
}

#[test]
fn ids_that_are_taken_or_unfit_are_refused() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.add_callback(Named("a".to_owned())).unwrap();
        for bad in ["a", "", "a\u{7}", &"x".repeat(201)] {
            let error = handler.add_callback(Named(bad.to_owned())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        handler.add_callback(Named("x".repeat(200))).unwrap();
        assert!(handler.callback::<Named>("a").is_some());
        assert!(handler.callback::<AtEnd>("a").is_none());
        assert!(handler.callback::<Named>("b").is_none());
    });
}

#[test]
fn nothing_can_be_asked_for_after_a_step() {
    let (memory, storage) = memory();
    on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.add_callback(Named("hasty".to_owned())).unwrap();
        let (trained, told) = captured(|| handler.train(2));
        trained.unwrap();
        assert_eq!(handler.epoch(), 2);
        assert!(told.contains("hasty") && told.contains("on_epoch_end"), "{told}");
    });
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}

fn ones(context: &CallbackContext<'_>) -> BTreeMap<String, Tensor> {
    let variables = context.variables().variables().into_iter();
    variables.map(|(name, t)| (name, no_grad(|| t.ones_like()))).collect()
}

#[test]
fn weights_asked_for_are_the_coordinators_on_every_rank_and_unfit_ones_are_refused() {
    let (_, storage) = memory();
    let after = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.auto_save(-1, "runs", "auto").unwrap();
        let puts = Does::new("puts", |context: &mut CallbackContext<'_>| {
            let mut short = ones(context);
            short.pop_first();
            let mut wrong = ones(context);
            wrong.insert("input.weight".to_owned(), Tensor::from(1.0));
            let mut more = ones(context);
            more.insert("more".to_owned(), Tensor::from(1.0));
            for bad in [short, wrong, more] {
                assert_eq!(context.put_weights(bad).unwrap_err().kind(), ErrorKind::Mismatch);
            }
            if context.is_coordinator() {
                context.put_weights(ones(context))?;
            }
            Ok(())
        });
        handler.add_callback(puts).unwrap();
        handler.train(1).unwrap();
        let saved = loaded(&group, &storage, "runs/auto").unwrap();
        (parameters(&handler), parameters(&saved))
    });
    for (live, saved) in after {
        assert!(live.iter().all(|value| *value == 1.0), "{live:?}");
        assert_eq!(saved, live, "the automatic save comes after");
    }
}

#[test]
fn only_the_very_checkpoint_that_is_superseded_is_replaced_or_removed() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        let mine = handler.save("runs/mine").unwrap();
        let other = handler.save("runs/other").unwrap();
        // `other` is saved again by somebody else: another save id.
        handler.save("runs/other").unwrap();
        memory.create_dir_all(Path::new("runs/taken")).unwrap();
        let earlier = vec![(mine.name.clone(), mine.save_id), (other.name, other.save_id)];
        let supersedes = Does::new("s", move |context: &mut CallbackContext<'_>| {
            let name = if context.epoch() == 1 { "runs/mine" } else { "runs/other" };
            context.save(request(name).supersede(earlier.clone()));
            Ok(())
        });
        handler.add_callback(supersedes).unwrap();
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["mine", "other", "taken"], "replaced");
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        assert_eq!(loaded(&group, &storage, "runs/mine").unwrap().epoch(), 1);
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["mine", "other", "other-v1", "taken"], "numbered");
    });
}
