//! Settings that contradict one another or can never work, all at once and by name.

use std::path::Path;
use std::time::Duration;

use super::super::location::experiment_fault;
use super::decode::together;
use super::{AsyncMode, CheckpointerConfig, InFlight, Location, Resume};
use crate::autosave::{Every, KnownFields, Mode, NameTemplate};
use crate::error::Result;
use crate::globs::glob_fault;

/// The field of a name template that stands for the monitored metric, whatever it is called.
pub const METRIC_FIELD: &str = "metric";
/// Longest name of a metric, in bytes.
const METRIC_BYTES_MAX: usize = 200;

impl CheckpointerConfig {
    /// Whether these settings can work together. Pure; the same on every rank whose settings are.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) that lists every fault by the
    /// name of its field, and says what to do.
    pub fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        self.check_place(&mut faults);
        self.check_when(&mut faults);
        self.check_names(&mut faults);
        self.check_what_stays(&mut faults);
        self.check_saves(&mut faults);
        self.check_resume(&mut faults);
        if faults.is_empty() { Ok(()) } else { Err(together(faults)) }
    }

    fn check_place(&self, faults: &mut Vec<String>) {
        if let Some(fault) = experiment_fault(&self.experiment) {
            let name: String = self.experiment.chars().take(80).collect();
            faults.push(format!("`experiment`: `{name}` {fault}; name it by one plain word"));
        }
        if self.location == Location::Path(Path::new("").to_owned()) {
            faults.push("`location`: an empty path; use `local` for `./checkpoints`".to_owned());
        }
        if self.tensorboard.as_deref() == Some(Path::new("")) {
            faults.push("`tensorboard`: an empty path; leave it out for no event files".to_owned());
        }
        if let Location::ColabDriveAt(drive) = &self.location
            && let Err(error) = drive.checked_path()
        {
            let path = cut(&drive.drive_path.to_string_lossy());
            faults.push(format!(
                "`location.colab_drive_at.drive_path`: `{path}`: {}",
                error.message()
            ));
        }
    }

    fn check_when(&self, faults: &mut Vec<String>) {
        let counts = [
            ("save_every_epochs", self.save_every_epochs),
            ("save_every_steps", self.save_every_steps),
        ];
        for (field, _) in counts.into_iter().filter(|(_, every)| *every == Some(0)) {
            faults.push(format!("`{field}`: 0 is no interval; leave it out for no such saves"));
        }
        if let Some(minutes) = self.save_every_minutes.filter(|m| Every::minutes(*m).is_err()) {
            faults.push(format!(
                "`save_every_minutes`: {minutes} is no interval; give minutes above 0, or leave it out"
            ));
        }
        if self.enabled && !self.saves_by_itself() {
            faults.push(
                "`save_every_epochs`, `save_every_steps`, `save_every_minutes`: none is set, and \
                 `save_on_best`, `save_at_end`, `save_on_signal`, `save_before_time_limit` are off, so nothing \
                 would ever be saved; set one (`save_at_end` if the program saves by its own calls)"
                    .to_owned(),
            );
        }
        if self.save_on_best && self.monitor.is_none() {
            faults.push("`save_on_best`: the best by what? set `monitor` (and `mode`)".to_owned());
        }
        let margin = self.time_limit_margin_seconds;
        if Duration::try_from_secs_f64(margin).is_err() {
            faults.push(format!(
                "`time_limit_margin_seconds`: {margin} is no time; give seconds, 0 or more"
            ));
        }
    }

    fn saves_by_itself(&self) -> bool {
        self.save_every_epochs.is_some()
            || self.save_every_steps.is_some()
            || self.save_every_minutes.is_some()
            || self.save_on_best
            || self.save_at_end
            || self.save_on_signal
            || self.save_before_time_limit
    }

    fn check_names(&self, faults: &mut Vec<String>) {
        for metric in &self.metrics {
            if let Some(fault) = metric_fault(metric) {
                faults.push(format!("`metrics`: `{}` {fault}; rename it", cut(metric)));
            } else if metric.contains(['{', '}', ':', '!']) {
                let why = "cannot stand in a name template";
                faults.push(format!("`metrics`: `{}` {why}; leave it out", cut(metric)));
            } else if metric == METRIC_FIELD && self.monitor.as_deref() != Some(METRIC_FIELD) {
                faults.push(format!("`metrics`: `{metric}` means the monitored one; rename it"));
            }
        }
        if let Some(fault) = self.monitor.as_deref().and_then(metric_fault) {
            let monitor = cut(self.monitor.as_deref().unwrap_or_default());
            faults.push(format!("`monitor`: `{monitor}` {fault}; give a metric's name"));
        }
        if let Err(error) = self.name_template() {
            faults.push(format!("`name`: {}", error.message()));
        }
    }

    /// The template of names, checked. It may mention the fields that are known anyway, `metrics`
    /// with their `val_` twins, and if one is monitored, that one and [`METRIC_FIELD`].
    ///
    /// # Errors
    /// As [`NameTemplate::parse`].
    pub fn name_template(&self) -> Result<NameTemplate> {
        let mut known = KnownFields::new(&self.metrics);
        if let Some(monitor) = &self.monitor {
            known = known.with_field(monitor).with_field(METRIC_FIELD);
        }
        NameTemplate::parse(&self.name, &known)
    }

    fn check_what_stays(&self, faults: &mut Vec<String>) {
        let rules = [
            ("keep_last", self.keep_last),
            ("keep_best", self.keep_best),
            ("keep_every_steps", self.keep_every_steps),
            ("keep_every_epochs", self.keep_every_epochs),
        ];
        for (field, _) in rules.into_iter().filter(|(_, rule)| *rule == Some(0)) {
            faults.push(format!(
                "`{field}`: 0 would keep nothing; give 1 or more, or leave it out for no such rule"
            ));
        }
        if self.keep_best.is_some() && self.monitor.is_none() {
            faults.push("`keep_best`: the best by what? set `monitor` (and `mode`)".to_owned());
        }
        if self.mode == Mode::Max && self.monitor.is_none() {
            faults.push("`mode`: `max` of what? set `monitor`".to_owned());
        }
        for glob in &self.keep_pinned {
            if let Some(fault) = pin_fault(glob) {
                faults.push(format!("`keep_pinned`: `{}` {fault}; give a name or glob", cut(glob)));
            }
        }
    }

    fn check_saves(&self, faults: &mut Vec<String>) {
        if self.save_mode == AsyncMode::Disabled && self.in_flight != InFlight::Wait {
            faults.push(
                "`in_flight`: with `save_mode` `disabled` no save is ever in flight; set \
                 `save_mode` to `async`, or leave `in_flight` out"
                    .to_owned(),
            );
        }
        if self.space_warning_mib.checked_mul(1 << 20).is_none() {
            let mib = self.space_warning_mib;
            faults.push(format!("`space_warning_mib`: {mib} MiB is more than can be counted"));
        }
    }

    fn check_resume(&self, faults: &mut Vec<String>) {
        if self.resume == Resume::Best && self.monitor.is_none() {
            faults.push("`resume`: the best by what? set `monitor` (and `mode`)".to_owned());
        }
        if self.resume == Resume::Path(Path::new("").to_owned()) {
            faults.push("`resume`: an empty path; give that of a checkpoint".to_owned());
        }
        let is_one = matches!(self.resume, Resume::Step(_) | Resume::Path(_) | Resume::Fresh);
        if self.resume_fall_back && is_one {
            faults.push(
                "`resume_fall_back`: only `latest` and `best` have one before them; leave it out, \
                 or set `resume` to `latest` or `best`"
                    .to_owned(),
            );
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn metric_fault(name: &str) -> Option<&'static str> {
    if name.trim().is_empty() {
        Some("is empty")
    } else if name.len() > METRIC_BYTES_MAX {
        Some("is longer than 200 bytes")
    } else if name.chars().any(char::is_control) {
        Some("holds control characters")
    } else {
        None
    }
}

/// Why no name of a checkpoint could match this.
fn pin_fault(glob: &str) -> Option<String> {
    if glob.trim().is_empty() {
        Some("is empty".to_owned())
    } else if glob.contains('/') || glob.chars().any(char::is_control) {
        Some("holds `/` or control characters, which no name has".to_owned())
    } else {
        glob_fault(glob)
    }
}
