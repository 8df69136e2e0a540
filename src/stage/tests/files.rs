//! What is staged and written is what a save that its caller waits for writes, to the byte.

use std::path::Path;
use std::thread::{self, ThreadId};

use proptest::prelude::*;

use super::*;
use crate::plan::save::{local_plan, merge_plans};
use crate::plan::{OnExisting, SaveTarget};
use crate::shard::{write_filled, write_shards};
use crate::storage::{MemoryStorage, Storage};

/// A box, and how its bytes can be had.
#[derive(Debug, Clone)]
struct Part {
    component: usize,
    dtype: Dtype,
    elements: u64,
    own_means: bool,
    steady: bool,
    seed: u8,
}

fn part() -> impl Strategy<Value = Part> {
    // Some are longer than a unit of copying, and some states need more than one thread.
    let elements = prop_oneof![
        1 => Just(0u64),
        4 => 1u64..50,
        2 => 1u64..100_000,
        1 => 500_000u64..1_500_000
    ];
    let dtype = prop::sample::select(vec![Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::I64]);
    (0usize..3, dtype, elements, any::<bool>(), any::<bool>(), any::<u8>()).prop_map(
        |(component, dtype, elements, own_means, steady, seed)| Part {
            component,
            dtype,
            elements,
            own_means,
            steady,
            seed,
        },
    )
}

/// Gives its bytes by its own means, and to the thread that began to save alone until late.
struct Strided {
    bytes: Vec<u8>,
    steady: bool,
    of: ThreadId,
}

impl TensorSource for Strided {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        assert_eq!(thread::current().id(), self.of, "asked by another thread");
        self.bytes.read_into(offset, out)
    }
    fn is_steady(&self) -> bool {
        self.steady
    }
}

fn state(parts: &[Part]) -> StateDict {
    let components = ["model", "optimizer", "extra"].map(|name| Component::new(name).unwrap());
    let mut state = StateDict::new();
    for (number, part) in parts.iter().enumerate() {
        let spec = TensorSpec::new(part.dtype, vec![part.elements]).unwrap();
        let bytes: Vec<u8> = (0..spec.size_bytes())
            .map(|at| part.seed.wrapping_add((at % 251) as u8).wrapping_mul(17))
            .collect();
        let source: Arc<dyn TensorSource> = if part.own_means || part.steady {
            Arc::new(Strided { bytes, steady: part.steady, of: thread::current().id() })
        } else {
            Arc::new(bytes)
        };
        let name = TensorName::new(format!("t{number}")).unwrap();
        state.add(&components[part.component], name, spec, source).unwrap();
    }
    state
}

/// One rank's plan for all of `state`.
fn plan_of(state: &StateDict) -> SavePlan {
    let (directory, name) = ("runs".to_owned(), "a".to_owned());
    let on_existing = OnExisting::Refuse;
    let target = SaveTarget { directory, name, step: 3, on_existing, ..SaveTarget::default() };
    let merged = merge_plans(SaveId::from_bytes([1; 16]), &[local_plan(target, state)]).unwrap();
    merged.plans.into_iter().next().unwrap()
}

fn content(memory: &MemoryStorage) -> Vec<(String, Vec<u8>)> {
    let dir = memory.open_dir(Path::new("d")).unwrap();
    let names = dir.list().unwrap().into_iter().map(|entry| entry.name);
    let mut files: Vec<_> = names
        .map(|name| {
            let file = dir.open_file(&name).unwrap();
            let mut bytes = vec![0; usize::try_from(file.len()).unwrap()];
            file.read_at(0, &mut bytes).unwrap();
            (name, bytes)
        })
        .collect();
    files.sort();
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn staged_files_are_those_of_a_plain_save(
        parts in prop::collection::vec(part(), 0..12),
        overlapped: bool,
        // What an earlier save has left in the memory.
        kept in prop::option::of(0u64..8_000_000),
    ) {
        let state = state(&parts);
        let (plan, rank) = (plan_of(&state), Rank::COORDINATOR);
        let (plain, beside) = (MemoryStorage::new(), MemoryStorage::new());
        let dir = |storage: &MemoryStorage| storage.create_dir_all(Path::new("d")).unwrap();
        let expected = write_shards(&*dir(&plain), &plan, rank, 3, &state, &|_| {}).unwrap();

        let copying = if overlapped { Copying::SteadyLater } else { Copying::Now };
        let kept = kept.map(|len| {
            let mut region = Region::new(len).unwrap();
            region.bytes_mut().fill(0xAA);
            region
        });
        let progress = Progress::default();
        let staging = Staging::begin(share(&plan), &state, copying, kept, &progress).unwrap();
        let (staged, _) = staging.finish(share(&plan), &progress).unwrap();
        let images = staged.images(share(&plan)).unwrap();
        let files = staged.files(&images);
        let alive = Progress::default();
        let mut receipt = write_filled(&*dir(&beside), &plan, &files, &|_| {}, &alive).unwrap();
        let hashed: u64 = files.iter().map(|file| file.data.len() as u64).sum();
        prop_assert_eq!(alive.total(), hashed, "peers see that this rank is at work");
        receipt.times = expected.times;
        prop_assert_eq!(receipt, expected);
        prop_assert_eq!(content(&beside), content(&plain));
    }
}

/// Large enough for several threads, with one part that only its source can give.
fn large(broken: fn() -> Result<()>) -> (StateDict, SavePlan) {
    struct Broken(fn() -> Result<()>);
    impl TensorSource for Broken {
        fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
            self.0()
        }
    }
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, vec![16 << 20]).unwrap();
    let sources: [(&str, Arc<dyn TensorSource>); 2] =
        [("a", Arc::new(vec![1u8; 16 << 20])), ("b", Arc::new(Broken(broken)))];
    for (name, source) in sources {
        let name = TensorName::new(name).unwrap();
        state.add(&Component::model(), name, spec.clone(), source).unwrap();
    }
    let plan = plan_of(&state);
    (state, plan)
}

#[test]
fn a_source_that_fails_or_panics_beside_other_threads_is_one_error() {
    let fails = || Err(Error::new(ErrorKind::Device, "it fell off the bus"));
    let (state, plan) = large(fails);
    let error = stage(&plan, &state, Copying::Now).err().unwrap();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Device, Some("b")));

    let (state, plan) = large(|| panic!("boom"));
    let staged = crate::group::guarded(Rank::new(1), "commit", || {
        stage(&plan, &state, Copying::Now).map(drop)
    });
    let error = staged.unwrap_err();
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Panic, Some(Rank::new(1))));
    assert!(error.message().contains("boom"), "{error}");
}

#[test]
fn memory_that_is_long_enough_is_used_again() {
    let parts = [Part {
        component: 0,
        dtype: Dtype::U8,
        elements: 100_000,
        own_means: false,
        steady: false,
        seed: 1,
    }];
    let state = state(&parts);
    let plan = plan_of(&state);
    let staged = |kept| {
        let progress = Progress::default();
        let staging = Staging::begin(share(&plan), &state, Copying::Now, kept, &progress).unwrap();
        staging.finish(share(&plan), &progress).unwrap().0.into_region()
    };
    let first = staged(None);
    let address = first.bytes().as_ptr();
    assert_eq!(staged(Some(first)).bytes().as_ptr(), address);
}
