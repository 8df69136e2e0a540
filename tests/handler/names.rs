//! Names of automatic checkpoints, and what `auto_save` refuses.

use tch_checkpoint::ErrorKind;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{Loader, NNHandler};

use crate::harness::*;
use crate::models::*;

/// What is saved by two epochs under `template`, with validation data and a metric.
fn saved_as(template: &'static str) -> Vec<String> {
    on_ranks(1, move |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.set_val_loader(data(8), Loader::default());
        handler.add_metric("half", |_, _| 0.5);
        handler.auto_save(1, "runs", template).unwrap();
        handler.train(2).unwrap();
        let of = |name: &str| format!("{:.4}", handler.history().series(name)[1]);
        let (loss, val_loss) = (of("loss"), of("val_loss"));
        assert_ne!(loss, val_loss);
        let name = |text: String| text.replace(&loss, "LOSS").replace(&val_loss, "VAL");
        entries(&memory, "runs").into_iter().map(name).collect::<Vec<_>>()
    })
    .remove(0)
}

#[test]
fn fields_are_those_of_the_epoch() {
    assert_eq!(saved_as("e{epoch:02d}_s{step}"), ["e01_s3", "e02_s6"]);
    assert_eq!(saved_as("{epoch}_{loss:.4f}_{val_loss:.4f}")[1], "2_LOSS_VAL");
    assert_eq!(saved_as("e{epoch}_{half:.2f}_{val_half:.1f}")[0], "e1_0.50_0.5");
    assert_eq!(saved_as("e{epoch}_lr{lr:.3f}_{lr_group_0:.2f}")[0], "e1_lr0.010_0.01");
    assert_eq!(saved_as("e{epoch}_{lr_group_1}"), ["e1_nan", "e2_nan"]);
}

#[test]
fn a_known_field_without_a_value_prints_nan() {
    let names = on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.add_metric("half", |_, _| 0.5);
        handler.auto_save(1, "runs", "e{epoch}_{val_loss:.2f}_{val_half}").unwrap();
        handler.train(1).unwrap();
        entries(&memory, "runs")
    });
    assert_eq!(names, [["e1_nan_nan"]]);
}

#[test]
fn a_format_that_fits_no_float_gives_a_name_all_the_same() {
    assert_eq!(saved_as("loss{loss:02d}"), ["loss_epoch1", "loss_epoch2"]);
}

#[test]
fn bad_templates_and_intervals_are_refused_at_once() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        for template in ["", "{accuracy}", "{epoch:q}", "a/b", "a..b", "{loss:.99f}", "{", "latest"]
        {
            let error = handler.auto_save(1, "runs", template).expect_err(template);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{template}: {error}");
        }
        for interval in [-2, i64::MIN] {
            let error = handler.auto_save(interval, "runs", "e{epoch}").expect_err("an error");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert!(handler.auto_saver().is_none(), "a refused one was set");
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), [""; 0]);
    });
}

/// Metrics are not stored, so a template that was fine may no longer be.
#[test]
fn a_template_that_no_longer_fits_the_metrics_is_refused_before_training() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        let unknown = handler.auto_save(1, "runs", "e{epoch}_{half}").expect_err("an error");
        assert!(unknown.to_string().contains("half"), "{unknown}");
        handler.add_metric("half", |_, _| 0.5);
        handler.auto_save(1, "runs", "e{epoch}_{half}").unwrap();
        handler.train(1).unwrap();

        let mut again = loaded(&group, &storage, "runs/latest").unwrap();
        let error = again.train(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("half"), "{error}");
        assert_eq!(again.epoch(), 1, "it trained all the same");
        again.add_metric("half", |_, _| 0.5);
        again.train(1).unwrap();
    });
}

#[test]
fn metrics_that_hide_other_numbers_are_refused() {
    on_ranks(1, |group| {
        for metrics in [&["loss"][..], &["val_loss"], &["epoch"], &["lr_group_3"], &["a", "val_a"]]
        {
            let (_, storage) = memory();
            let mut handler: NNHandler<Net> = usual(&group, &storage);
            for metric in metrics {
                handler.add_metric(*metric, |_, _| 0.5);
            }
            let error = handler.train(1).expect_err(&format!("{metrics:?}"));
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{metrics:?}: {error}");
            assert_eq!(handler.step(), 0);
        }
        let solo = ProcessGroup::solo();
        let mut handler = usual(&solo, &memory().1);
        handler.add_metric("a", |_, _| 0.5);
        handler.add_metric("a", |_, _| 0.7);
        handler.train(1).unwrap();
        assert!((handler.history().series("a")[0] - 0.7).abs() < 1e-12, "the second one counts");
    });
}

/// Whatever a metric is, its checkpoint is found again under the name that it got.
#[test]
fn strange_numbers_make_names_that_load() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        for value in [-0.25, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -0.0] {
            let mut handler = usual(&group, &storage);
            handler.add_metric("score", move |_, _| value);
            handler.auto_save(1, "runs", "s{score:.2f}").unwrap();
            handler.train(1).unwrap();
        }
        let names = visible(&memory, "runs");
        assert_eq!(names.len(), 6, "{names:?}");
        for name in ["s-0.25", "snan", "sinf", "s-inf", "s-0.00"] {
            assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
        }
        for name in names {
            loaded(&group, &storage, &format!("runs/{name}")).unwrap();
        }
    });
}
