//! Overrides by variables of the environment.

use std::ffi::OsStr;

use serde_json::{Map, Value, json};

use super::CheckpointerConfig;
use super::decode::{fields, from_fields, together, try_field};
use super::tree::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::nearest::nearest;

/// What the variables that override fields begin with. Variables of this crate that mean
/// something else do not.
pub const CONFIG_PREFIX: &str = "TCH_CHECKPOINT_CONFIG_";

impl CheckpointerConfig {
    /// Overrides fields by variables of this process, see
    /// [`CheckpointerConfig::with_overrides`]; [`CheckpointerConfig::from_file`] has done so. For a
    /// configuration made in code, or read as a part of other settings. Each rank has variables of
    /// its own.
    ///
    /// # Errors
    /// As [`CheckpointerConfig::with_overrides`].
    pub fn with_environment(self) -> Result<Self> {
        self.with_overrides(std::env::vars_os())
    }

    /// Overrides fields by those of `variables` whose names are [`CONFIG_PREFIX`] and the field's
    /// name in capitals: `TCH_CHECKPOINT_CONFIG_KEEP_LAST=3`. Others are not looked at.
    ///
    /// A value is read as the field's type: `3`, `0.5`, `true` (or `yes`, `on`, `1`), `min`,
    /// `step:40` or `path:/data/e5` for what has a value of its own, `acc,f1` for a list (a comma
    /// inside braces separates nothing). An empty value unsets what can be unset.
    ///
    /// ```
    /// use tch_checkpoint::checkpointer::{CheckpointerConfig, Resume};
    ///
    /// let variables = [("TCH_CHECKPOINT_CONFIG_RESUME", "step:40"), ("HOME", "/root")];
    /// let config = CheckpointerConfig::default().with_overrides(variables)?;
    /// assert_eq!(config.resume, Resume::Step(40));
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names all variables that override nothing (with what they
    /// may have been meant to be) or whose values do not fit.
    pub fn with_overrides<I, N, V>(self, variables: I) -> Result<Self>
    where
        I: IntoIterator<Item = (N, V)>,
        N: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let mut values = match serde_json::to_value(&self) {
            Ok(Value::Object(values)) => values,
            _ => return Err(Error::new(ErrorKind::InvalidInput, "a path that is not UTF-8")),
        };
        let known = fields();
        let mut faults = Vec::new();
        for (name, value) in variables {
            let name = name.as_ref().to_string_lossy();
            let Some(field) = name.strip_prefix(CONFIG_PREFIX) else { continue };
            match overridden(&known, field, value.as_ref()) {
                Ok((field, value)) => drop(values.insert(field, value)),
                Err(reason) => faults.push(format!("variable `{name}` {reason}")),
            }
        }
        if !faults.is_empty() {
            faults.sort();
            return Err(together(faults).with_help(
                "values are written as `3`, `0.5`, `no`, `min`, `step:40`, `path:runs/a`; an empty \
                 one unsets",
            ));
        }
        from_fields(values).map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
    }
}

/// Field and value of a variable; the reason in words if there is none.
fn overridden(
    known: &Map<String, Value>,
    name: &str,
    text: &OsStr,
) -> Result<(String, Value), String> {
    let field = name.to_ascii_lowercase();
    if !known.contains_key(&field) || field.to_ascii_uppercase() != name {
        let meant = nearest(&field, known.keys().map(String::as_str));
        return Err(match meant {
            Some(field) => {
                format!("sets nothing, did you mean `{CONFIG_PREFIX}{}`?", field.to_uppercase())
            }
            None => "sets nothing: there is no such field".to_owned(),
        });
    }
    let text = text.to_str().ok_or("holds what is not UTF-8")?;
    let value = parse(&field, text).map_err(|reason| match text.trim() {
        "" => "is empty, but this field cannot be unset".to_owned(),
        _ => reason,
    })?;
    Ok((field, value))
}

/// The first reading of `text` that the field can hold.
fn parse(field: &str, text: &str) -> Result<Value, String> {
    let readings = readings(text);
    let as_text = Value::String(text.to_owned());
    match readings.into_iter().find(|value| try_field(field, value).is_ok()) {
        Some(value) => Ok(value),
        // Of all reasons this one shows what was given.
        None => {
            Err(format!("does not fit: {}", try_field(field, &as_text).err().unwrap_or_default()))
        }
    }
}

fn readings(text: &str) -> Vec<Value> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return vec![Value::Null, json!([])];
    }
    let mut readings = Vec::new();
    if let Kind::Number(number) = Kind::integer(trimmed, 10) {
        readings.push(Value::Number(number));
    }
    if let Ok(Kind::Number(number)) = trimmed.parse().map(Kind::float) {
        readings.push(Value::Number(number));
    }
    match trimmed.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => readings.push(json!(true)),
        "false" | "no" | "off" | "0" => readings.push(json!(false)),
        _ => {}
    }
    readings.push(json!(text));
    readings.push(json!(trimmed));
    if let Some((variant, value)) = trimmed.split_once(':') {
        readings.extend(value.parse::<u64>().ok().map(|number| json!({ variant: number })));
        readings.push(json!({ variant: value }));
    }
    readings.push(json!(items(trimmed)));
    readings
}

/// The parts between commas that are not inside braces, as globs have them.
fn items(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let separates = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(separates).map(str::trim).filter(|item| !item.is_empty()).collect()
}
