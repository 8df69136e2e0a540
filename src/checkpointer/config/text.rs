//! Configurations as TOML and YAML.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

#[cfg(feature = "torch")]
use serde::de::DeserializeOwned;
use serde_json::Value;

#[cfg(feature = "torch")]
use super::decode::table;
use super::decode::{decode, fields, refusal};
use super::tree::{Fault, Node};
use super::{CheckpointerConfig, toml_text, yaml_text};
use crate::error::{Error, ErrorKind, Result};

/// Longest text of a configuration, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

type Reader = fn(&str) -> Result<Node, Fault>;

impl CheckpointerConfig {
    /// Reads TOML. What is not given is as in `Default`; [`CheckpointerConfig::check`] is up to
    /// the caller, after overrides.
    ///
    /// ```
    /// use tch_checkpoint::checkpointer::CheckpointerConfig;
    ///
    /// let config = CheckpointerConfig::from_toml("save_every_steps = 100\nkeep_last = 3")?;
    /// assert_eq!(config.keep_last, Some(3));
    /// let error = CheckpointerConfig::from_toml("keep_lost = 3").unwrap_err();
    /// assert_eq!(error.message(), "line 1, column 1: unknown key `keep_lost`, did you mean `keep_last`?");
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with line and column: a fault of syntax, or all unknown keys
    /// (with what they may have been meant to be) and all values of a wrong type; or more than
    /// [`CONFIG_BYTES_MAX`].
    pub fn from_toml(text: &str) -> Result<Self> {
        read(text, "", toml_text::read)
    }

    /// Reads one table of a text of TOML that holds more, such as `checkpoint`, or `train.save`
    /// for a table in a table. The rest of the text is not looked at.
    ///
    /// # Errors
    /// As [`CheckpointerConfig::from_toml`], or there is no such table.
    pub fn from_toml_at(text: &str, section: &str) -> Result<Self> {
        read(text, section, toml_text::read)
    }

    /// Reads YAML (1.2, one document; JSON is YAML too), as [`CheckpointerConfig::from_toml`].
    ///
    /// # Errors
    /// As [`CheckpointerConfig::from_toml`].
    pub fn from_yaml(text: &str) -> Result<Self> {
        read(text, "", yaml_text::read)
    }

    /// As [`CheckpointerConfig::from_toml_at`].
    ///
    /// # Errors
    /// As [`CheckpointerConfig::from_toml_at`].
    pub fn from_yaml_at(text: &str, section: &str) -> Result<Self> {
        read(text, section, yaml_text::read)
    }

    /// Reads a file that ends in `.toml`, `.yaml`, `.yml` or `.json`, and then the variables of
    /// this process that override it ([`CheckpointerConfig::with_environment`]): whoever starts the
    /// program can change what it reads. What the program sets afterwards overrides both.
    ///
    /// Each rank that calls it reads for itself; ranks compare what they have when they build a
    /// `Checkpointer`.
    ///
    /// # Errors
    /// As [`CheckpointerConfig::from_toml`], with the path, and as
    /// [`CheckpointerConfig::with_environment`]; [`ErrorKind::NotFound`] and
    /// [`ErrorKind::Storage`] if the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_file_at(path, "")
    }

    /// Reads one table of a file, see [`CheckpointerConfig::from_toml_at`], and variables, as
    /// [`CheckpointerConfig::from_file`].
    ///
    /// # Errors
    /// As [`CheckpointerConfig::from_file`], or there is no such table.
    pub fn from_file_at(path: impl AsRef<Path>, section: &str) -> Result<Self> {
        let path = path.as_ref();
        let reader = reader_of(path)?;
        let text = contents(path)?;
        read(&text, section, reader).map_err(|error| error.with_path(path))?.with_environment()
    }

    /// The whole configuration as TOML; what is not set is left out.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a number above 2⁶³ or a path that is not UTF-8, which TOML
    /// cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| unwritable(&error))
    }

    /// The whole configuration as YAML, one field a line.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String> {
        let value = serde_json::to_value(self).map_err(|error| unwritable(&error))?;
        let line = |name: &String| {
            let field = value.get(name).unwrap_or(&Value::Null).to_string();
            format!("{name}: {}\n", field.chars().map(escaped).collect::<String>())
        };
        Ok(fields().keys().map(line).collect())
    }
}

/// JSON is YAML, but for characters that YAML wants escaped.
fn escaped(c: char) -> String {
    let is_plain = !c.is_control()
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    if is_plain { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) }
}

fn unwritable(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("this configuration cannot be written: {error}"))
}

fn read(text: &str, section: &str, reader: Reader) -> Result<CheckpointerConfig> {
    if text.len() > CONFIG_BYTES_MAX {
        return Err(too_long());
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = reader(text).map_err(|fault| refusal(text, &[fault]))?;
    decode(text, &root, section)
}

/// One table of a file, as a value of another type; what is not in it is as that type says.
///
/// # Errors
/// As [`CheckpointerConfig::from_file_at`].
#[cfg(feature = "torch")]
pub(crate) fn read_table<T: DeserializeOwned>(path: &Path, section: &str) -> Result<T> {
    let reader = reader_of(path)?;
    let text = contents(path)?;
    if text.len() > CONFIG_BYTES_MAX {
        return Err(too_long().with_path(path));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let root = reader(text).map_err(|fault| refusal(text, &[fault]).with_path(path))?;
    table(text, &root, section).map_err(|error| error.with_path(path))
}

fn reader_of(path: &Path) -> Result<Reader> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => Ok(toml_text::read),
        Some("yaml" | "yml" | "json") => Ok(yaml_text::read),
        _ => Err(Error::new(ErrorKind::InvalidInput, "TOML or YAML? the name does not say")
            .with_path(path)
            .with_help("let it end in `.toml`, `.yaml`, `.yml` or `.json`")),
    }
}

fn contents(path: &Path) -> Result<String> {
    let failed = |error: io::Error| Error::io(&error, "reading a configuration", path);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(CONFIG_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > CONFIG_BYTES_MAX {
        return Err(too_long().with_path(path));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(ErrorKind::InvalidInput, format!("byte {at} is not UTF-8")).with_path(path)
    })
}

fn too_long() -> Error {
    let message = format!("a configuration of more than {CONFIG_BYTES_MAX} bytes");
    Error::new(ErrorKind::InvalidInput, message).with_help("is it another file?")
}
