//! Which rank computes where, and whether that can work: one rank for each GPU.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// The variable by which all ranks say that several may compute on one GPU.
pub(crate) const SHARE_VARIABLE: &str = "TCH_CHECKPOINT_SHARE_GPU";

/// Where one rank computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) unit: Unit,
    /// Whether this rank was told that ranks may share a GPU.
    pub(crate) may_share: bool,
    /// Whether its group exchanges gradients from this device to those of the others.
    pub(crate) is_joined: bool,
}

/// What a rank computes with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// The processor, and, as far as it is known, why no GPU.
    Cpu { why: Option<String> },
    /// A GPU, or a part of one that is a device of its own.
    Cuda {
        /// Its number in this process.
        index: usize,
        /// How many this process sees.
        visible: usize,
        /// Its own name, equal in all processes; where the driver does not tell, nobody can say
        /// which ranks share it.
        id: Option<String>,
    },
    /// Some other kind of device, of which nothing is asked.
    Other,
}

/// What all ranks know once they have compared their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// Whether every rank has a GPU that is known and its own: what NCCL asks for.
    pub(crate) one_gpu_each: bool,
    /// Whether some ranks share one, as they were told that they may.
    pub(crate) is_shared: bool,
}

/// Whether ranks at these places, in rank order, can train together.
///
/// # Errors
/// [`ErrorKind::Device`] where some are on GPUs and others on CPUs; [`ErrorKind::InvalidInput`]
/// where two share a GPU, unless all were told that they may.
pub(crate) fn judge(places: &[Place]) -> Result<Placement> {
    check_alike(places)?;
    check_joined(places)?;
    let shared = shared_gpu(places);
    if let Some([first, second]) = shared
        && let Some(strict) = places.iter().position(|place| !place.may_share)
    {
        return Err(refusal(places, first, second, strict));
    }
    let known = |place: &Place| matches!(place.unit, Unit::Cuda { id: Some(_), .. });
    let is_shared = shared.is_some();
    Ok(Placement { one_gpu_each: !is_shared && places.iter().all(known), is_shared })
}

/// Either all on GPUs or all on CPUs: gradients would else be of different devices, and the GPUs
/// would wait for the CPUs.
fn check_alike(places: &[Place]) -> Result<()> {
    let on_cpu = |place: &Place| matches!(place.unit, Unit::Cpu { .. });
    let on_gpu = |place: &Place| matches!(place.unit, Unit::Cuda { .. });
    let (Some(cpu), Some(gpu)) = (find(places, on_cpu), find(places, on_gpu)) else {
        return Ok(());
    };
    let why = match &cpu.1.unit {
        Unit::Cpu { why: Some(why) } => format!(" ({why})"),
        _ => String::new(),
    };
    let message = format!(
        "this rank computes on the CPU of host {}{why}, but rank {} on a GPU of host {}",
        cpu.1.host, gpu.0, gpu.1.host
    );
    Err(Error::new(ErrorKind::Device, message).at_rank(rank(cpu.0)).with_help(
        "`tch-checkpoint doctor` on that host says what its GPUs lack; to train on CPUs, give \
         every rank `Device::Cpu`, or start all with CUDA_VISIBLE_DEVICES=-1",
    ))
}

/// Either all on the devices between which their group exchanges gradients, or none: some would wait
/// there for others that go by way of the hosts.
fn check_joined(places: &[Place]) -> Result<()> {
    let joined = find(places, |place| place.is_joined);
    let (Some(joined), Some(other)) = (joined, find(places, |place| !place.is_joined)) else {
        return Ok(());
    };
    let message = format!(
        "this rank would compute on another device than the one that its group's NCCL \
         communicator joins, rank {} on that one",
        joined.0
    );
    Err(Error::new(ErrorKind::InvalidInput, message).at_rank(rank(other.0)).with_help(
        "give all ranks the devices with which the group began, or all of them others; or use a \
         process group of its own",
    ))
}

fn find(places: &[Place], is: impl Fn(&Place) -> bool) -> Option<(usize, &Place)> {
    places.iter().enumerate().find(|(_, place)| is(place))
}

/// The first two ranks on one GPU.
fn shared_gpu(places: &[Place]) -> Option<[usize; 2]> {
    let mut first_on = std::collections::BTreeMap::new();
    places.iter().enumerate().find_map(|(rank, place)| {
        let Unit::Cuda { id: Some(id), .. } = &place.unit else { return None };
        first_on.insert(id, rank).map(|earlier| [earlier, rank])
    })
}

fn refusal(places: &[Place], first: usize, second: usize, strict: usize) -> Error {
    let described = |rank: usize| match places.get(rank).map(|place| &place.unit) {
        Some(Unit::Cuda { index, visible, id }) => {
            let id = id.as_deref().unwrap_or_default();
            (format!("cuda:{index} of {visible} on rank {rank}"), id)
        }
        _ => (format!("rank {rank}"), ""),
    };
    let host = places.get(second).map_or("", |place| place.host.as_str());
    let ((one, id), (other, _)) = (described(first), described(second));
    let message = format!(
        "ranks {first} and {second} would share one GPU, {id} of host {host}: {one}, {other}"
    );
    let some_may = places.iter().any(|place| place.may_share);
    let allow = if some_may {
        format!(
            "{SHARE_VARIABLE}=1 allows it, but only if all ranks have it: rank {strict} has not"
        )
    } else {
        format!("{SHARE_VARIABLE}=1 on all ranks allows it, without NCCL")
    };
    Error::new(ErrorKind::InvalidInput, message).at_rank(rank(second)).with_help(format!(
        "start as many ranks on a host as it has GPUs, each with its own LOCAL_RANK (or `srun \
         --gpus-per-task=1`); CUDA_VISIBLE_DEVICES must show a rank all GPUs of its host or its \
         own; {allow}"
    ))
}

fn rank(index: usize) -> Rank {
    Rank::new(u32::try_from(index).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(host: &str, index: usize, id: &str) -> Place {
        let unit = Unit::Cuda { index, visible: 8, id: Some(id.to_owned()) };
        Place { host: host.to_owned(), unit, may_share: false, is_joined: false }
    }

    fn cpu(why: Option<&str>) -> Place {
        let unit = Unit::Cpu { why: why.map(str::to_owned) };
        Place { host: "c".to_owned(), unit, may_share: false, is_joined: false }
    }

    const FULL: Placement = Placement { one_gpu_each: true, is_shared: false };
    const NONE: Placement = Placement { one_gpu_each: false, is_shared: false };

    #[test]
    fn a_gpu_for_each_rank_is_well_whatever_its_number() {
        let numbered = [gpu("a", 0, "u0"), gpu("a", 1, "u1"), gpu("b", 0, "u2"), gpu("b", 1, "u3")];
        assert_eq!(judge(&numbered), Ok(FULL));
        // Each rank is shown one alone, as by `--gpus-per-task=1`.
        let alone = [gpu("a", 0, "u0"), gpu("a", 0, "u1"), gpu("b", 0, "u2")];
        assert_eq!(judge(&alone), Ok(FULL));
        // Containers may all have one host's name.
        assert_eq!(judge(&[gpu("pod", 3, "u3"), gpu("pod", 3, "u9")]), Ok(FULL));
        assert_eq!(judge(&[gpu("a", 0, "u0")]), Ok(FULL));
    }

    #[test]
    fn two_ranks_on_one_gpu_are_refused_with_both_named_and_what_to_do() {
        let places = [gpu("a", 0, "u0"), gpu("b", 0, "u5"), gpu("b", 1, "u6"), gpu("b", 3, "u5")];
        let error = judge(&places).unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::InvalidInput, Some(Rank::new(3))));
        assert_eq!(
            error.message(),
            "ranks 1 and 3 would share one GPU, u5 of host b: cuda:0 of 8 on rank 1, cuda:3 of 8 \
             on rank 3"
        );
        let help = error.help().unwrap();
        for word in ["LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "--gpus-per-task=1", SHARE_VARIABLE] {
            assert!(help.contains(word), "{word} not in {help}");
        }
    }

    #[test]
    fn ranks_use_the_devices_that_their_group_joins_or_all_others() {
        let place = |is_joined, id| Place { is_joined, ..gpu("a", 0, id) };
        for all in [true, false] {
            assert!(judge(&[place(all, "x"), place(all, "y")]).unwrap().one_gpu_each);
        }
        let error = judge(&[place(true, "x"), place(false, "y"), place(true, "z")]).unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::InvalidInput, Some(Rank::new(1))));
        assert!(error.message().contains("rank 0 on that one"), "{error}");
    }

    #[test]
    fn ranks_share_only_where_all_of_them_were_told_so() {
        let mut places = [gpu("a", 0, "u0"), gpu("a", 1, "u1"), gpu("a", 0, "u0")];
        for place in &mut places {
            place.may_share = true;
        }
        let shared = Placement { one_gpu_each: false, is_shared: true };
        assert_eq!(judge(&places), Ok(shared));
        // Also a rank that shares nothing must know that there is no NCCL.
        places[1].may_share = false;
        let error = judge(&places).unwrap_err();
        assert!(error.help().unwrap().ends_with("rank 1 has not"), "{error:?}");
        // Where none does, what they may is of no account.
        let apart = [gpu("a", 0, "u0"), Place { may_share: true, ..gpu("a", 1, "u1") }];
        assert_eq!(judge(&apart), Ok(FULL));
    }

    #[test]
    fn cpus_are_not_looked_at_but_beside_gpus_they_are_an_error() {
        assert_eq!(judge(&[cpu(None), cpu(Some("no driver")), cpu(None)]), Ok(NONE));
        let error = judge(&[gpu("a", 0, "u0"), cpu(None), cpu(Some("no driver"))]).unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Device, Some(Rank::new(1))));
        let error = judge(&[cpu(Some("no driver")), gpu("a", 0, "u0")]).unwrap_err();
        assert_eq!(
            error.message(),
            "this rank computes on the CPU of host c (no driver), but rank 1 on a GPU of host a"
        );
    }

    #[test]
    fn a_gpu_that_the_driver_does_not_name_is_taken_for_nobody_else_s() {
        let unit = Unit::Cuda { index: 0, visible: 1, id: None };
        let unknown = Place { unit, ..gpu("a", 0, "") };
        assert_eq!(judge(&[unknown.clone(), unknown]), Ok(NONE));
        let other = Place { unit: Unit::Other, ..cpu(None) };
        assert_eq!(judge(&[other.clone(), other, cpu(None)]), Ok(NONE));
    }
}
