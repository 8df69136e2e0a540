//! One number per dimension, without memory of its own for as many as tensors usually have.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use smallvec::SmallVec;

use crate::tensor::DIMENSIONS_MAX;

/// Dimensions that are kept in place.
const INLINE: usize = 4;

/// A shape, offsets or lengths. Encoded, compared and shown like a `Vec<u64>`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Dims(SmallVec<[u64; INLINE]>);

impl Dims {
    pub(crate) fn zeros(count: usize) -> Self {
        Self(SmallVec::from_elem(0, count))
    }

    pub(crate) fn push(&mut self, number: u64) {
        self.0.push(number);
    }
}

impl Deref for Dims {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl DerefMut for Dims {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

impl From<&[u64]> for Dims {
    fn from(numbers: &[u64]) -> Self {
        Self(SmallVec::from_slice(numbers))
    }
}

impl From<Vec<u64>> for Dims {
    fn from(numbers: Vec<u64>) -> Self {
        Self::from(numbers.as_slice())
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Dims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Dims {
    /// Reads no more numbers than a tensor may have dimensions, however many are claimed.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = Dims;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {DIMENSIONS_MAX} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut numbers = Dims::default();
                while let Some(number) = seq.next_element()? {
                    if numbers.len() == DIMENSIONS_MAX {
                        return Err(A::Error::invalid_length(numbers.len() + 1, &self));
                    }
                    numbers.push(number);
                }
                Ok(numbers)
            }
        }
        deserializer.deserialize_seq(Numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn encoded_like_a_list_and_no_longer_than_a_tensor_may_be() {
        for count in [0, 1, 4, 5, 64] {
            let list: Vec<u64> = (0..count).map(|i| i * i).collect();
            let dims = Dims::from(list.clone());
            let bytes = codec::encode(&list).unwrap();
            assert_eq!(codec::encode(&dims).unwrap(), bytes);
            assert_eq!(codec::decode::<Dims>(&bytes).unwrap(), dims);
            assert_eq!(format!("{dims:?}"), format!("{list:?}"));
        }
        assert!(codec::decode::<Dims>(&codec::encode(&vec![1u64; 65]).unwrap()).is_err());
        assert!(codec::decode::<Dims>(&u64::MAX.to_le_bytes()).is_err());
        assert!(Dims::from(vec![1, 2]) < Dims::from(vec![1, 3]));
        assert!(Dims::from(vec![1, 2]) < Dims::from(vec![1, 2, 0]));
    }
}
