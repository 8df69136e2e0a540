//! Which GPU a device is, whatever its number in this process.

use cudarc::driver::sys;

use super::driver::{check, number};
use crate::error::Result;

/// The UUID of the device of this number, which is the same in every process and on every host; a
/// part of a GPU that is a device of its own (MIG) has its own.
///
/// # Errors
/// [`ErrorKind::Device`](crate::ErrorKind::Device) without a driver, or such a device.
pub(crate) fn device_id(index: usize) -> Result<String> {
    let device = number(index)?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: writes 16 bytes.
    #[allow(unsafe_code)]
    let asked = unsafe { sys::cuDeviceGetUuid_v2(&raw mut uuid, device) };
    check(asked, &format!("asking which GPU cuda:{index} is"))?;
    Ok(written(uuid.bytes.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()))))
}

/// As `nvidia-smi -L` writes it, without what is in front.
fn written(bytes: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits.get(part).unwrap_or(""));
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_id_is_written_as_people_know_it() {
        let bytes = [10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(written(bytes), "0a010203-0405-0607-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn a_device_that_is_not_there_has_none() {
        assert_eq!(device_id(4096).unwrap_err().kind(), ErrorKind::Device);
    }
}
