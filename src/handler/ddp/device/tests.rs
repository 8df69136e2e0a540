//! Several ranks as threads, with tensors of the CPU and a plane that reaches host memory.

use std::time::Duration;

use super::*;
use crate::device::fake::{FakeDevice, Faults};
use crate::group::Deadlines;
use crate::group::device_plane::fake::{FakePlane, Meeting};
use crate::handler::{average_gradients, broadcast_tensors};
use crate::rank::WorldSize;

const WORLD: u32 = 3;

fn groups(with_plane: bool) -> Vec<ProcessGroup> {
    let deadlines = Deadlines { progress: Duration::from_secs(20), ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(WORLD).unwrap(), deadlines);
    let meeting = Arc::new(Meeting::default());
    for group in groups.iter().filter(|_| with_plane) {
        let (rank, world) = (group.rank(), group.world_size());
        let device = FakeDevice::new("cpu", Faults::default());
        group.set_device_plane(Arc::new(FakePlane {
            rank,
            world,
            device,
            meeting: Arc::clone(&meeting),
        }));
    }
    groups
}

fn on_ranks<T: Send>(with_plane: bool, act: impl Fn(&ProcessGroup) -> T + Sync) -> Vec<T> {
    let (groups, act) = (groups(with_plane), &act);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = groups.iter().map(|group| scope.spawn(move || act(group))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A parameter whose gradient is `value` everywhere, or that has none.
fn parameter(shape: &[i64], kind: Kind, value: Option<f64>) -> Tensor {
    let parameter = Tensor::zeros(shape, (kind, Device::Cpu)).set_requires_grad(true);
    if let Some(value) = value {
        (&parameter * value).sum(kind).backward();
    }
    parameter
}

/// The gradients of one rank after an average: a large one, small ones, one that only the last
/// rank has, one that nobody has, an empty one, one of half precision, one with strides.
fn averaged(group: &ProcessGroup) -> Vec<Option<Vec<f64>>> {
    let rank = f64::from(group.rank().get());
    let only_last = (rank + 1.0 == f64::from(WORLD)).then_some(6.0);
    let large = i64::try_from(ELEMENTS_MAX).unwrap() / 2 + 7;
    let parameters = [
        parameter(&[2, 3], Kind::Float, Some(rank)),
        parameter(&[large], Kind::Float, Some(1.0 + rank)),
        parameter(&[3], Kind::Float, only_last),
        parameter(&[4], Kind::Float, None),
        parameter(&[0, 5], Kind::Float, Some(1.0)),
        parameter(&[large], Kind::Float, Some(0.5)),
        parameter(&[5], Kind::BFloat16, Some(2.0 * rank)),
        parameter(&[], Kind::Float, Some(-rank)),
    ];
    // Of all samples, the ranks have one, two and three sixths.
    average_gradients(group, &parameters, (rank + 1.0) / 6.0).unwrap();
    let values = |parameter: &Tensor| {
        let gradient = parameter.grad();
        let flat = || gradient.to_kind(Kind::Double).flatten(0, -1);
        gradient
            .defined()
            .then(|| Vec::try_from(flat().narrow(0, 0, gradient.numel().min(8) as i64)))
    };
    parameters.iter().map(|p| values(p).map(Result::unwrap)).collect()
}

#[test]
fn gradients_that_stay_on_devices_are_those_that_go_by_way_of_the_hosts() {
    let by_host = on_ranks(false, averaged);
    let by_device = on_ranks(true, averaged);
    assert_eq!(by_device, by_host);
    let first = &by_device[0];
    assert!(by_device.iter().all(|rank| rank == first), "all ranks have the same");
    // (0·1 + 1·2 + 2·3) / 6
    let mean = first[0].as_ref().unwrap();
    assert!(mean.len() == 6 && mean.iter().all(|value| (value - 8.0 / 6.0).abs() < 1e-6));
    assert!(first[2].as_ref().unwrap().iter().all(|value| (value - 3.0).abs() < 1e-6));
    assert_eq!(first[3], None, "what has a gradient nowhere gets none");
}

#[test]
fn parameters_are_the_coordinators_bit_for_bit_whatever_their_kind_and_strides() {
    let results = on_ranks(true, |group| {
        let rank = i64::from(group.rank().get());
        let base = Tensor::full([4, 3], rank * 3 + 1, (Kind::Int64, Device::Cpu));
        let tensors = [
            base.shallow_clone(),
            Tensor::full([2, 5], rank as f64 + f64::NAN, (Kind::Half, Device::Cpu)).tr(),
            Tensor::zeros([0], (Kind::Float, Device::Cpu)),
            Tensor::from(rank as f64),
        ];
        broadcast_tensors(group, &tensors).unwrap();
        let bits = tensors[1].contiguous().view_dtype(Kind::Int16).flatten(0, -1);
        (
            Vec::<i64>::try_from(base.flatten(0, -1)).unwrap(),
            Vec::<i64>::try_from(bits.to_kind(Kind::Int64)).unwrap(),
            tensors[3].double_value(&[]),
        )
    });
    assert_eq!(results[0].0, vec![1; 12]);
    assert_eq!(results[0].2.to_bits(), 0);
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn a_rank_that_does_not_come_is_an_error_of_the_others() {
    let results = on_ranks(true, |group| {
        if group.rank().get() == 1 {
            return None;
        }
        let parameters = [parameter(&[2], Kind::Float, Some(1.0))];
        Some(average_gradients(group, &parameters, 1.0).map_err(|error| error.kind()))
    });
    assert_eq!(results, [Some(Err(ErrorKind::Deadline)), None, Some(Err(ErrorKind::Deadline))]);
}

/// What no bucket takes: the gradient of an embedding that is sparse.
fn sparse_parameter() -> Tensor {
    let weight = Tensor::zeros([4, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let looked_up = Tensor::embedding(&weight, &Tensor::from_slice(&[1i64, 3]), -1, false, true);
    looked_up.sum(Kind::Float).backward();
    weight
}

#[test]
fn what_one_rank_cannot_do_in_the_middle_ends_the_plane_for_all_later_calls() {
    let results = on_ranks(true, |group| {
        let rank = group.rank().get();
        let fine = || parameter(&[4, 2], Kind::Float, Some(1.0));
        let all = [fine(), if rank == 1 { sparse_parameter() } else { fine() }];
        let first = average_gradients(group, &all, 1.0).map_err(|error| error.kind());
        // It would meet what the others wait for.
        let second = average_gradients(group, &[fine()], 1.0).map_err(|error| error.kind());
        (first, second)
    });
    assert_eq!(results, [(Err(ErrorKind::Device), Err(ErrorKind::Device)); 3]);
}

#[test]
fn a_broadcast_counts_as_a_change_on_every_rank() {
    let changed = on_ranks(true, |group| {
        let tensor = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let before = tensor.f_internal_version().unwrap();
        broadcast_tensors(group, std::slice::from_ref(&tensor)).unwrap();
        tensor.f_internal_version().unwrap() > before
    });
    assert_eq!(changed, [true; 3]);
}
