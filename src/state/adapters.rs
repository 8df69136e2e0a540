//! Serde values as parts of a checkpoint.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::error::{Error, ErrorKind, Result};

/// Any serde value that is the same on every rank: counters, settings, the state of a schedule.
/// It is stored as JSON, under the name of the part.
///
/// ```
/// use tch_checkpoint::state::{Shared, StateDict, Stateful, Values};
///
/// let mut temperature = 0.7;
/// let mut state = StateDict::new();
/// Shared(&mut temperature).save_state("temperature", &mut state)?;
/// let mut other = 1.0;
/// Shared(&mut other).load_values("temperature", &state.values, &Values::new())?;
/// assert_eq!(other, 0.7);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug)]
pub struct Shared<'a, T>(pub &'a mut T);

/// Any serde value of which each rank has its own, such as its place in the data. Each rank gets
/// back what the rank of its number saved; a load on more ranks than saved is refused.
#[derive(Debug)]
pub struct PerRank<'a, T>(pub &'a mut T);

impl<T: Serialize + DeserializeOwned> Stateful for Shared<'_, T> {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        state.values.set(prefix, Value::json(&*self.0)?);
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, _targets: &mut LoadTargets<'a>) -> Result<()> {
        Ok(())
    }

    fn check_values(&self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        parse::<T>(prefix, values).map(drop)
    }

    fn load_values(&mut self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        *self.0 = parse(prefix, values)?;
        Ok(())
    }
}

impl<T: Serialize + DeserializeOwned> Stateful for PerRank<'_, T> {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        state.rank_values.set(prefix, Value::json(&*self.0)?);
        // By this a load sees that there is one per rank.
        state.values.set(prefix, PER_RANK);
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, _targets: &mut LoadTargets<'a>) -> Result<()> {
        Ok(())
    }

    fn check_values(&self, prefix: &str, values: &Values, rank_values: &Values) -> Result<()> {
        parse_own::<T>(prefix, values, rank_values).map(drop)
    }

    fn load_values(&mut self, prefix: &str, values: &Values, rank_values: &Values) -> Result<()> {
        *self.0 = parse_own(prefix, values, rank_values)?;
        Ok(())
    }
}

const PER_RANK: &str = "per rank";

fn parse<T: DeserializeOwned>(name: &str, values: &Values) -> Result<T> {
    match values.find(name) {
        Some(Value::Json(text)) => serde_json::from_str(text).map_err(|e| unfit(name, e)),
        Some(_) => Err(unfit(name, "it is no JSON value")),
        None => Err(Error::new(ErrorKind::NotFound, format!("the checkpoint holds no `{name}`"))
            .with_help("leave this part out of the load, or name a checkpoint that has it")),
    }
}

fn parse_own<T: DeserializeOwned>(name: &str, values: &Values, own: &Values) -> Result<T> {
    if own.find(name).is_none() && values.find(name).is_some() {
        let message = format!("`{name}` is of each rank its own, and none was saved for this rank");
        return Err(Error::new(ErrorKind::Mismatch, message).with_help(
            "load with the world size that saved it, or leave this part out of the load",
        ));
    }
    parse(name, own)
}

fn unfit(name: &str, why: impl Display) -> Error {
    Error::new(ErrorKind::Mismatch, format!("value `{name}` does not fit: {why}"))
}
