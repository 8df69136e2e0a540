//! The end of the job's time, as far as a variable tells it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};

/// Seconds since 1970. The first that is set counts: the user's own, then Slurm's.
const VARIABLES: [&str; 2] = ["TCH_CHECKPOINT_END_TIME", "SLURM_JOB_END_TIME"];

/// When the job ends, and how long before that it is to have begun to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeLimit {
    end: Duration,
    margin: Duration,
}

impl TimeLimit {
    /// None where no variable tells the end, or one that is past.
    pub(super) fn from_env(margin: Duration) -> Result<Option<Self>> {
        let vars = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
        Ok(end_from(vars, now())?.map(|end| Self { end, margin }))
    }

    #[cfg(test)]
    pub(super) fn at(end: Duration) -> Self {
        Self { end, margin: Duration::ZERO }
    }

    pub(super) fn is_near(&self, save_takes: Duration) -> bool {
        is_due(now(), self.end, self.margin, save_takes)
    }
}

/// Since 1970, by the clock that the variables mean.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn end_from(vars: impl Fn(&str) -> Option<String>, now: Duration) -> Result<Option<Duration>> {
    let set = VARIABLES.into_iter().find_map(|name| {
        let value = vars(name).filter(|value| !value.trim().is_empty());
        value.map(|value| (name, value))
    });
    let Some((name, value)) = set else { return Ok(None) };
    let end = value.trim().parse().map(Duration::from_secs).map_err(|_| {
        let text = format!("{name}={value} is no time");
        Error::new(ErrorKind::InvalidInput, text)
            .with_help("give the job's end in whole seconds since 1970, or unset it")
    })?;
    if end <= now {
        tracing::warn!(variable = name, value, "the job's end has passed, so it is not watched");
        return Ok(None);
    }
    Ok(Some(end))
}

/// Whether a save has to begin: the time that is left is not more than the margin, or than two
/// saves take.
fn is_due(now: Duration, end: Duration, margin: Duration, save_takes: Duration) -> bool {
    let needed = margin.max(save_takes.saturating_mul(2));
    now.saturating_add(needed) >= end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn it_is_due_a_margin_or_two_saves_before_the_end() {
        let end = seconds(1000);
        for (now, margin, save, due) in [
            (879, 120, 0, false),
            (880, 120, 0, true),
            (880, 120, 59, true),
            (879, 120, 60, false),
            (860, 120, 70, true),
            (859, 120, 70, false),
            (999, 0, 0, false),
            (1000, 0, 0, true),
            (2000, 0, 0, true),
            (0, 2000, 0, true),
        ] {
            let found = is_due(seconds(now), end, seconds(margin), seconds(save));
            assert_eq!(found, due, "now {now}, margin {margin}, save {save}");
        }
        assert!(is_due(seconds(1), end, Duration::MAX, Duration::MAX));
    }

    #[test]
    fn the_users_variable_goes_before_slurms() {
        let end = |own: &str, slurm: &str| {
            let vars = |name: &str| match name {
                "TCH_CHECKPOINT_END_TIME" => Some(own.to_owned()),
                "SLURM_JOB_END_TIME" => Some(slurm.to_owned()),
                _ => None,
            };
            end_from(vars, seconds(100))
        };
        assert_eq!(end("200", "300").unwrap(), Some(seconds(200)));
        assert_eq!(end("", " 300\n").unwrap(), Some(seconds(300)));
        assert_eq!(end("", "").unwrap(), None);
        assert_eq!(end("101", "").unwrap(), Some(seconds(101)));
        assert_eq!(end("100", "300").unwrap(), None, "has passed");
        assert_eq!(end("18446744073709551615", "").unwrap(), Some(seconds(u64::MAX)));
        assert_eq!(end_from(|_| None, seconds(100)).unwrap(), None);
    }

    #[test]
    fn what_is_no_time_is_refused_by_name() {
        for value in ["tomorrow", "-5", "12:00", "1e9", "99999999999999999999", "1 2"] {
            let only = |name: &str| (name == "SLURM_JOB_END_TIME").then(|| value.to_owned());
            let error = end_from(only, Duration::ZERO).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("SLURM_JOB_END_TIME"), "{error}");
            assert!(error.to_string().contains(value), "{error}");
        }
    }
}
