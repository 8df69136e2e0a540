//! CRC-32 sums of what is read in parts.

use std::collections::HashMap;

use crc32fast::Hasher;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::pytorch::Member;

/// The sums of what has been read so far, by where its member begins.
#[derive(Default)]
pub(super) struct Sums(Mutex<HashMap<u64, Parts>>);

impl std::fmt::Debug for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sums").field(&self.0.lock().len()).finish()
    }
}

/// Parts of one member that do not touch, in order.
#[derive(Default)]
struct Parts(Vec<Part>);

struct Part {
    begin: u64,
    end: u64,
    sum: Hasher,
}

impl Sums {
    /// Notes bytes of a member, which begin so far into it. The call that completes the member
    /// compares its sum.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if that is wrong.
    pub(super) fn note(&self, member: &Member, begin: u64, bytes: &[u8]) -> Result<()> {
        let mut sum = Hasher::new();
        sum.update(bytes);
        let end = begin + bytes.len() as u64;
        if begin == 0 && end == member.bytes {
            return compare(member, sum.finalize());
        }
        let mut all = self.0.lock();
        let parts = all.entry(member.begin).or_default();
        parts.add(Part { begin, end, sum });
        if !parts.is_whole(member.bytes) {
            return Ok(());
        }
        let whole = all.remove(&member.begin).and_then(|parts| parts.0.into_iter().next());
        drop(all);
        whole.map_or(Ok(()), |part| compare(member, part.sum.finalize()))
    }
}

impl Parts {
    /// What was read before, in part or as a whole, says nothing new.
    fn add(&mut self, part: Part) {
        let place = self.0.partition_point(|other| other.begin < part.begin);
        let before = place.checked_sub(1).and_then(|before| self.0.get(before));
        let overlaps = before.is_some_and(|before| before.end > part.begin)
            || self.0.get(place).is_some_and(|after| after.begin < part.end);
        if overlaps || part.begin == part.end {
            return;
        }
        self.0.insert(place, part);
        self.join(place);
        if let Some(before) = place.checked_sub(1) {
            self.join(before);
        }
    }

    /// Makes one of this part and the next, if they touch.
    fn join(&mut self, place: usize) {
        let touch = match self.0.get(place..place + 2) {
            Some([part, next]) => part.end == next.begin,
            _ => false,
        };
        if touch {
            let next = self.0.remove(place + 1);
            if let Some(part) = self.0.get_mut(place) {
                part.sum.combine(&next.sum);
                part.end = next.end;
            }
        }
    }

    fn is_whole(&self, bytes: u64) -> bool {
        matches!(&self.0[..], [part] if part.begin == 0 && part.end == bytes)
    }
}

/// # Errors
/// [`ErrorKind::Corrupt`].
pub(super) fn compare(member: &Member, sum: u32) -> Result<()> {
    if sum == member.crc {
        return Ok(());
    }
    let message = format!("checksum mismatch in a storage of {} bytes", member.bytes);
    Err(Error::new(ErrorKind::Corrupt, message).with_offset(member.begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"what is read in parts, in any order";

    fn member(crc: u32) -> Member {
        Member { begin: 7, bytes: BYTES.len() as u64, crc }
    }

    fn note(sums: &Sums, member: &Member, begin: usize, end: usize) -> Result<()> {
        sums.note(member, begin as u64, &BYTES[begin..end])
    }

    #[test]
    fn the_part_that_completes_a_member_compares_its_sum() {
        let len = BYTES.len();
        let orders: [&[(usize, usize)]; 4] = [
            &[(0, len)],
            &[(0, 5), (5, 20), (20, len)],
            &[(20, len), (0, 5), (0, 5), (3, 9), (5, 20)],
            &[(5, 20), (20, len), (0, 5)],
        ];
        for parts in orders {
            let right = member(crc32fast::hash(BYTES));
            let wrong = member(right.crc ^ 1);
            for (member, is_right) in [(right, true), (wrong, false)] {
                let sums = Sums::default();
                let (last, first) = parts.split_last().unwrap();
                for (begin, end) in first {
                    note(&sums, &member, *begin, *end).unwrap();
                }
                let compared = note(&sums, &member, last.0, last.1);
                assert_eq!(compared.is_ok(), is_right, "{parts:?}");
                assert!(sums.0.lock().is_empty(), "{parts:?}");
            }
        }
    }
}
