//! Counters, metrics and other small state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// A counter, metric or small piece of state that is no tensor.
///
/// Not recursive, so that decoding needs no depth limit: anything structured is JSON text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Value {
    /// A flag.
    Bool(bool),
    /// A counter.
    Int(i64),
    /// A number; NaN and infinities survive.
    Float(f64),
    /// Text.
    Text(String),
    /// Opaque bytes, such as the state of a random generator.
    Bytes(Vec<u8>),
    /// A history; NaN and infinities survive.
    Floats(Vec<f64>),
    /// A structured value as JSON text.
    Json(String),
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self { Self::$variant(value.into()) }
        }
    )*};
}
value_from!(bool => Bool, i64 => Int, i32 => Int, u32 => Int, f64 => Float, f32 => Float,
    &str => Text, String => Text, Vec<u8> => Bytes, Vec<f64> => Floats);

impl Value {
    /// Any serde value, as JSON text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it has no JSON form.
    pub fn json<T: Serialize>(value: &T) -> Result<Self> {
        serde_json::to_string(value)
            .map(Self::Json)
            .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("no JSON form: {e}")))
    }

    /// Whether both are the same, bit for bit (unlike `==`, NaN equals itself, and the keys of a
    /// JSON object have no order: maps without one are written differently on every rank).
    #[must_use]
    pub fn same(&self, other: &Value) -> bool {
        let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Floats(a), Self::Floats(b)) => bits(a) == bits(b),
            (Self::Json(a), Self::Json(b)) if a != b => {
                let parsed = |text: &str| serde_json::from_str(text).ok();
                parsed(a).zip(parsed(b)).is_some_and(|(a, b)| same_json(&a, &b))
            }
            _ => self == other,
        }
    }
}

/// Named values, such as `trainer.step` or `history.val_loss`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Values(BTreeMap<String, Value>);

macro_rules! value_getters {
    ($($(#[$doc:meta])* $name:ident -> $type:ty: $variant:ident, $words:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`ErrorKind::NotFound`] if absent, [`ErrorKind::Mismatch`] if of another type.
        pub fn $name(&self, name: &str) -> Result<$type> {
            match self.require(name)? {
                Value::$variant(value) => Ok(value.clone().into()),
                _ => Err(Error::new(
                    ErrorKind::Mismatch,
                    format!(concat!("value `{}` is not ", $words), name),
                )),
            }
        }
    )*};
}

impl Values {
    /// No values.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a value; an existing one of that name is replaced.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// A value, if present.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    fn require(&self, name: &str) -> Result<&Value> {
        self.find(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("the checkpoint holds no value `{name}`"))
        })
    }

    value_getters! {
        /// A flag.
        bool -> bool: Bool, "a flag";
        /// A counter.
        int -> i64: Int, "an integer";
        /// A number.
        float -> f64: Float, "a number";
        /// Text.
        text -> String: Text, "text";
        /// Opaque bytes.
        bytes -> Vec<u8>: Bytes, "bytes";
        /// A history.
        floats -> Vec<f64>: Floats, "a list of numbers";
    }

    /// A structured value stored with [`Value::json`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if absent, [`ErrorKind::Mismatch`] if it does not fit `T`.
    pub fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let mismatch =
            |what: String| Error::new(ErrorKind::Mismatch, format!("value `{name}` {what}"));
        match self.require(name)? {
            Value::Json(text) => serde_json::from_str(text)
                .map_err(|e| mismatch(format!("does not have the expected form: {e}"))),
            _ => Err(mismatch("is not structured".to_owned())),
        }
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first name whose value differs, or which only one side has.
    #[must_use]
    pub fn first_difference<'a>(&'a self, other: &'a Values) -> Option<&'a str> {
        let names = self.0.keys().chain(other.0.keys());
        let same = |name: &String| match (self.0.get(name), other.0.get(name)) {
            (Some(a), Some(b)) => a.same(b),
            _ => false,
        };
        names.into_iter().find(|name| !same(name)).map(String::as_str)
    }
}

fn same_json(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Object};
    match (a, b) {
        (Object(a), Object(b)) => {
            let in_b = |(key, value)| b.get(key).is_some_and(|other| same_json(value, other));
            a.len() == b.len() && a.iter().all(in_b)
        }
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b)),
        // As text: 0.0 is not -0.0, and 1 is not 1.0.
        _ => {
            let [a, b] = [a, b].map(ToString::to_string);
            a == b
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_objects_have_no_order_but_everything_else_counts() {
        let same = |a: &str, b: &str| Value::Json(a.into()).same(&Value::Json(b.into()));
        assert!(same(
            r#"{"a":[1,{"b":2,"c":null}],"d":0.1}"#,
            r#"{"d":0.1,"a":[1,{"c":null,"b":2}]}"#
        ));
        for (a, b) in [
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            ("0.0", "-0.0"),
            ("1", "1.0"),
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            ("{", "["),
        ] {
            assert!(!same(a, b) && !same(b, a), "{a} {b}");
        }
    }

    #[test]
    fn nan_agrees_with_itself_and_differences_are_named() {
        let (mut a, mut b) = (Values::new(), Values::new());
        a.set("loss", f64::NAN);
        b.set("loss", f64::NAN);
        assert_eq!(a.first_difference(&b), None);
        b.set("step", 3i64);
        assert_eq!(a.first_difference(&b), Some("step"));
        assert_eq!(b.int("step").unwrap(), 3);
        assert_eq!(b.int("loss").unwrap_err().kind(), ErrorKind::Mismatch);
        assert_eq!(a.int("step").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
