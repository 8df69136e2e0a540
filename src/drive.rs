//! What an account of Google Drive has left, asked of its API (feature `drive`).
//!
//! Drive mounted as a file system does not say what the account's quota leaves. The API does, to
//! whoever has an access token with a scope that reads Drive's metadata (`drive.metadata.readonly`
//! is enough). The token goes to the endpoint alone, by HTTPS, and into no log and no error.
//!
//! A [`Checkpointer`](crate::checkpointer::Checkpointer) at
//! [`Location::ColabDrive`](crate::checkpointer::Location::ColabDrive) asks the mounted file system
//! and holds no token. A program that has one asks before training, on one rank:
//!
//! ```no_run
//! use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig, Location};
//! use tch_checkpoint::drive::DriveProbe;
//! # let group = tch_checkpoint::ProcessGroup::solo();
//! # let token = String::new();
//! let config = CheckpointerConfig::new("digits").at(Location::ColabDrive).keep_last(3);
//! if group.is_coordinator()
//!     && let Some(quota) = DriveProbe::new(&token)?.quota_or_none()
//!     && quota.available_bytes().is_some_and(|bytes| bytes < 2 << 30)
//! {
//!     println!("Google Drive: {quota}; keep fewer checkpoints");
//! }
//! let checkpointer = Checkpointer::new(&group, config)?;
//! # Ok::<(), tch_checkpoint::Error>(())
//! ```

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::{HeaderValue, Uri, header};

use crate::error::{Error, ErrorKind, Result, printable};

/// Method `about.get` of version 3, asked for the quota alone.
const ENDPOINT: &str = "https://www.googleapis.com/drive/v3/about?fields=storageQuota";
const TIMEOUT: Duration = Duration::from_secs(10);
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The answer has about 150 bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// What Google calls a GB: an account of 15 GB has 15 · 2^30 bytes.
const GB: f64 = (1u64 << 30) as f64;

/// Asks Google Drive what an account has left. Any rank may; no other is involved.
pub struct DriveProbe {
    token: HeaderValue,
    endpoint: String,
    timeout: Duration,
}

impl DriveProbe {
    /// A probe with an OAuth 2.0 access token.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for what can be no token: empty, over 16 KiB, or with anything
    /// but visible ASCII characters.
    pub fn new(token: &str) -> Result<Self> {
        let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        let header = HeaderValue::from_str(&format!("Bearer {token}")).ok();
        let possible = !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && is_visible;
        let Some(mut token) = header.filter(|_| possible) else {
            let message = "the access token is empty, too long, or not in ASCII";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("pass the text of the token alone, without line breaks"));
        };
        token.set_sensitive(true);
        Ok(Self { token, endpoint: ENDPOINT.to_owned(), timeout: TIMEOUT })
    }

    /// Another address to ask: `https`, or `http` on this host (for tests).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for any other: the token would travel in the open.
    pub fn endpoint(mut self, url: &str) -> Result<Self> {
        let safe = url.parse::<Uri>().is_ok_and(|uri| {
            let scheme = uri.scheme_str();
            uri.host().is_some()
                && (scheme == Some("https") || is_local(&uri) && scheme == Some("http"))
        });
        if !safe {
            let message = "the token would not be sent by HTTPS";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_path(url)
                .with_help("give an address that begins with https://"));
        }
        url.clone_into(&mut self.endpoint);
        Ok(self)
    }

    /// How long the whole exchange may take. Default: 10 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Asks, and waits for the answer. Redirects are not followed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the token is refused; [`ErrorKind::Deadline`];
    /// [`ErrorKind::Storage`] if there is no connection, or no answer that can be understood.
    pub fn quota(&self) -> Result<DriveQuota> {
        let asked = self
            .agent()
            .get(&self.endpoint)
            .header(header::AUTHORIZATION, self.token.clone())
            .call();
        let mut response = asked.map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(self.refused(status));
        }
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| self.failed(&error))?;
        parse(&body).map_err(|why| self.error(ErrorKind::Storage, why))
    }

    /// [`DriveProbe::quota`], with a failure logged as a warning, for callers who would go on.
    #[must_use]
    pub fn quota_or_none(&self) -> Option<DriveQuota> {
        self.quota()
            .inspect_err(|error| tracing::warn!(%error, "the quota of Google Drive is not known"))
            .ok()
    }

    fn agent(&self) -> Agent {
        let mut config = Agent::config_builder()
            .timeout_global(Some(self.timeout))
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("tch-checkpoint/", env!("CARGO_PKG_VERSION")));
        if self.endpoint.parse::<Uri>().is_ok_and(|uri| is_local(&uri)) {
            config = config.proxy(None);
        }
        config.build().new_agent()
    }

    fn refused(&self, status: u16) -> Error {
        let (kind, help) = match status {
            401 => (ErrorKind::InvalidInput, "the token has expired or is none: get a new one"),
            403 => (
                ErrorKind::InvalidInput,
                "get a token with scope drive.metadata.readonly for a project that may use the \
                 Drive API, or ask less often",
            ),
            300..=399 => (ErrorKind::Storage, "redirects are not followed: check the address"),
            _ => (ErrorKind::Storage, "try again later"),
        };
        self.error(kind, format!("Google Drive answers with status {status}")).with_help(help)
    }

    fn failed(&self, error: &ureq::Error) -> Error {
        let kind = match error {
            ureq::Error::Timeout(_) => ErrorKind::Deadline,
            _ => ErrorKind::Storage,
        };
        self.error(kind, format!("asking Google Drive: {}", printable(&error.to_string())))
            .with_help("check the connection; nothing depends on this answer")
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, message).with_path(&self.endpoint)
    }
}

impl fmt::Debug for DriveProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriveProbe")
            .field("token", &"***")
            .field("endpoint", &self.endpoint)
            .field("timeout", &self.timeout)
            .finish()
    }
}

fn is_local(uri: &Uri) -> bool {
    matches!(uri.host(), Some("127.0.0.1" | "localhost" | "[::1]"))
}

/// What an account has, and what it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveQuota {
    /// Bytes that the account may use; `None` for no limit.
    pub limit_bytes: Option<u64>,
    /// Bytes that it uses, in Drive and elsewhere.
    pub usage_bytes: u64,
}

impl DriveQuota {
    /// Bytes that it can still use; `None` for no limit.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        self.limit_bytes.map(|limit| limit.saturating_sub(self.usage_bytes))
    }

    /// The limit in GB (2^30 bytes, as Google counts), rounded to two digits; infinite without.
    #[must_use]
    pub fn limit_gb(&self) -> f64 {
        gb_or_infinite(self.limit_bytes)
    }

    /// The usage in GB (2^30 bytes), rounded to two digits.
    #[must_use]
    pub fn usage_gb(&self) -> f64 {
        gb_or_infinite(Some(self.usage_bytes))
    }

    /// What is left in GB (2^30 bytes), rounded to two digits; infinite without a limit.
    #[must_use]
    pub fn available_gb(&self) -> f64 {
        gb_or_infinite(self.available_bytes())
    }
}

impl fmt::Display for DriveQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.usage_gb();
        match self.limit_bytes {
            None => write!(f, "{used:.2} GB used, no limit"),
            Some(_) => {
                let (limit, free) = (self.limit_gb(), self.available_gb());
                write!(f, "{used:.2} GB of {limit:.2} GB used, {free:.2} GB free")
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "rounded anyway")]
fn gb_or_infinite(bytes: Option<u64>) -> f64 {
    bytes.map_or(f64::INFINITY, |bytes| (bytes as f64 / GB * 100.0).round() / 100.0)
}

/// The answer; numbers of 64 bits are strings in Google's JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct About {
    storage_quota: StorageQuota,
}

#[derive(Deserialize)]
struct StorageQuota {
    limit: Option<String>,
    usage: String,
}

/// A limit of 0 is none, like one that is absent.
fn parse(body: &[u8]) -> Result<DriveQuota, String> {
    let about: About =
        serde_json::from_slice(body).map_err(|error| format!("the answer is no quota: {error}"))?;
    let number = |name: &str, text: &str| {
        text.parse::<u64>().map_err(|_| format!("`{name}` of the quota is no number of bytes"))
    };
    let limit = about.storage_quota.limit.map(|text| number("limit", &text)).transpose()?;
    let usage_bytes = number("usage", &about.storage_quota.usage)?;
    Ok(DriveQuota { limit_bytes: limit.filter(|limit| *limit > 0), usage_bytes })
}

#[cfg(test)]
mod tests;
