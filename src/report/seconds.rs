//! Durations as seconds, a number, where people read; as they are where programs do.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    match to.is_human_readable() {
        true => to.serialize_f64(time.as_secs_f64()),
        false => time.serialize(to),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    if from.is_human_readable() {
        let seconds = f64::deserialize(from)?;
        return Duration::try_from_secs_f64(seconds).map_err(D::Error::custom);
    }
    Duration::deserialize(from)
}
