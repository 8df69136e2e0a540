//! Where the ranks of one host meet when `MASTER_PORT` belongs to the launcher's agent: rank 0
//! takes any free port and writes it, with a fresh secret, into a file that only its user can
//! read. A file left by a dead job does no harm: nobody listens there, or its secret is another,
//! and the ranks look again until rank 0 has put its own in place.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::env::{Meet, TcpLaunch};
use super::tcp::{Meeting, Rendezvous};
use crate::error::{Error, ErrorKind, Result};
use crate::shown;

/// Longest content of the file.
const TEXT_BYTES_MAX: u64 = 256;

/// A private file of a known name.
pub(super) struct PortFile {
    path: PathBuf,
    /// Whether it was said that what lies there is not believed.
    warned: Cell<bool>,
}

impl PortFile {
    /// The file by which the ranks of this job meet, if that is how they do.
    pub(super) fn for_launch(launch: &TcpLaunch) -> Result<Option<Self>> {
        let Meet::PrivateFile(name) = &launch.meet else { return Ok(None) };
        Self::in_folder(&std::env::temp_dir(), name).map(Some)
    }

    /// The file of the job called `name`, for this user.
    pub(super) fn in_folder(folder: &Path, name: &str) -> Result<Self> {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        let (digest, _) = digest.as_str().split_at(16);
        let user = rustix::process::geteuid().as_raw();
        let path = folder.join(format!("tch-checkpoint-{user}-{digest}.port"));
        Ok(Self { path, warned: Cell::new(false) })
    }

    /// Rank 0's way to meet: any free port, published here.
    pub(super) fn bind(&self) -> Result<Rendezvous<'_>> {
        let token = random_hex()?;
        let meeting = Meeting { address: "127.0.0.1:0".into(), token: Some(token.clone()) };
        let publish = move |bound: SocketAddr| self.write(bound, &token);
        Ok(Rendezvous::Bind { meeting, publish: Some(Box::new(publish)) })
    }

    fn write(&self, bound: SocketAddr, token: &str) -> Result<()> {
        let draft = self.path.with_extension(random_hex()?);
        let failed = |e| Error::io(&e, "publishing rank 0's port", &self.path);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(format!("{bound} {token}\n").as_bytes()))
            .and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            drop(fs::remove_file(&draft)); // may not exist
        }
        written.map_err(failed)
    }

    /// What rank 0 has published, if it has. A file of somebody else, or one that others can
    /// read, is no such file.
    pub(super) fn read(&self) -> Result<Option<Meeting>> {
        let file = match self.open() {
            Ok(file) => file,
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
            Err(_) => return Ok(self.disbelieve()),
        };
        let user = rustix::process::geteuid().as_raw();
        let private =
            file.metadata().is_ok_and(|m| m.is_file() && m.uid() == user && m.mode() & 0o077 == 0);
        let mut text = String::new();
        if !private {
            return Ok(self.disbelieve());
        }
        if file.take(TEXT_BYTES_MAX).read_to_string(&mut text).is_err() {
            return Ok(None);
        }
        let parsed = text.strip_suffix('\n').and_then(|line| line.split_once(' '));
        Ok(parsed.map(|(address, token)| Meeting {
            address: address.to_owned(),
            token: Some(token.to_owned()),
        }))
    }

    /// Rank 0 may yet replace the file, so this is no error; but it may explain the one to come.
    fn disbelieve(&self) -> Option<Meeting> {
        if !self.warned.replace(true) {
            tracing::warn!(
                path = %shown::path(&self.path),
                "the file by which ranks meet is not private to this user, so it is ignored; \
                 remove it, or set TMPDIR to a directory of your own"
            );
        }
        None
    }

    /// Whether a file was found that could not be believed.
    #[cfg(test)]
    pub(super) fn has_warned(&self) -> bool {
        self.warned.get()
    }

    fn open(&self) -> std::io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        // A pipe or a link under this name must neither block nor lead elsewhere.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(&self.path, flags, Mode::empty())?))
    }

    /// Removes the file once all have met. If that fails it is stale, which does no harm.
    pub(super) fn remove(&self) {
        drop(fs::remove_file(&self.path));
    }
}

fn random_hex() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Storage, format!("no random numbers: {e}")))?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}
