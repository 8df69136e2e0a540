//! The one group of a process, made from its variables.

use parking_lot::Mutex;

use super::env::{Launch, TcpLaunch, deadlines_from, launch_from};
use super::port_file::PortFile;
use super::tcp::{self, DataPlaneChoice, Rendezvous};
use super::{Deadlines, JobId, ProcessGroup};
use crate::error::{Error, ErrorKind, Result};

static GROUP: Mutex<Option<Kept>> = Mutex::new(None);

/// The group of this process, once it is made.
enum Kept {
    Here(ProcessGroup),
    /// Of a group under MPI the last handle must be seen to go.
    #[cfg(feature = "mpi")]
    Elsewhere(std::sync::Weak<super::Inner>),
}

impl Kept {
    fn group(&self) -> Result<ProcessGroup> {
        match self {
            Self::Here(group) => Ok(group.clone()),
            #[cfg(feature = "mpi")]
            Self::Elsewhere(inner) => inner.upgrade().map(ProcessGroup).ok_or_else(|| {
                let text = "this process has dropped its group; an MPI job is joined once";
                Error::new(ErrorKind::InvalidInput, text).with_help("keep the group")
            }),
        }
    }
}

/// The group of this process; made by the first call that succeeds.
pub(super) fn from_env() -> Result<ProcessGroup> {
    let mut made = GROUP.lock();
    if let Some(kept) = &*made {
        return kept.group();
    }
    let vars = |name: &str| std::env::var(name).ok();
    let deadlines = deadlines_from(vars)?;
    let (group, kept) = match launch_from(vars, cfg!(feature = "mpi"))? {
        Launch::Solo => here(ProcessGroup::solo_with(deadlines)),
        Launch::Tcp(launch) => here(join(&launch, deadlines)?),
        #[cfg(feature = "mpi")]
        Launch::Mpi => {
            let group = super::mpi::join(deadlines)?;
            let kept = Kept::Elsewhere(std::sync::Arc::downgrade(&group.0));
            (group, kept)
        }
        #[cfg(not(feature = "mpi"))]
        Launch::Mpi => {
            return Err(Error::new(ErrorKind::Unsupported, "this build has no MPI"));
        }
    };
    tracing::debug!(?group, "joined");
    *made = Some(kept);
    Ok(group)
}

fn here(group: ProcessGroup) -> (ProcessGroup, Kept) {
    (group.clone(), Kept::Here(group))
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
