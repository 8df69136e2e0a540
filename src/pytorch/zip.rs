//! Writing the archives that `torch.save` writes: see [`archive`](super::archive).

use crate::error::{Error, ErrorKind, Result};
use crate::storage::WriteFile;

/// What all names begin with.
const PREFIX: &str = "archive/";
/// On which multiples data begins, counted from the begin of the archive, as PyTorch's does.
const ALIGNMENT: u64 = 64;
/// UTF-8 names, and sums behind the data: as it comes, the sum is not known before.
const FLAGS: u16 = 1 << 3 | 1 << 11;
/// From here on numbers need 64 bits.
const LARGE: u64 = u32::MAX as u64;
/// How much is written at once.
const BUFFER: usize = 4 << 20;

/// An archive in the making, somewhere in a file.
pub(crate) struct ZipWriter<'f> {
    file: &'f dyn WriteFile,
    begin: u64,
    /// Where the buffer begins, from the begin of the archive.
    at: u64,
    buffer: Vec<u8>,
    members: Vec<Written>,
}

struct Written {
    name: String,
    local: u64,
    bytes: u64,
    crc: u32,
}

impl<'f> ZipWriter<'f> {
    /// An archive that begins at `begin`.
    pub(crate) fn new(file: &'f dyn WriteFile, begin: u64) -> Self {
        Self { file, begin, at: 0, buffer: Vec::new(), members: Vec::new() }
    }

    /// A member as a whole.
    pub(crate) fn member(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut member = self.begin(name, bytes.len() as u64)?;
        member.put(bytes)?;
        member.finish()
    }

    /// A member whose `bytes` bytes follow.
    pub(crate) fn begin<'z>(&'z mut self, name: &str, bytes: u64) -> Result<ZipMember<'z, 'f>> {
        let name = format!("{PREFIX}{name}");
        let local = self.position();
        let name_len = u16::try_from(name.len())
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "a name of 64 KiB or more"))?;
        let large: &[u8] = if bytes >= LARGE { &[1, 0, 16, 0] } else { &[] };
        let numbers = if bytes >= LARGE { 16 } else { 0 };
        let before = local + 30 + u64::from(name_len) + large.len() as u64 + numbers + 4;
        let padding = before.next_multiple_of(ALIGNMENT) - before;
        let padding = u16::try_from(padding).unwrap_or_default();
        let extra = padding + 4 + if bytes >= LARGE { 20 } else { 0 };
        let size = if bytes >= LARGE { u32::MAX } else { 0 };
        let mut head = Vec::with_capacity(128);
        head.extend(0x0403_4b50u32.to_le_bytes());
        // Version, flags, stored, no time, no date; sum and lengths follow the data.
        for number in [if bytes >= LARGE { 45 } else { 20 }, FLAGS, 0, 0, 0] {
            head.extend(u16::to_le_bytes(number));
        }
        head.extend(0u32.to_le_bytes());
        head.extend(size.to_le_bytes());
        head.extend(size.to_le_bytes());
        head.extend(name_len.to_le_bytes());
        head.extend(extra.to_le_bytes());
        head.extend(name.as_bytes());
        head.extend(large);
        if bytes >= LARGE {
            head.extend([bytes.to_le_bytes(), bytes.to_le_bytes()].concat());
        }
        head.extend(b"FB");
        head.extend(padding.to_le_bytes());
        head.extend(std::iter::repeat_n(b'Z', usize::from(padding)));
        self.put(&head)?;
        let hasher = crc32fast::Hasher::new();
        Ok(ZipMember { zip: self, name, local, bytes, have: 0, hasher })
    }

    /// The table of members and the end; how long the archive is.
    pub(crate) fn finish(mut self) -> Result<u64> {
        let table = self.position();
        for member in std::mem::take(&mut self.members) {
            self.put(&entry(&member))?;
            self.members.push(member);
        }
        let (count, end) = (self.members.len() as u64, self.position());
        let mut tail = Vec::with_capacity(98);
        tail.extend(0x0606_4b50u32.to_le_bytes());
        tail.extend(44u64.to_le_bytes());
        tail.extend([45u16.to_le_bytes(), 45u16.to_le_bytes()].concat());
        tail.extend([0; 8]);
        for number in [count, count, end - table, table] {
            tail.extend(number.to_le_bytes());
        }
        tail.extend(0x0706_4b50u32.to_le_bytes());
        tail.extend([0; 4]);
        tail.extend(end.to_le_bytes());
        tail.extend(1u32.to_le_bytes());
        tail.extend(0x0605_4b50u32.to_le_bytes());
        tail.extend([0; 4]);
        let short = u16::try_from(count).unwrap_or(u16::MAX);
        tail.extend([short.to_le_bytes(), short.to_le_bytes()].concat());
        for number in [end - table, table] {
            tail.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        tail.extend([0; 2]);
        self.put(&tail)?;
        self.flush()?;
        Ok(self.at)
    }

    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_at(self.begin + self.at, bytes)?;
            self.at += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_at(self.begin + self.at, &self.buffer)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// A member whose bytes are coming.
pub(crate) struct ZipMember<'z, 'f> {
    zip: &'z mut ZipWriter<'f>,
    name: String,
    local: u64,
    bytes: u64,
    have: u64,
    hasher: crc32fast::Hasher,
}

impl ZipMember<'_, '_> {
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        self.zip.put(bytes)
    }

    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it did not get as many bytes as were announced.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { zip, name, local, bytes, have, hasher } = self;
        if have != bytes {
            let message = format!("{have} bytes of a member of {bytes}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let crc = hasher.finalize();
        let mut behind = 0x0807_4b50u32.to_le_bytes().to_vec();
        behind.extend(crc.to_le_bytes());
        match u32::try_from(bytes) {
            Ok(short) if bytes < LARGE => behind.extend([short.to_le_bytes(); 2].concat()),
            _ => behind.extend([bytes.to_le_bytes(); 2].concat()),
        }
        zip.put(&behind)?;
        zip.members.push(Written { name, local, bytes, crc });
        Ok(())
    }
}

/// What the table says of a member.
fn entry(member: &Written) -> Vec<u8> {
    let Written { name, local, bytes, crc } = member;
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let mut large = Vec::new();
    if *bytes >= LARGE {
        large.extend([bytes.to_le_bytes(); 2].concat());
    }
    if *local >= LARGE {
        large.extend(local.to_le_bytes());
    }
    let extra_len = if large.is_empty() { 0 } else { 4 + large.len() };
    let version: u16 = if large.is_empty() { 20 } else { 45 };
    let mut entry = Vec::with_capacity(128);
    entry.extend(0x0201_4b50u32.to_le_bytes());
    for number in [version, version, FLAGS, 0, 0, 0] {
        entry.extend(number.to_le_bytes());
    }
    entry.extend(crc.to_le_bytes());
    entry.extend([short(*bytes).to_le_bytes(); 2].concat());
    let lengths = [name.len(), extra_len, 0, 0, 0];
    entry.extend(lengths.iter().flat_map(|len| u16::try_from(*len).unwrap_or(0).to_le_bytes()));
    entry.extend(0u32.to_le_bytes());
    entry.extend(short(*local).to_le_bytes());
    entry.extend(name.as_bytes());
    if !large.is_empty() {
        entry.extend(
            [1u16.to_le_bytes(), u16::try_from(large.len()).unwrap_or(0).to_le_bytes()].concat(),
        );
        entry.extend(large);
    }
    entry
}
