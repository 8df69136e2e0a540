//! The history as a file that other programs read.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::state::fit_id;
use super::{Callback, CallbackContext};
use crate::autosave::KnownFields;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::History;
use crate::storage::{Rename, Storage};

/// How the lines of a [`HistoryLogger`] look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Csv,
    JsonLines,
}

/// Keeps a file with one line per epoch: its number and all its logs.
///
/// The coordinator writes it anew after each epoch, and when training begins after a load, and
/// puts it in place at once: readers see whole lines only, and a resumed run has neither lost nor
/// doubled ones, also where the file was ahead of the checkpoint. A file of that name from another
/// run is replaced. It needs no state: the history of the handler is part of every checkpoint. It
/// is written through the handler's storage.
#[derive(Debug)]
pub struct HistoryLogger {
    id: Option<String>,
    path: PathBuf,
    form: Form,
}

impl HistoryLogger {
    /// Comma-separated values, with a line of names; `nan` where an epoch has no number.
    #[must_use]
    pub fn csv(path: impl AsRef<Path>) -> Self {
        Self { id: None, path: path.as_ref().to_path_buf(), form: Form::Csv }
    }

    /// One JSON object per line; `null` where an epoch has no number, infinities as text.
    #[must_use]
    pub fn json_lines(path: impl AsRef<Path>) -> Self {
        Self { form: Form::JsonLines, ..Self::csv(path) }
    }

    /// The id. Default: names the file.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    fn file_name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    fn write(&self, history: &History, storage: &dyn Storage) -> Result<()> {
        let name = self.file_name().ok_or_else(|| self.no_file())?;
        let text = match self.form {
            Form::Csv => csv(history),
            Form::JsonLines => json_lines(history),
        };
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let dir = storage.create_dir_all(parent.unwrap_or(Path::new(".")))?;
        let temporary = format!(".{name}.tmp");
        match dir.remove_file(&temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = dir.create_file(&temporary)?;
        file.write_at(0, text.as_bytes())?;
        file.finish()?;
        dir.rename(&temporary, name, Rename::Replace)?;
        dir.sync()
    }

    fn no_file(&self) -> Error {
        Error::new(ErrorKind::InvalidInput, "the path does not end in a file's name")
            .with_path(&self.path)
    }
}

impl Callback for HistoryLogger {
    fn id(&self) -> String {
        let made = || fit_id(&format!("HistoryLogger({})", self.path.display()));
        self.id.clone().unwrap_or_else(made)
    }

    fn check(&self, _: &KnownFields) -> Result<()> {
        self.file_name().map(|_| ()).ok_or_else(|| self.no_file())
    }

    fn on_train_begin(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        // A first epoch that is gone on with has no lines yet, but the file may.
        if context.step() == 0 || !context.is_coordinator() {
            return Ok(());
        }
        self.write(context.history(), context.storage())
    }

    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if !context.is_coordinator() {
            return Ok(());
        }
        self.write(context.history(), context.storage())
    }
}

/// The epochs, each with its number and the value of every series.
fn rows(history: &History) -> impl Iterator<Item = (usize, Vec<(&str, f64)>)> {
    (0..history.epochs()).map(|index| {
        let value = |name| history.series(name).get(index).copied().unwrap_or(f64::NAN);
        (index + 1, history.names().map(|name| (name, value(name))).collect())
    })
}

fn csv(history: &History) -> String {
    let mut text = String::from("epoch");
    history.names().for_each(|name| text.push_str(&format!(",{}", quoted(name))));
    text.push('\n');
    for (epoch, values) in rows(history) {
        text.push_str(&epoch.to_string());
        for (_, value) in values {
            let value = if value.is_nan() { "nan".to_owned() } else { value.to_string() };
            text.push_str(&format!(",{value}"));
        }
        text.push('\n');
    }
    text
}

/// As RFC 4180 has it.
fn quoted(name: &str) -> String {
    if name.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", name.replace('"', "\"\""));
    }
    name.to_owned()
}

fn json_lines(history: &History) -> String {
    let number = |value: f64| match serde_json::Number::from_f64(value) {
        Some(number) => Json::Number(number),
        None if value.is_nan() => Json::Null,
        None => Json::String(value.to_string()),
    };
    let line = |(epoch, values): (usize, Vec<(&str, f64)>)| {
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), number(value)));
        let mut object: Map<String, Json> = values.collect();
        object.insert("epoch".to_owned(), Json::from(epoch));
        format!("{}\n", Json::Object(object))
    };
    rows(history).map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn history() -> History {
        let mut history = History::default();
        for (loss, odd) in [(0.5, f64::NAN), (-1e-9, f64::INFINITY)] {
            let logs = [("loss", loss), ("a,\"b\"", odd)];
            history.push(&BTreeMap::from(logs.map(|(name, value)| (name.to_owned(), value))));
        }
        history
    }

    #[test]
    fn csv_quotes_names_and_keeps_odd_numbers() {
        let text = csv(&history());
        assert_eq!(text, "epoch,\"a,\"\"b\"\"\",loss\n1,nan,0.5\n2,inf,-0.000000001\n");
        assert_eq!(csv(&History::default()), "epoch\n");
    }

    #[test]
    fn json_lines_are_json_whatever_the_numbers() {
        let text = json_lines(&history());
        let lines: Vec<Json> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["a,\"b\""], Json::Null);
        assert_eq!(lines[1]["a,\"b\""], Json::from("inf"));
        assert_eq!(lines[1]["loss"], Json::from(-1e-9));
        assert_eq!(lines[1]["epoch"], Json::from(2));
    }
}
