//! What training asks for, validation, and data of odd sizes.

use tch::{Device, Kind, Tensor, nn};
use tch_checkpoint::handler::{Loader, Model, NNHandler, TensorDataset};
use tch_checkpoint::torch::Sgd;
use tch_checkpoint::{Atomicity, ErrorKind};

use crate::harness::*;
use crate::models::*;

#[test]
fn what_is_missing_is_named_by_its_call() {
    on_ranks(1, |group| {
        let mut handler = bare(&group, &memory().1, 0.0);
        handler.quiet(true);
        let missing = |handler: &mut NNHandler<Net>, call: &str| {
            let error = handler.train(1).expect_err(call);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.message().contains(call), "{call}: {error}");
            assert_eq!((handler.epoch(), handler.step()), (0, 0));
        };
        missing(&mut handler, "set_optimizer");
        handler.set_optimizer(Sgd::default()).unwrap();
        missing(&mut handler, "set_loss_fn");
        handler.set_loss_fn(squared_error);
        missing(&mut handler, "set_train_loader");
        handler.set_train_loader(data(5), Loader::default());
        handler.train(1).unwrap();
    });
}

fn validated(every: u64, runs: &'static [u64]) -> Vec<bool> {
    on_ranks(1, move |group| {
        let mut handler = usual(&group, &memory().1);
        handler.set_val_loader(data(9), Loader::default());
        handler.validate_every(every);
        for epochs in runs {
            handler.train(*epochs).unwrap();
        }
        let losses = handler.history().series("val_loss");
        losses.iter().map(|loss| loss.is_finite()).collect::<Vec<_>>()
    })
    .remove(0)
}

#[test]
fn validation_comes_every_few_epochs_and_at_the_end() {
    assert_eq!(validated(1, &[3]), [true, true, true]);
    assert_eq!(validated(2, &[5]), [false, true, false, true, true]);
    assert_eq!(validated(2, &[1, 2]), [true, true, true]);
    assert_eq!(validated(0, &[3]), [false, false, false]);
}

#[test]
fn the_losses_of_history_are_means_over_all_samples() {
    for n in [1, 2, 3] {
        on_ranks(n, |group| {
            // A learning rate of 0: the model stays what it is.
            let mut handler = handler(&group, &memory().1, 0.0, Sgd { lr: 0.0, ..Sgd::default() });
            handler.set_val_loader(data(13), Loader { batch_size: 3, ..Loader::default() });
            handler.train(1).unwrap();
            let of = |samples: i64| {
                let inputs = ramp(&[samples, 4], 1.0);
                let targets = inputs.sum_dim_intlist(1i64, true, Kind::Float);
                squared_error(&handler.predict(&inputs), &targets).double_value(&[])
            };
            let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b, "{a} and {b}");
            near(handler.history().series("loss")[0], of(20));
            near(handler.history().series("val_loss")[0], of(13));
        });
    }
}

#[test]
fn an_incomplete_last_batch_is_trained_or_dropped() {
    let steps = |samples: i64, drop_last: bool| {
        on_ranks(2, move |group| {
            let mut handler = usual(&group, &memory().1);
            handler.set_train_loader(data(samples), Loader { drop_last, ..LOADER });
            handler.train(1).map(|()| handler.step())
        })
    };
    for (samples, drop_last, want) in [(20, false, 3), (20, true, 2), (21, true, 3), (1, false, 1)]
    {
        for got in steps(samples, drop_last) {
            assert_eq!(got.unwrap(), want, "{samples} {drop_last}");
        }
    }
    let error = one_error(&steps(6, true));
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

/// A mean over nothing would write `nan` into history and names, and train nothing.
#[test]
fn data_without_a_batch_is_refused() {
    type Change = fn(&mut NNHandler<Net>);
    let changes: [(&str, Change); 5] = [
        ("set_train_loader", |h| h.set_train_loader(data(0), LOADER)),
        ("set_val_loader", |h| h.set_val_loader(data(0), Loader::default())),
        ("set_train_loader", |h| {
            h.set_train_loader(data(3), Loader { batch_size: 0, ..Loader::default() });
        }),
        ("set_val_loader", |h| {
            h.set_val_loader(data(3), Loader { global_batch_size: Some(0), ..Loader::default() });
        }),
        ("set_val_loader", |h| h.set_val_loader(data(3), Loader { drop_last: true, ..LOADER })),
    ];
    for (call, change) in changes {
        let results = on_ranks(2, move |group| {
            let mut handler = usual(&group, &memory().1);
            change(&mut handler);
            let result = handler.train(1);
            assert_eq!((handler.step(), handler.history().epochs()), (0, 0));
            result
        });
        let error = one_error(&results);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.message().contains(call), "{call}: {error}");
    }
}

#[test]
fn batch_sizes_beyond_all_memory_are_one_batch() {
    on_ranks(2, |group| {
        let mut handler = usual(&group, &memory().1);
        let loader = Loader { batch_size: usize::MAX, ..Loader::default() };
        handler.set_train_loader(data(5), loader);
        handler.train(1).unwrap();
        assert_eq!(handler.step(), 1);
    });
}

#[test]
fn data_sets_refuse_what_does_not_fit() {
    let rows = |n: i64| Tensor::zeros([n, 2], (Kind::Float, Device::Cpu));
    let kind = |result: tch_checkpoint::Result<TensorDataset>| result.unwrap_err().kind();
    assert_eq!(kind(TensorDataset::new(rows(3), rows(4))), ErrorKind::InvalidInput);
    let scalar = || Tensor::from(1.0);
    assert_eq!(kind(TensorDataset::new(scalar(), scalar())), ErrorKind::InvalidInput);
    let whole = TensorDataset::new(rows(3), rows(3)).unwrap();
    let backwards = std::ops::Range { start: 2, end: 1 };
    for range in [0..4, backwards, -2..0, -1..2, i64::MIN..i64::MAX] {
        assert_eq!(kind(whole.range(range.clone())), ErrorKind::InvalidInput, "{range:?}");
    }
    assert!(whole.range(3..3).is_ok());
}

/// An epoch counts once everything of it is done, so that each has its numbers in history.
#[test]
fn an_epoch_whose_validation_fails_does_not_count() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.set_val_loader(data(9), Loader::default());
        // Backwards it is never asked for; a loss that is no scalar has no value.
        handler.set_loss_fn(|output, target| match target.size()[0] {
            9 => (output - target).square(),
            _ => squared_error(output, target),
        });
        let error = handler.train(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert_eq!((handler.epoch(), handler.history().epochs()), (0, 0));
        handler.set_loss_fn(squared_error);
        handler.train(2).unwrap();
        assert_eq!((handler.epoch(), handler.history().epochs()), (2, 2));
        handler.save("runs/a").unwrap();
        assert_eq!(loaded(&group, &storage, "runs/a").unwrap().epoch(), 2);
    });
}

/// Parameters of double precision are averaged in double precision.
#[test]
fn gradients_keep_their_precision() {
    let train = |n| {
        let all = on_ranks(n, |group| {
            let (_, storage) = memory();
            let items = vec![item("odd", &[3], "f64")];
            let mut handler = bag::<DoubleNet>(&group, &storage, &items).unwrap();
            handler.quiet(true);
            handler.set_optimizer(Sgd { lr: 0.1, ..Sgd::default() }).unwrap();
            handler.set_loss_fn(|o, t| (o - t).square().mean(Kind::Double));
            handler.set_train_loader(data(20), LOADER);
            handler.train(2).unwrap();
            Vec::<f64>::try_from(handler.vars().variables()["weight"].detach()).unwrap()
        });
        assert!(all.iter().all(|p| *p == all[0]));
        all.into_iter().next().unwrap()
    };
    for (one, two) in train(1).into_iter().zip(train(2)) {
        assert!((one - two).abs() < 1e-12, "{one} and {two}");
    }
}

/// Its table has a sparse gradient, which no optimizer here takes.
struct Lookup {
    bias: Tensor,
    table: Tensor,
}

impl Model for Lookup {
    type Config = ();

    fn new(path: &nn::Path<'_>, (): &()) -> Self {
        Self { bias: path.zeros("bias", &[4]), table: path.var_copy("table", &ramp(&[6, 4], 1.0)) }
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        let rows = input.abs().to_kind(Kind::Int64).clamp(0, 5);
        let rows = Tensor::embedding(&self.table, &rows, -1, false, true);
        (rows + &self.bias).sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Float).unsqueeze(1)
    }
}

#[test]
fn a_model_that_was_updated_in_part_is_not_saved_until_a_load_succeeds() {
    let _generator = exclusive();
    let (memory, storage) = memory();
    let group = tch_checkpoint::group::ProcessGroup::solo();
    let builder = NNHandler::<Lookup>::builder(()).process_group(&group);
    let mut handler = builder.storage(storage).build().unwrap();
    handler.quiet(true);
    handler.set_optimizer(Sgd::default()).unwrap();
    handler.set_loss_fn(squared_error);
    handler.set_train_loader(data(20), LOADER);
    handler.save("runs/good").unwrap();
    let before = parameters(&handler);

    let error = handler.train(1).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("table")), "{error}");
    assert_ne!(parameters(&handler), before, "the bias is updated first");
    assert_eq!(handler.step(), 0);
    assert_eq!(handler.save("runs/torn").unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(handler.train(1).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(entries(&memory, "runs"), ["good"]);

    handler.restore("runs/good", Atomicity::Atomic).unwrap();
    assert_eq!(parameters(&handler), before);
    handler.save("runs/again").unwrap();
}
