//! The one group of a process, made from its variables.

use parking_lot::Mutex;

use super::env::{Launch, TcpLaunch, deadlines_from, launch_from};
use super::port_file::PortFile;
use super::tcp::{self, DataPlaneChoice, Rendezvous};
use super::{Deadlines, JobId, ProcessGroup};
use crate::error::{Error, ErrorKind, Result};

static GROUP: Mutex<Option<ProcessGroup>> = Mutex::new(None);

/// The group of this process; made by the first call that succeeds.
pub(super) fn from_env() -> Result<ProcessGroup> {
    let mut made = GROUP.lock();
    if let Some(group) = &*made {
        return Ok(group.clone());
    }
    let vars = |name: &str| std::env::var(name).ok();
    let deadlines = deadlines_from(vars)?;
    let group = match launch_from(vars, cfg!(feature = "mpi"))? {
        Launch::Solo => ProcessGroup::solo_with(deadlines),
        Launch::Tcp(launch) => join(&launch, deadlines)?,
        Launch::Mpi => {
            let text = "joining through MPI is not part of this version";
            return Err(Error::new(ErrorKind::Unsupported, text)
                .with_help("start with torchrun or launch/torchrun.sh"));
        }
    };
    tracing::debug!(?group, "joined");
    Ok(made.insert(group).clone())
}

/// Joins as the variables say.
pub(super) fn join(launch: &TcpLaunch, deadlines: Deadlines) -> Result<ProcessGroup> {
    let member = launch.member()?;
    let job = match &launch.token {
        Some(token) => JobId::new(&*launch.job, &**token),
        None => JobId::without_secret(&*launch.job),
    };
    let is_coordinator = member.rank.is_coordinator();
    let file = PortFile::for_launch(launch)?;
    let rendezvous = match (launch.meeting(is_coordinator), &file) {
        (Some(meeting), _) if is_coordinator => Rendezvous::Bind { meeting, publish: None },
        (Some(meeting), _) => Rendezvous::Find(Box::new(move || Ok(Some(meeting.clone())))),
        (None, Some(file)) if is_coordinator => file.bind()?,
        (None, Some(file)) => Rendezvous::Find(Box::new(|| file.read())),
        (None, None) => return Err(Error::new(ErrorKind::InvalidInput, "no place to meet")),
    };
    let group = tcp::join(member, rendezvous, &job, DataPlaneChoice::Tcp, deadlines);
    if let (true, Some(file)) = (is_coordinator, &file) {
        file.remove();
    }
    group
}
