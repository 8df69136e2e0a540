//! Integers of any length.

/// Two's complement, least significant byte first; `None` if it is beyond 64 bits.
pub(super) fn long(bytes: &[u8]) -> Option<i64> {
    let fill = if bytes.last().is_some_and(|last| *last >= 0x80) { 0xff } else { 0 };
    let mut number = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    number.get_mut(..low.len())?.copy_from_slice(low);
    let number = i64::from_le_bytes(number);
    let keeps_sign = (number < 0) == (fill == 0xff);
    (keeps_sign && high.iter().all(|byte| *byte == fill)).then_some(number)
}
