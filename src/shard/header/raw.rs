//! What the JSON of a header says, before anything is checked but that every key is unique.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::METADATA;
use crate::error::Result;
use crate::memory::reserved;
use crate::tensor::DIMENSIONS_MAX;

/// What is deserialized, with every key unique.
pub(super) struct RawHeader {
    metadata: BTreeMap<String, Text>,
    pub(super) tensors: BTreeMap<String, RawTensor>,
}

impl RawHeader {
    /// # Errors
    /// [`ErrorKind::Storage`](crate::ErrorKind::Storage) if memory was short.
    pub(super) fn metadata(self) -> Result<BTreeMap<String, String>> {
        self.metadata.into_iter().map(|(key, text)| Ok((key, text.0?))).collect()
    }
}

/// A text that may be long. That memory is short for it is no fault of the file.
struct Text(Result<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Copied;
        impl Visitor<'_> for Copied {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                let copy = reserved(text.len() as u64).map(|bytes| {
                    // It keeps its room: a vector without bytes is a text.
                    let mut copy = String::from_utf8(bytes).unwrap_or_default();
                    copy.push_str(text);
                    copy
                });
                Ok(Text(copy))
            }
        }
        deserializer.deserialize_str(Copied)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTensor {
    pub(super) dtype: String,
    pub(super) shape: Shape,
    pub(super) data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let (mut metadata, mut tensors) = (None, BTreeMap::new());
                while let Some(key) = map.next_key::<String>()? {
                    let twice = if key == METADATA {
                        metadata.replace(map.next_value::<UniqueTexts>()?.0).is_some()
                    } else {
                        let value = map.next_value()?;
                        tensors.insert(key, value).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom("a key appears twice"));
                    }
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

struct UniqueTexts(BTreeMap<String, Text>);

impl<'de> Deserialize<'de> for UniqueTexts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueTexts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueTexts, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if texts.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key of the metadata appears twice"));
                    }
                }
                Ok(UniqueTexts(texts))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Reads no more dimensions than a tensor may have, however many the file claims.
pub(super) struct Shape(pub(super) Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {DIMENSIONS_MAX} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = seq.next_element()? {
                    if shape.len() == DIMENSIONS_MAX {
                        return Err(A::Error::invalid_length(shape.len() + 1, &self));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}
