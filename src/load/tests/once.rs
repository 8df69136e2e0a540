//! Every byte is read once, and given to all ranks.

use super::*;
use crate::group::device_plane::fake::{FakePlane, Meeting};
use crate::plan::load::{Owners, WantedBox, plan_load};

const WORLD: u32 = 3;

/// Ranks whose devices reach one another; each with the device that its model lies on.
fn linked(world: u32, faults: impl Fn(u32) -> Faults) -> (Vec<ProcessGroup>, Vec<Arc<FakeDevice>>) {
    let (groups, meeting) = (groups(world), Arc::new(Meeting::default()));
    let devices: Vec<_> = (0..world).map(|rank| FakeDevice::new("fake:0", faults(rank))).collect();
    for (group, device) in groups.iter().zip(&devices) {
        let (rank, world) = (group.rank(), group.world_size());
        let (device, meeting) = (Arc::clone(device), Arc::clone(&meeting));
        group.set_device_plane(Arc::new(FakePlane { rank, world, device, meeting }));
    }
    (groups, devices)
}

fn own(devices: &[Arc<FakeDevice>]) -> impl Fn(&ProcessGroup) -> OnDevice + Sync {
    move |group| OnDevice::on(&devices[group.rank().get() as usize])
}

/// Bytes of data blocks that all ranks together have read, over those of all tensors.
fn times_read(ranks: &[(Result<Loaded>, OnDevice)]) -> f64 {
    let stored: usize = NAMES.iter().map(|name| stored(name).len()).sum();
    let read: u64 = ranks.iter().map(|(loaded, _)| loaded.as_ref().unwrap().bytes_read).sum();
    read as f64 / stored as f64
}

#[test]
fn all_ranks_get_what_one_has_read_by_way_of_the_hosts_or_from_device_to_device() {
    let storage = checkpoint();
    let lagging = Faults { delay: Duration::from_millis(1), ..Faults::default() };
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        let (together, devices) = linked(WORLD, |_| lagging);
        let others = (0..WORLD).map(|_| FakeDevice::new("fake:0", lagging));
        let apart = (groups(WORLD), others.collect::<Vec<_>>());
        for (groups, devices) in [apart, (together, devices)] {
            let each = load_on(&groups, &storage, own(&devices), Replicas::ReadEach, atomicity);
            let once = load_on(&groups, &storage, own(&devices), Replicas::ReadOnce, atomicity);
            assert!(once.iter().all(|(_, model)| model.is_all(stored)), "{atomicity:?}");
            assert!(times_read(&each) > 2.99, "{}", times_read(&each));
            assert!(times_read(&once) < 1.05, "{}", times_read(&once));
        }
    }
}

#[test]
fn damage_that_one_rank_finds_leaves_the_devices_of_all_as_they_are() {
    let storage = checkpoint();
    damage(&storage);
    let (together, devices) = linked(2, |_| Faults::default());
    let ranks = load_on(&together, &storage, own(&devices), Replicas::ReadOnce, Atomicity::InPlace);
    for (loaded, model) in ranks {
        let error = loaded.unwrap_err();
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Corrupt, Some("read")));
        assert!(model.is_all(|name| vec![99; stored(name).len()]));
    }
}

#[test]
fn a_device_that_fails_while_it_is_filled_fails_the_load_on_all_ranks() {
    let storage = checkpoint();
    for (number, is_linked) in [(1, true), (1, false), (3, false), (6, false)] {
        let faults = Faults { fail: Some(number), ..Faults::default() };
        let of = |rank| if rank == 0 { faults } else { Faults::default() };
        let (together, devices) = linked(2, of);
        let groups = if is_linked { together } else { groups(2) };
        let ranks =
            load_on(&groups, &storage, own(&devices), Replicas::ReadOnce, Atomicity::Atomic);
        for (loaded, _) in ranks {
            let error = loaded.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device, "{number}, {is_linked}");
            assert_eq!((error.rank(), error.phase()), (Some(Rank::new(0)), Some("place")));
        }
    }
}

fn plan_of(sizes: &[u64], on_device: &[bool], world: u32) -> Vec<Option<(u32, bool)>> {
    let (storage, mut state) = (MemoryStorage::new(), StateDict::new());
    let mut wanted = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let name = TensorName::new(format!("t{index}")).unwrap();
        let spec = TensorSpec::new(Dtype::U8, vec![*size]).unwrap();
        let bytes = Arc::new(vec![0u8; usize::try_from(*size).unwrap()]);
        state.add(&Component::model(), name.clone(), spec.clone(), bytes).unwrap();
        wanted.push(WantedBox::new(name, spec, Slice::full(&[*size])).unwrap());
    }
    let path = CheckpointPath::parse("runs/a").unwrap();
    save(&ProcessGroup::solo(), &storage, &path, &state, &SaveOptions::default()).unwrap();
    let found = catalog::find(&storage, &Wanted::parse("runs/a").unwrap()).unwrap();
    let (plan, _) = plan_load(&found.manifest, &wanted, &LoadRules::default());
    let owners = Owners::new(&plan, &wanted, on_device, WorldSize::new(world).unwrap());
    let parts = (0..world).map(|rank| owners.part_of(&plan, Rank::new(rank)).bytes_read());
    assert_eq!(parts.sum::<u64>(), plan.bytes_read(), "each byte has one reader");
    let owner = |index| owners.of(index).map(|o| (o.rank.get(), o.is_on_device));
    (0..sizes.len()).map(owner).collect()
}

#[test]
fn boxes_of_devices_are_shared_out_by_bytes_and_all_others_are_the_coordinators() {
    let on = |rank| Some((rank, true));
    let host = Some((0, false));
    assert_eq!(plan_of(&[10, 10, 10, 10], &[true; 4], 2), [on(0), on(0), on(1), on(1)]);
    assert_eq!(plan_of(&[90, 5, 5], &[true; 3], 2), [on(0), on(1), on(1)]);
    assert_eq!(plan_of(&[10, 10, 10], &[true, false, true], 3), [on(0), host, on(2)]);
    assert_eq!(plan_of(&[10, 10], &[], 3), [host, host]);
    assert_eq!(plan_of(&[8], &[true], 8), [on(4)]);
    assert_eq!(plan_of(&[0, 4], &[true; 2], 2)[0], None, "nothing is stored of an empty tensor");
}
