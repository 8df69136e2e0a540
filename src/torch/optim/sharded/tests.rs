use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;
use tch::{Device, Kind, nn};

use super::super::{Adam, AdamW, Optimizer, ParamGroupConfig, RmsProp, Sgd};
use super::*;
use crate::group::Deadlines;
use crate::plan::cover::check_cover;
use crate::state::{StateDict, Stateful};
use crate::tensor::Dtype;

/// After this a test has hung.
const HUNG: Duration = Duration::from_secs(60);

/// Runs `body` on `n` ranks, each a thread; the results in rank order.
fn on_ranks<R: Send + 'static>(n: u32, body: fn(ProcessGroup) -> R) -> Vec<R> {
    let deadlines = Deadlines { progress: HUNG / 2, ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(n).unwrap(), deadlines);
    let (sender, results) = mpsc::channel();
    for (rank, group) in groups.into_iter().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || sender.send((rank, body(group))));
    }
    drop(sender);
    let received = || results.recv_timeout(HUNG).expect("a rank hangs, or its thread panicked");
    let mut all: Vec<_> = (0..n).map(|_| received()).collect();
    all.sort_by_key(|(rank, _)| *rank);
    all.into_iter().map(|(_, result)| result).collect()
}

fn spec(dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(dtype, shape.to_vec()).unwrap()
}

fn parts(specs: &[TensorSpec], n: u32) -> Vec<Vec<Option<Slice>>> {
    let world = WorldSize::new(n).unwrap();
    world.ranks().map(|rank| partition(specs, rank, world).unwrap()).collect()
}

fn bytes_of(specs: &[TensorSpec], parts: &[Option<Slice>]) -> u64 {
    let bytes = |(spec, own): (&TensorSpec, &Option<Slice>)| {
        own.as_ref().map_or(0, Slice::elements) * spec.dtype().size_bytes()
    };
    specs.iter().zip(parts).map(bytes).sum()
}

#[test]
fn large_parameters_are_cut_between_rows_and_small_ones_are_not() {
    let specs = [
        spec(Dtype::F32, &[1, 5, 8192]),
        spec(Dtype::F32, &[8191]),
        spec(Dtype::F32, &[]),
        spec(Dtype::F32, &[0, 3]),
    ];
    let [first, second] = parts(&specs, 2).try_into().unwrap();
    let rows = |range: Range<u64>| Slice::full(&[1, 5, 8192]).rows(range).unwrap();
    assert_eq!(first, [Some(rows(0..3)), None, None, Some(Slice::full(&[0, 3]))]);
    let small = (Some(Slice::full(&[8191])), Some(Slice::full(&[])));
    assert_eq!(second, [Some(rows(3..5)), small.0, small.1, None]);
}

fn any_spec() -> impl Strategy<Value = TensorSpec> {
    let shape = prop_oneof![
        prop::collection::vec(0u64..5, 0..4),
        (1u64..3, 1u64..400, 1u64..300).prop_map(|(a, b, c)| vec![a, b, c]),
    ];
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::BF16), Just(Dtype::F64)];
    (dtype, shape).prop_map(|(dtype, shape)| spec(dtype, &shape))
}

proptest! {
    #[test]
    fn parts_cover_every_parameter_once_and_are_of_nearly_the_same_size(
        specs in prop::collection::vec(any_spec(), 0..12), n in 1u32..7,
    ) {
        let parts = parts(&specs, n);
        for (index, spec) in specs.iter().enumerate() {
            let boxes: Vec<&Slice> = parts.iter().filter_map(|own| own[index].as_ref()).collect();
            prop_assert_eq!(check_cover(spec.shape(), &boxes), Ok(()));
        }
        let total: u64 = specs.iter().map(TensorSpec::size_bytes).sum();
        let unit = specs.iter().map(|spec| Rows::of(spec).bytes).max().unwrap_or(0);
        for own in &parts {
            prop_assert!(bytes_of(&specs, own) <= total / u64::from(n) + 1 + unit);
        }
    }
}

fn wave(shape: &[i64], pitch: f64) -> Tensor {
    let elements: i64 = shape.iter().product();
    (Tensor::arange(elements, (Kind::Double, Device::Cpu)) * pitch).sin().reshape(shape)
}

/// Large enough to be cut: in their first dimension, in a later one, in double precision and
/// half, and with strides; small ones of odd sizes; and some that take no part.
fn model() -> nn::VarStore {
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let add = |name: &str, shape: &[i64], kind| {
        let path = if shape.len() % 2 == 1 { root.sub("odd") } else { root.sub("even") };
        let _ = path.add(name, wave(shape, 1.3).to_kind(kind), true);
    };
    add("big", &[131, 129], Kind::Float);
    add("double", &[8209], Kind::Double);
    add("half", &[33, 1001], Kind::BFloat16);
    add("wide", &[1, 16411], Kind::Float);
    add("bias", &[7], Kind::Float);
    add("scalar", &[], Kind::Float);
    add("empty", &[0, 2], Kind::Float);
    let _ = root.add("strided", wave(&[129, 130], 0.7).to_kind(Kind::Float).transpose(0, 1), true);
    add("unused", &[3], Kind::Float);
    add("frozen", &[17000], Kind::Float);
    let frozen = store.variables()["odd.frozen"].set_requires_grad(false);
    assert!(!frozen.requires_grad());
    store
}

fn train(store: &nn::VarStore, optimizer: &mut Optimizer, steps: Range<u32>) {
    for step in steps {
        optimizer.zero_grad().unwrap();
        let mut loss = Tensor::from(0.0);
        for (name, p) in store.variables() {
            // Half-way one of them takes no part for a step.
            let absent = name == "odd.bias" && step == 2;
            if name != "odd.unused" && p.requires_grad() && !absent {
                let p = p.to_kind(Kind::Double);
                let target = wave(&p.size(), 0.3 + 0.01 * f64::from(step));
                loss += (p - target).square().sum(Kind::Double);
            }
        }
        loss.backward();
        optimizer.step().unwrap();
    }
}

fn algorithms() -> Vec<OptimizerConfig> {
    vec![
        Sgd { lr: 0.1, ..Sgd::default() }.into(),
        Sgd { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.1, ..Sgd::default() }.into(),
        Adam { lr: 0.03, weight_decay: 0.1, ..Adam::default() }.into(),
        AdamW { lr: 0.03, amsgrad: true, ..AdamW::default() }.into(),
        RmsProp {
            lr: 0.03,
            momentum: 0.5,
            centered: true,
            weight_decay: 0.1,
            ..RmsProp::default()
        }
        .into(),
    ]
}

fn groups() -> [ParamGroupConfig; 1] {
    let names = vec!["odd.*".to_owned(), "even.wide".to_owned()];
    [ParamGroupConfig { names, lr: Some(0.05), weight_decay: Some(0.0) }]
}

type Named = Vec<(String, Vec<u8>)>;

fn bytes_of_store(store: &nn::VarStore) -> Named {
    let mut state = StateDict::new();
    let component = crate::tensor::Component::model();
    crate::torch::add_var_store(&mut state, &component, "", store).unwrap();
    bytes_of_state(&state)
}

fn bytes_of_state(state: &StateDict) -> Named {
    let bytes = |boxes: &[crate::state::TensorEntry]| {
        let [entry] = boxes else { panic!("one box") };
        assert!(entry.slice.is_full(entry.spec.shape()));
        let mut bytes = crate::memory::zeroed(entry.spec.size_bytes()).unwrap();
        entry.source.read_into(0, &mut bytes).unwrap();
        bytes
    };
    state.tensors().map(|(name, boxes)| (name.to_string(), bytes(boxes))).collect()
}

fn without_steps(mut named: Named) -> Named {
    named.retain(|(name, _)| !name.ends_with(".step"));
    named
}

#[test]
fn shared_state_computes_what_whole_state_does_bit_for_bit() {
    for n in [2, 3] {
        on_ranks(n, |ranks| {
            for config in algorithms() {
                let (ours, theirs) = (model(), model());
                let mut shared =
                    Optimizer::shared(Sharded(config), &ours, &groups(), &ranks).unwrap();
                let mut whole = Optimizer::with_groups(config, &theirs, &groups()).unwrap();
                let begin = bytes_of_store(&theirs);
                for steps in [0..1, 1..4] {
                    train(&ours, &mut shared, steps.clone());
                    train(&theirs, &mut whole, steps);
                    assert!(bytes_of_store(&ours) == bytes_of_store(&theirs), "{config:?}");
                }
                assert!(bytes_of_store(&theirs) != begin);
                let (mut gathered, mut state) = (StateDict::new(), StateDict::new());
                shared.gather_shared("optimizer", &mut gathered).unwrap();
                whole.save_state("optimizer", &mut state).unwrap();
                let all = bytes_of_state(&state);
                assert!(bytes_of_state(&gathered) == without_steps(all), "{config:?}");
                let n = u64::from(ranks.world_size().get());
                let kept = shared.all_mut().flat_map(|p| &p.slots);
                let kept: u64 = kept.map(|t| TchSource::new(t).unwrap().spec().size_bytes()).sum();
                let all: u64 = without_steps(bytes_of_state(&state))
                    .iter()
                    .map(|(_, bytes)| bytes.len() as u64)
                    .sum();
                assert!(kept * n <= all + all / 10, "{kept} of {all} bytes on one of {n} ranks");
            }
        });
    }
}

#[test]
fn parameters_that_come_later_are_shared_too() {
    let kept = on_ranks(2, |ranks| {
        let (ours, theirs) = (model(), model());
        let config = Adam { lr: 0.1, ..Adam::default() };
        let mut shared = Optimizer::shared(Sharded(config), &ours, &[], &ranks).unwrap();
        let mut whole = Optimizer::new(config, &theirs).unwrap();
        for (store, optimizer) in [(&ours, &mut shared), (&theirs, &mut whole)] {
            train(store, optimizer, 0..1);
            let _ = store.root().add("another", wave(&[20000], 0.1).to_kind(Kind::Float), true);
            assert_eq!(optimizer.add_parameters(store).unwrap(), 1);
            train(store, optimizer, 1..3);
        }
        assert!(bytes_of_store(&ours) == bytes_of_store(&theirs));
        let another = shared.all_mut().find(|p| p.name == "another").unwrap();
        another.slots[0].size()
    });
    assert_eq!(kept, [[10000], [10000]]);
}

/// Bits that no arithmetic would keep, in buckets that begin and end within elements.
#[test]
fn an_exchange_keeps_every_bit_of_every_dtype() {
    const KINDS: [(Kind, i64); 6] = [
        (Kind::Float, 4),
        (Kind::Double, 8),
        (Kind::Half, 2),
        (Kind::BFloat16, 2),
        (Kind::Float8e5m2, 1),
        (Kind::ComplexFloat, 8),
    ];
    on_ranks(3, |ranks| {
        let pattern = |bytes: i64| {
            let index = Tensor::arange(bytes, (Kind::Int64, Device::Cpu));
            (index.shallow_clone() * 37 + index.divide_scalar_mode(251, "floor"))
                .to_kind(Kind::Uint8)
        };
        let store = nn::VarStore::new(Device::Cpu);
        for (number, (kind, size)) in KINDS.into_iter().enumerate() {
            let values = pattern(size * 20001 * 3).view_dtype(kind).reshape([20001, 3]);
            let _ = store.root().add(&format!("a{number}"), values.copy(), true);
            let strided = values.transpose(0, 1).copy().transpose(0, 1);
            let _ = store.root().add(&format!("b{number}"), strided, true);
        }
        let expected = bytes_of_store(&store);
        let mut shared = Optimizer::shared(Sharded(Sgd::default()), &store, &[], &ranks).unwrap();
        // Whatever this rank does not own is spoilt.
        for parameter in shared.all_mut() {
            let mut sink = TchSink::new(&parameter.tensor).unwrap();
            let (own, size) = (parameter.share.bytes(), sink.spec().size_bytes());
            for (begin, end) in [(0, own.start), (own.end, size)] {
                sink.write_at(begin, &vec![0x5A; usize::try_from(end - begin).unwrap()]).unwrap();
            }
        }
        assert!(bytes_of_store(&store) != expected);
        let (mut line, mut end) = (Vec::new(), 0);
        for parameter in shared.all_mut() {
            line.push(Segment::new(end, parameter).unwrap());
            end = line.last().unwrap().bytes.end;
        }
        exchange_line(&ranks, &mut line, end, 300_007).unwrap();
        assert!(bytes_of_store(&store) == expected);
    });
}

#[test]
fn a_parameter_of_another_dtype_than_before_is_a_mismatch() {
    let errors = on_ranks(2, |ranks| {
        let mut store = nn::VarStore::new(Device::Cpu);
        let _ = store.root().add("weight", wave(&[4], 1.0).to_kind(Kind::Float), true);
        let mut shared = Optimizer::shared(Sharded(Sgd::default()), &store, &[], &ranks).unwrap();
        store.double();
        shared.step().unwrap_err()
    });
    for error in errors {
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Mismatch, Some("weight")));
    }
}
