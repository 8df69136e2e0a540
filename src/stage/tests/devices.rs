use std::time::Duration;

use super::*;
use crate::device::budget::Budget;
use crate::device::fake::{FakeDevice, FakeTensor, Faults};

const LAG: Duration = Duration::from_millis(2);

fn lagging() -> Faults {
    Faults { delay: LAG, ..Faults::default() }
}

/// A buffer on the host, and two weights on a device, the second of them steady.
struct Model {
    plan: SavePlan,
    buffer: Arc<Cell>,
    weights: [Arc<FakeTensor>; 2],
    state: StateDict,
}

impl Model {
    fn new(device: &Arc<FakeDevice>) -> Self {
        let plan = plan(vec![piece("buffer", 3, 0, 3), piece("w0", 5, 1, 4), piece("w1", 9, 0, 9)]);
        let pieces = &plan.files[0].pieces;
        let buffer = Cell::new(vec![1; 6], false);
        let w0 = Arc::new(FakeTensor::new(device, (0..10).collect()));
        let w1 = Arc::new(FakeTensor::new(device, vec![7; 18]).steady());
        let mut state = StateDict::new();
        add(&mut state, &pieces[0], buffer.clone());
        add(&mut state, &pieces[1], w0.clone());
        add(&mut state, &pieces[2], w1.clone());
        Self { plan, buffer, weights: [w0, w1], state }
    }

    /// What is to be in the file.
    fn saved() -> Vec<u8> {
        [vec![1; 6], vec![2, 3, 4, 5, 6, 7], vec![7; 18]].concat()
    }

    fn change(&self) {
        self.buffer.set(99);
        self.weights.iter().for_each(|weight| weight.fill(99));
    }

    fn finish(&self, staging: Staging) -> Result<(Staged, Watch)> {
        staging.finish(share(&self.plan), &Progress::default())
    }
}

fn first(staged: &Staged) -> Vec<u8> {
    data(staged)
}

#[test]
fn what_lies_on_a_device_may_change_as_soon_as_all_is_copied() {
    let device = FakeDevice::new("fake:0", lagging());
    for _ in 0..50 {
        let model = Model::new(&device);
        let staging = stage(&model.plan, &model.state, Copying::Now).unwrap();
        model.change();
        let (staged, _) = model.finish(staging).unwrap();
        assert_eq!(first(&staged), Model::saved());
    }
    assert!(device.operations() >= 100, "the device copied");
}

#[test]
fn steady_tensors_of_a_device_wait_and_others_do_not() {
    let device = FakeDevice::new("fake:0", lagging());
    let model = Model::new(&device);
    let staging = stage(&model.plan, &model.state, Copying::SteadyLater).unwrap();
    assert_eq!(device.operations(), 1, "only what is not steady is copied at once");
    model.buffer.set(99);
    model.weights[0].fill(99);
    let (staged, _) = model.finish(staging).unwrap();
    model.change();
    assert_eq!(first(&staged), Model::saved());
}

#[test]
fn a_late_copy_does_not_wait_for_what_is_computed_after_the_call() {
    let device = FakeDevice::new("fake:0", lagging());
    let model = Model::new(&device);
    let staging = stage(&model.plan, &model.state, Copying::SteadyLater).unwrap();
    // The next forward and backward pass, which read the weights.
    device.compute_for(Duration::from_secs(30));
    let (staged, _) = model.finish(staging).unwrap();
    assert!(device.computes());
    assert_eq!(first(&staged), Model::saved());
}

#[test]
fn where_pages_cannot_be_locked_the_bytes_are_the_same() {
    let few = Budget::new(2 << 20);
    let devices = [
        FakeDevice::new("fake:0", Faults { no_locks: true, ..lagging() }),
        FakeDevice::with_budget("fake:0", lagging(), &Budget::new(0)),
        FakeDevice::with_budget("fake:0", lagging(), &few),
    ];
    for (number, device) in devices.iter().enumerate() {
        for copying in [Copying::Now, Copying::SteadyLater] {
            let model = Model::new(device);
            let staged = stage(&model.plan, &model.state, copying);
            let staged = staged.and_then(|staging| model.finish(staging));
            assert_eq!(first(&staged.unwrap().0), Model::saved(), "device {number}, {copying:?}");
        }
    }
    assert!(devices[2].locked().1 <= 2 << 20);
}

#[test]
fn a_region_whose_pages_are_locked_is_used_again() {
    let device = FakeDevice::new("fake:0", Faults::default());
    let model = Model::new(&device);
    let mut kept = None;
    for _ in 0..3 {
        let progress = Progress::default();
        let staging =
            Staging::begin(share(&model.plan), &model.state, Copying::Now, kept.take(), &progress);
        let (staged, _) = model.finish(staging.unwrap()).unwrap();
        assert_eq!(first(&staged), Model::saved());
        assert!(progress.total() >= Model::saved().len() as u64);
        kept = Some(staged.into_region());
    }
    let (now, most) = device.locked();
    assert!(now > 0 && now == most, "pages were locked more than once");
    drop(kept);
    assert_eq!(device.locked().0, 0);
}

#[test]
fn a_device_that_fails_or_refuses_is_an_error_on_this_rank() {
    for number in 1..=2 {
        for faults in [
            Faults { refuse: Some(number), ..lagging() },
            Faults { fail: Some(number), ..lagging() },
        ] {
            for copying in [Copying::Now, Copying::SteadyLater] {
                let model = Model::new(&FakeDevice::new("fake:0", faults));
                let staged = stage(&model.plan, &model.state, copying);
                let failed = staged.and_then(|staging| model.finish(staging)).err().unwrap();
                assert_eq!(failed.kind(), ErrorKind::Device, "{faults:?}, {copying:?}");
            }
        }
    }
}
