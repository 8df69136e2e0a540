//! How this process was started, read from variables. Pure: the variables are an argument.

use std::time::Duration;

use super::tcp::Meeting;
use super::{Deadlines, Member, check_member};
use crate::error::{Error, ErrorKind, Result};
use crate::rank::{LocalRank, Rank, WorldSize};

/// Reads one variable; an empty one counts as absent.
pub(super) type Vars<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How to make the group of this process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Launch {
    /// Alone.
    Solo,
    /// Over TCP.
    Tcp(Box<TcpLaunch>),
    /// By an MPI launcher; its library knows the rest.
    Mpi,
}

/// What joining over TCP needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TcpLaunch {
    pub(super) rank: u32,
    pub(super) local_rank: u32,
    pub(super) world: u32,
    pub(super) meet: Meet,
    pub(super) job: String,
    pub(super) token: Option<String>,
}

/// Where the ranks meet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meet {
    /// Rank 0 binds the first, the others connect to the second.
    Address { bind: String, connect: String },
    /// All on this host: in a private file, whose name is made from this text.
    PrivateFile(String),
}

impl TcpLaunch {
    pub(super) fn member(&self) -> Result<Member> {
        let world = WorldSize::new(self.world)?;
        let (rank, local_rank) = (Rank::new(self.rank), LocalRank(self.local_rank));
        let member = Member { rank, local_rank, world };
        check_member(member).map(|()| member)
    }

    pub(super) fn meeting(&self, is_coordinator: bool) -> Option<Meeting> {
        let Meet::Address { bind, connect } = &self.meet else { return None };
        let address = if is_coordinator { bind } else { connect }.clone();
        Some(Meeting { address, token: None })
    }
}

/// A rank and a world size that some launcher has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    rank: u32,
    world: u32,
    local_rank: Option<u32>,
}

/// Variables of rank, world size and local rank, by launcher.
const TORCH: [&str; 3] = ["RANK", "WORLD_SIZE", "LOCAL_RANK"];
const SLURM: [&str; 3] = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"];
const MPI: [[&str; 3]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"],
];
/// The rank by PMIx: `prun`, or `srun --mpi=pmix`, under which Slurm's own variables tell more. It
/// tells no process by a variable how many there are.
const PMIX: &str = "PMIX_RANK";
/// The name of a PMIx launcher's job, and how it begins where that job is a Slurm step.
const PMIX_JOB: (&str, &str) = ("PMIX_NAMESPACE", "slurm.pmix.");
/// Ports derived from a Slurm step's number: the first, and how many. All lie below the range from
/// which systems take ports for outgoing connections. Step 0 gets the port of `slurm.sbatch`.
const SLURM_PORTS: (u64, u64) = (20_000, 12_000);
/// Distance of the ports of two steps of a job: neighbouring numbers belong to other jobs.
const SLURM_STEP_STRIDE: u64 = 997;

/// Finds out how this process was started.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for variables that are incomplete, contradict each other, or ask
/// for what this build cannot do.
pub(super) fn launch_from(vars: impl Fn(&str) -> Option<String>, has_mpi: bool) -> Result<Launch> {
    let vars: Vars<'_> = &|name| vars(name).filter(|value| !value.is_empty());
    let launcher = vars("TCH_CHECKPOINT_LAUNCHER").unwrap_or_else(|| "auto".into());
    match launcher.as_str() {
        "auto" => detect(vars, has_mpi),
        "solo" => Ok(Launch::Solo),
        "tcp" => torch_launch(vars, required(vars, TORCH)?),
        "slurm" => slurm_launch(vars, required(vars, SLURM)?),
        "mpi" if has_mpi => Ok(Launch::Mpi),
        "mpi" => Err(invalid("TCH_CHECKPOINT_LAUNCHER=mpi in a build without MPI", BUILD_HELP)),
        other => Err(invalid(
            format!("TCH_CHECKPOINT_LAUNCHER={other} is not known"),
            "use auto, solo, tcp, mpi or slurm",
        )),
    }
}

/// Deadlines with the variables that change them.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a value that is not a positive number.
pub(super) fn deadlines_from(vars: impl Fn(&str) -> Option<String>) -> Result<Deadlines> {
    let mut deadlines = Deadlines::default();
    let vars: Vars<'_> = &|name| vars(name).filter(|value| !value.is_empty());
    if let Some(milliseconds) = number::<u32>(vars, "TCH_CHECKPOINT_DEADLINE_MS")? {
        if milliseconds == 0 {
            return Err(invalid("TCH_CHECKPOINT_DEADLINE_MS=0", "give milliseconds, at least 1"));
        }
        deadlines.progress = Duration::from_millis(milliseconds.into());
    }
    Ok(deadlines)
}

fn detect(vars: Vars<'_>, has_mpi: bool) -> Result<Launch> {
    let torch = place(vars, TORCH)?;
    let mut mpi = None;
    for names in MPI {
        if let (None, Some(found)) = (mpi, place(vars, names)?) {
            mpi = Some((names, found));
        }
    }
    if let (Some(torch), Some((names, mpi))) = (torch, mpi) {
        check_agreement(torch, names, mpi)?;
    }
    if let Some(torch) = torch {
        check_alone(vars, TORCH, torch)?;
        return torch_launch(vars, torch);
    }
    match mpi {
        Some((_, mpi)) if mpi.world > 1 && has_mpi => return Ok(Launch::Mpi),
        Some(([rank, ..], mpi)) if mpi.world > 1 => {
            let text =
                format!("started by an MPI launcher ({rank} is set), but this build has no MPI");
            return Err(invalid(text, BUILD_HELP));
        }
        Some((names, mpi)) => return check_alone(vars, names, mpi).map(|()| Launch::Solo),
        None => {}
    }
    let tasks = number::<u32>(vars, "SLURM_STEP_NUM_TASKS")?;
    match (tasks, number::<u32>(vars, PMIX)?) {
        (_, Some(rank)) if !is_slurms(vars, tasks, rank)? => pmix_launch(rank, has_mpi),
        (Some(2..), _) => slurm_launch(vars, required(vars, SLURM)?),
        _ => Ok(Launch::Solo),
    }
}

/// Only MPI can ask a PMIx server for the other ranks.
fn pmix_launch(rank: u32, has_mpi: bool) -> Result<Launch> {
    if has_mpi {
        return Ok(Launch::Mpi);
    }
    let text = format!(
        "started by a PMIx launcher ({PMIX}={rank}), which only MPI can ask for the other ranks, \
         but this build has no MPI"
    );
    Err(invalid(text, BUILD_HELP))
}

/// Whether the rank by PMIx is that of a task of this Slurm step: of what another launcher starts
/// within a task, however many there are, the step's variables tell nothing.
fn is_slurms(vars: Vars<'_>, tasks: Option<u32>, rank: u32) -> Result<bool> {
    let (name, beginning) = PMIX_JOB;
    match (tasks, vars(name)) {
        (None, _) => Ok(false),
        (Some(_), Some(job)) => Ok(job.starts_with(beginning)),
        (Some(tasks), None) => Ok(tasks > 1 && number(vars, SLURM[0])? == Some(rank)),
    }
}

/// Checks that no PMIx launcher has started several processes of which each was told, perhaps by an
/// outer launcher, that it is alone.
fn check_alone(vars: Vars<'_>, [_, world, _]: [&str; 3], place: Place) -> Result<()> {
    match (place.world, number::<u32>(vars, PMIX)?) {
        (1, Some(rank @ 1..)) => Err(invalid(
            format!("{world}=1, but {PMIX}={rank}"),
            "unset what is left of an outer launcher, or set TCH_CHECKPOINT_LAUNCHER to mpi or \
             solo",
        )),
        _ => Ok(()),
    }
}

/// Checks what the launcher of MPI says of this process against what MPI itself says: an MPI that
/// does not understand its launcher makes a job of one out of each process, and all of them would
/// save as rank 0.
///
/// # Errors
/// [`ErrorKind::InvalidInput`], naming the variable.
#[cfg(any(feature = "mpi", test))]
pub(super) fn check_mpi(
    vars: impl Fn(&str) -> Option<String>,
    rank: Rank,
    world: WorldSize,
) -> Result<()> {
    let (rank, world) = (rank.get(), world.get());
    let told = |name: &'static str| Some((name, vars(name)?.trim().parse::<u32>().ok()?));
    // Only the innermost launcher counts, which is the first here as where it is looked for.
    let names = MPI.iter().find(|[rank, ..]| told(rank).is_some());
    let [rank_name, world_name] = names.map_or([PMIX, ""], |[rank, world, _]| [*rank, *world]);
    let differs = |name, ours| told(name).filter(|(_, theirs)| *theirs != ours);
    let Some((name, theirs)) = differs(rank_name, rank).or_else(|| differs(world_name, world))
    else {
        return Ok(());
    };
    let text = format!("MPI calls this process rank {rank} of {world}, but {name}={theirs}");
    Err(invalid(
        text,
        "start it with the mpirun of the MPI that it is linked with, or set \
         TCH_CHECKPOINT_LAUNCHER to slurm, tcp or solo",
    ))
}

fn check_agreement(torch: Place, names: [&str; 3], mpi: Place) -> Result<()> {
    if (torch.rank, torch.world) == (mpi.rank, mpi.world) {
        return Ok(());
    }
    let [rank, world, _] = names;
    let text = format!(
        "RANK={} WORLD_SIZE={}, but {rank}={} {world}={}",
        torch.rank, torch.world, mpi.rank, mpi.world
    );
    Err(invalid(text, "unset one pair, or set TCH_CHECKPOINT_LAUNCHER to tcp or mpi"))
}

/// Rank, world size and local rank under these names; none if neither of the first two is set.
fn place(vars: Vars<'_>, names: [&str; 3]) -> Result<Option<Place>> {
    let [rank, world, local_rank] = names;
    match (number(vars, rank)?, number(vars, world)?) {
        (None, None) => Ok(None),
        (Some(found_rank), Some(found_world)) => {
            let place = Place {
                rank: found_rank,
                world: found_world,
                local_rank: number(vars, local_rank)?,
            };
            if place.rank >= place.world {
                let text = format!("{rank}={} {world}={}", place.rank, place.world);
                return Err(invalid(text, "a rank is smaller than the number of ranks"));
            }
            Ok(Some(place))
        }
        (Some(_), None) => Err(missing(world, &format!("{rank} is set"))),
        (None, Some(_)) => Err(missing(rank, &format!("{world} is set"))),
    }
}

fn required(vars: Vars<'_>, names: [&str; 3]) -> Result<Place> {
    place(vars, names)?.ok_or_else(|| missing(names[0], "TCH_CHECKPOINT_LAUNCHER asks for it"))
}

/// torchrun, its like, and everybody who sets `RANK`.
fn torch_launch(vars: Vars<'_>, place: Place) -> Result<Launch> {
    if place.world == 1 {
        return Ok(Launch::Solo);
    }
    let run = vars("TORCHELASTIC_RUN_ID").or_else(|| vars("SLURM_JOB_ID"));
    let restarts = vars("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".into());
    let job = format!("{}#{restarts}", run.unwrap_or_else(|| "job".into()));
    let agent_has_port =
        vars("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let own_port = port(vars, "TCH_CHECKPOINT_MASTER_PORT")?;
    if agent_has_port && own_port.is_none() {
        let meet = private_meeting(vars, place, &job)?;
        return Ok(tcp(vars, place, meet, job));
    }
    let host = vars("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR", "RANK is set"))?;
    let port = match own_port {
        Some(port) => port,
        None => port(vars, "MASTER_PORT")?.ok_or_else(|| missing("MASTER_PORT", "RANK is set"))?,
    };
    let meet = meet_at(vars, &host, port);
    Ok(tcp(vars, place, meet, job))
}

/// torchrun's agent listens on `MASTER_PORT` itself; on one host its ranks meet elsewhere.
fn private_meeting(vars: Vars<'_>, place: Place, job: &str) -> Result<Meet> {
    if number::<u32>(vars, "LOCAL_WORLD_SIZE")? != Some(place.world) {
        return Err(invalid(
            "torchrun's agent owns MASTER_PORT, and the job spans hosts",
            "set TCH_CHECKPOINT_MASTER_PORT to a port that is free on rank 0's host",
        ));
    }
    let port = vars("MASTER_PORT").unwrap_or_default();
    Ok(Meet::PrivateFile(format!("{job} {port}")))
}

/// Tasks of a Slurm step that nobody else has made into a job.
fn slurm_launch(vars: Vars<'_>, place: Place) -> Result<Launch> {
    if place.world == 1 {
        return Ok(Launch::Solo);
    }
    let because = "this is a Slurm step";
    let id: u64 = number(vars, "SLURM_JOB_ID")?.ok_or_else(|| missing("SLURM_JOB_ID", because))?;
    let nodes = vars("SLURM_STEP_NODELIST").or_else(|| vars("SLURM_JOB_NODELIST"));
    let host = match (vars("MASTER_ADDR"), nodes) {
        (Some(host), _) => host,
        (None, Some(nodes)) => first_host(&nodes)
            .ok_or_else(|| invalid(format!("node list `{nodes}`"), "set MASTER_ADDR"))?,
        (None, None) => return Err(missing("MASTER_ADDR", because)),
    };
    let step = vars("SLURM_STEP_ID").unwrap_or_default();
    let given = match port(vars, "TCH_CHECKPOINT_MASTER_PORT")? {
        None => port(vars, "MASTER_PORT")?,
        own => own,
    };
    let port = given.unwrap_or_else(|| slurm_port(id, &step));
    let restarts = vars("SLURM_RESTART_COUNT").unwrap_or_else(|| "0".into());
    Ok(tcp(vars, place, meet_at(vars, &host, port), format!("{id}.{step}#{restarts}")))
}

fn slurm_port(job: u64, step: &str) -> u16 {
    let (first, count) = SLURM_PORTS;
    let step = step.parse::<u64>().unwrap_or(0);
    let mixed = (job % count + step % count * SLURM_STEP_STRIDE) % count;
    u16::try_from(first + mixed).unwrap_or(u16::MAX)
}

/// The first host of a list as Slurm writes it: `gpu[03-07,11],login1` gives `gpu03`.
fn first_host(nodes: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = nodes;
    while let Some(c) = rest.chars().next() {
        match c {
            ',' => break,
            '[' => {
                let (range, after) = rest.get(1..)?.split_once(']')?;
                host.push_str(range.split(['-', ',']).next()?);
                rest = after;
            }
            _ => {
                host.push(c);
                rest = rest.get(c.len_utf8()..)?;
            }
        }
    }
    (!host.is_empty()).then_some(host)
}

fn meet_at(vars: Vars<'_>, host: &str, port: u16) -> Meet {
    let at = |host: &str| {
        let is_bare_v6 = host.contains(':') && !host.starts_with('[');
        if is_bare_v6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    let bind = vars("TCH_CHECKPOINT_IFADDR").map_or_else(|| at(host), |own| at(&own));
    Meet::Address { bind, connect: at(host) }
}

fn tcp(vars: Vars<'_>, place: Place, meet: Meet, job: String) -> Launch {
    Launch::Tcp(Box::new(TcpLaunch {
        rank: place.rank,
        // One process per host, as under Kubernetes, if nobody says otherwise.
        local_rank: place.local_rank.unwrap_or(0),
        world: place.world,
        meet,
        job,
        token: vars("TCH_CHECKPOINT_TOKEN"),
    }))
}

fn number<N: std::str::FromStr>(vars: Vars<'_>, name: &str) -> Result<Option<N>> {
    let Some(text) = vars(name) else { return Ok(None) };
    let parsed = text.trim().parse().ok();
    let bad = || invalid(format!("{name}={text} is not a number in range"), "correct it");
    parsed.map(Some).ok_or_else(bad)
}

/// A port to meet at: with 0 rank 0 would get any, and the others would not know which.
fn port(vars: Vars<'_>, name: &str) -> Result<Option<u16>> {
    match number(vars, name)? {
        Some(0) => Err(invalid(format!("{name}=0"), "set a port from 1 to 65535")),
        port => Ok(port),
    }
}

const BUILD_HELP: &str = "build with feature `mpi`, start with torchrun or launch/torchrun.sh, or \
                          set TCH_CHECKPOINT_LAUNCHER to slurm, tcp or solo";

fn missing(name: &str, because: &str) -> Error {
    invalid(format!("{name} is not set, but {because}"), format!("set {name}"))
}

fn invalid(text: impl Into<String>, help: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, text).with_help(help)
}
