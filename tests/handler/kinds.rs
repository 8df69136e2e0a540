//! Variables of every dtype, tied ones, and those that no checkpoint can hold.

use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::handler::NNHandler;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::{ErrorKind, ProcessGroup};

use crate::harness::*;
use crate::models::*;

#[test]
fn every_dtype_survives() {
    let kinds = ["f16", "bf16", "f64", "bool", "i64", "u8", "f32"];
    let items: Vec<BagItem> = kinds.iter().map(|kind| item(kind, &[3, 5], kind)).collect();
    on_ranks(2, move |group| {
        let dir = tempfile::tempdir().unwrap();
        // One directory for both ranks: the coordinator's.
        let mut path = [0u8; 256];
        let own = dir.path().to_str().unwrap().as_bytes();
        path[..own.len()].copy_from_slice(own);
        group.broadcast(&mut path).unwrap();
        let shared = std::str::from_utf8(&path).unwrap().trim_end_matches('\0');
        let at = Path::new(shared).join("runs/all");

        let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
        let saved = bag::<Bag>(&group, &storage, &items).unwrap();
        saved.save(&at).unwrap();
        let again = NNHandler::<Bag>::load(&at, options(&group, &storage)).unwrap();
        let (before, after) = (saved.vars().variables(), again.vars().variables());
        assert_eq!(after.len(), kinds.len());
        for (name, tensor) in &before {
            assert_eq!(tensor.kind(), after[name].kind(), "{name}");
            assert!(tensor.equal(&after[name]), "{name}");
        }
        assert_eq!(saved.state_hash().unwrap(), again.state_hash().unwrap());
        // Nobody removes the directory while another rank still reads.
        group.broadcast(&mut [0]).unwrap();
        group.all_reduce_sum(&mut [0.0]).unwrap();
    });
}

#[test]
fn what_cannot_be_stored_is_refused_before_anything_is_written() {
    for kind in ["c128", "quantised"] {
        on_ranks(1, move |group| {
            let (memory, storage) = memory();
            let items = [item("fine", &[2], "f32"), item("odd", &[2], kind)];
            let handler = bag::<Bag>(&group, &storage, &items).unwrap();
            let error = handler.save("runs/a").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert_eq!(error.tensor(), Some("odd"), "{error}");
            assert!(memory.open_dir(Path::new("runs")).is_err(), "something was written");
        });
    }
}

/// A rank that cannot say what it holds must not leave the others waiting.
#[test]
fn what_one_rank_cannot_store_is_every_ranks_error() {
    for rank in 0..3 {
        let (memory, _) = memory();
        let inner = memory.clone();
        let results = on_ranks(3, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let handler = bag::<Bag>(&group, &storage, &[item("fine", &[2], "f32")]).unwrap();
            if group.rank().get() == rank {
                let odd = Tensor::zeros([2], (Kind::ComplexDouble, Device::Cpu));
                let _ = handler.vars().root().add("odd", odd, false);
            }
            handler.save("runs/a").map(drop)
        });
        let error = one_error(&results);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.tensor(), Some("odd"), "{error}");
        assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(rank), "{error}");
        assert!(memory.open_dir(Path::new("runs")).is_err(), "something was written");
    }
}

#[test]
fn a_model_that_cannot_be_shared_is_refused_when_it_is_built() {
    let results = on_ranks(2, |group| {
        let items = [item("odd", &[2], "c128")];
        bag::<Bag>(&group, &memory().1, &items).map(drop)
    });
    for result in results {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

fn tie(handler: &NNHandler<Net>) {
    let mut variables = handler.vars().variables_.lock().unwrap();
    let target = variables.named_variables["output.weight"].shallow_clone();
    variables.named_variables.insert("tied.weight".to_owned(), target);
}

#[test]
fn tied_variables_are_stored_once_and_trained_once() {
    let _generator = exclusive();
    let (memory, storage) = memory();
    let solo = ProcessGroup::solo();
    let mut handler = usual(&solo, &storage);
    let plain = {
        let mut plain = usual(&solo, &storage);
        plain.train(2).unwrap();
        parameters(&plain)
    };
    tie(&handler);
    handler.train(2).unwrap();
    handler.save("runs/tied").unwrap();
    let found = catalog::find(&memory, &Wanted::parse("runs/tied").unwrap()).unwrap();
    let aliases: Vec<_> = found.manifest.aliases().iter().collect();
    assert_eq!(format!("{aliases:?}").matches("tied.weight").count(), 1, "{aliases:?}");

    let before = handler.state_hash().unwrap();
    handler.train(1).unwrap();
    assert_ne!(handler.state_hash().unwrap(), before);
    handler.restore("runs/tied", tch_checkpoint::Atomicity::Atomic).unwrap();
    assert_eq!(handler.state_hash().unwrap(), before);
    assert_eq!(parameters(&loaded(&solo, &storage, "runs/tied").unwrap()), plain);
}

#[test]
fn tied_variables_get_the_same_gradient_on_several_ranks() {
    let train = |n, tied: bool| {
        let all = on_ranks(n, move |group| {
            let mut handler = usual(&group, &memory().1);
            if tied {
                tie(&handler);
            }
            handler.train(2).unwrap();
            let variables = handler.vars().variables();
            Vec::<f32>::try_from(variables["output.weight"].detach().flatten(0, -1)).unwrap()
        });
        assert!(all.iter().all(|p| *p == all[0]));
        all.into_iter().next().unwrap()
    };
    assert_close(&train(2, true), &train(1, false));
}
