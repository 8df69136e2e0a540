use super::super::fake::{FakeNccl, Faults, Job, StreamDevice};
use super::*;

fn groups(world: u32, progress: Duration) -> Vec<crate::ProcessGroup> {
    let deadlines = crate::group::Deadlines { progress, join: progress, ..Default::default() };
    crate::ProcessGroup::threads(WorldSize::new(world).unwrap(), deadlines)
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// Each rank joins with its faults, then does its part; what came of both.
fn on_ranks<T: Send>(
    faults: &[Faults],
    patience: Duration,
    act: impl Fn(Rank, &Communicator, &dyn Fn()) -> Result<T> + Sync,
) -> (Vec<Result<T>>, Arc<Job>) {
    let job = Arc::new(Job::default());
    let groups = groups(u32::try_from(faults.len()).unwrap(), patience);
    let act = &act;
    let results = std::thread::scope(|scope| {
        let ranks = groups.into_iter().zip(faults).map(|(group, faults)| {
            let nccl = FakeNccl { job: Arc::clone(&job), faults: *faults };
            scope.spawn(move || {
                let rank = group.rank();
                let with = Membership {
                    rank,
                    world: group.world_size(),
                    id: nccl.unique_id().unwrap(),
                    patience,
                    peers: group.exchange_peers(),
                };
                let comm = Communicator::join(&nccl, &StreamDevice::shared(), with)?;
                // Dropping a rank's group is its death.
                let group = std::cell::Cell::new(Some(group));
                act(rank, &comm, &|| drop(group.take()))
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    (results, job)
}

fn address(values: &mut [f32]) -> u64 {
    values.as_mut_ptr().expose_provenance() as u64
}

fn sum(comm: &Communicator, mut values: Vec<f32>) -> Result<Vec<f32>> {
    let mark = comm.all_reduce_sum(address(&mut values), values.len() as u64, Dtype::F32)?;
    comm.wait(mark)?;
    Ok(values)
}

#[test]
fn sums_and_broadcasts_reach_all_ranks_however_slowly_nccl_works() {
    for lag in [0, 3] {
        let faults = [Faults { lag, ..Faults::default() }; 3];
        let (results, job) = on_ranks(&faults, LONG, |rank, comm, _| {
            let mine = rank.get() as f32;
            let sums = sum(comm, vec![mine, 1.0])?;
            let mut bytes = [u8::try_from(rank.get()).unwrap(); 5];
            let to = bytes.as_mut_ptr().expose_provenance() as u64;
            comm.wait(comm.broadcast(Rank::new(2), to, 5)?)?;
            Ok((sums, bytes))
        });
        for result in results {
            assert_eq!(result.unwrap(), (vec![3.0, 3.0], [2; 5]));
        }
        assert_eq!((job.destroyed.load(SeqCst), job.aborted.load(SeqCst)), (3, 0));
    }
}

#[test]
fn ranks_that_do_not_all_join_give_up_at_the_deadline() {
    let faults = [Faults::default(), Faults { never_joins: true, ..Faults::default() }];
    let (results, _) = on_ranks(&faults, SHORT, |rank, comm, _| {
        // The one that did join waits for the other in vain.
        sum(comm, vec![rank.get() as f32])
    });
    for result in results {
        let kind = result.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Deadline | ErrorKind::PeerLost), "{kind:?}");
    }
}

#[test]
fn joining_that_fails_says_so_in_nccl_s_words() {
    let faults = [Faults { join_code: 5, ..Faults::default() }];
    let (results, _) = on_ranks(&faults, LONG, |_, _, _| Ok(()));
    let error = results.into_iter().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("fake words") && error.help().is_some());
}

#[test]
fn a_rank_that_dies_in_the_middle_is_the_error_of_all_others_and_nobody_hangs() {
    let (results, job) = on_ranks(&[Faults::default(); 3], LONG, |rank, comm, die| {
        sum(comm, vec![1.0])?;
        if rank.get() == 1 {
            die();
            return Ok(());
        }
        let error = sum(comm, vec![1.0]).unwrap_err();
        let again = sum(comm, vec![1.0]).unwrap_err();
        assert_eq!(error.kind(), again.kind());
        Err(error)
    });
    for (rank, result) in results.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let error = result.unwrap_err();
        assert_eq!(
            (error.kind(), error.rank()),
            (ErrorKind::PeerLost, Some(Rank::new(1))),
            "{rank}"
        );
    }
    assert_eq!(job.aborted.load(SeqCst), 2, "what the device waits for is ended");
}

#[test]
fn a_rank_that_has_what_it_came_for_may_go_before_the_others_have() {
    let faults = [Faults { lag: 300, ..Faults::default() }, Faults::default()];
    let (results, job) = on_ranks(&faults, LONG, |rank, comm, die| {
        let sums = sum(comm, vec![1.0]);
        if rank.get() == 1 {
            die();
        }
        sums
    });
    for result in results {
        assert_eq!(result, Ok(vec![2.0]));
    }
    assert_eq!(job.aborted.load(SeqCst), 0);
}

#[test]
fn a_rank_that_never_comes_to_an_exchange_is_a_deadline() {
    let (results, _) = on_ranks(&[Faults::default(); 2], SHORT, |rank, comm, _| {
        if rank.get() == 1 {
            std::thread::sleep(4 * SHORT);
            return Ok(());
        }
        sum(comm, vec![1.0]).map(drop)
    });
    let kind = results.into_iter().next().unwrap().unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::Deadline | ErrorKind::PeerLost), "{kind:?}");
}

#[test]
fn what_nccl_refuses_or_finds_wrong_later_is_the_error_of_this_and_all_later_calls() {
    for faults in [
        Faults { refuse: Some((2, 1)), ..Faults::default() },
        Faults { breaks: Some((2, 6)), lag: 2, ..Faults::default() },
    ] {
        let (results, job) = on_ranks(&[faults], LONG, |_, comm, _| {
            sum(comm, vec![1.0])?;
            let error = sum(comm, vec![1.0]).unwrap_err();
            assert_eq!(sum(comm, vec![1.0]).unwrap_err(), error);
            Err::<(), _>(error)
        });
        let error = results.into_iter().next().unwrap().unwrap_err();
        assert!(error.message().contains("fake words"), "{error}");
        assert_eq!((job.destroyed.load(SeqCst), job.aborted.load(SeqCst)), (0, 1));
    }
}

/// What `work` comes to; a hang is a failure.
fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, came) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    came.recv_timeout(LONG).expect("it hangs, or has failed")
}

#[test]
fn an_exchange_that_nccl_never_begins_is_a_deadline_although_nobody_is_silent() {
    let results = within(|| {
        let faults = [Faults { stalls: Some(1), ..Faults::default() }];
        on_ranks(&faults, SHORT, |_, comm, _| {
            let error = sum(comm, vec![1.0]).unwrap_err();
            assert_eq!(sum(comm, vec![1.0]).unwrap_err(), error);
            Err::<(), _>(error)
        })
    });
    let error = results.0.into_iter().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
    assert_eq!((results.1.destroyed.load(SeqCst), results.1.aborted.load(SeqCst)), (0, 1));
}

/// The first rank gives work, the second never comes.
fn alone_with(faults: Faults) -> (Error, bool, Arc<Job>) {
    let (results, job) = on_ranks(&[faults, Faults::default()], SHORT, |rank, comm, _| {
        if rank.get() == 1 {
            std::thread::sleep(4 * SHORT);
            return Err(Error::new(ErrorKind::PeerLost, "it never comes"));
        }
        let error = sum(comm, vec![1.0]).unwrap_err();
        let last = comm.shared.queue.lock().last;
        Ok((error, comm.shared.reached(last)?))
    });
    let (error, is_over) = results.into_iter().next().unwrap().unwrap();
    (error, is_over, job)
}

#[test]
fn what_the_device_still_does_after_an_abort_has_returned_is_waited_for() {
    let (error, is_over, _) = within(|| alone_with(Faults { lingers: true, ..Faults::default() }));
    assert!(matches!(error.kind(), ErrorKind::Deadline | ErrorKind::PeerLost), "{error}");
    assert!(is_over, "who hears of the error frees the memory");
}

#[test]
fn an_abort_that_hangs_holds_nobody_up() {
    let (error, _, job) = within(|| alone_with(Faults { abort_hangs: true, ..Faults::default() }));
    assert!(matches!(error.kind(), ErrorKind::Deadline | ErrorKind::PeerLost), "{error}");
    job.is_released.store(true, SeqCst);
}

use std::sync::atomic::Ordering::SeqCst;
