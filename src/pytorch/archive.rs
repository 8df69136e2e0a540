//! The zip that `torch.save` writes, of which only the table of its members is believed to begin
//! with, and no more of that than fits.
//!
//! Members are stored, not compressed: `<name>/data.pkl` says what there is, `<name>/data/<key>` is
//! the memory of one storage. Sources: the ZIP specification (APPNOTE 6.3), and what PyTorch's
//! `PyTorchStreamWriter` writes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::source::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;

/// Most bytes of the table of members.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the records at the end: end, locator, and the end of large archives.
const END: u64 = 22;
const LOCATOR: usize = 20;
const END64: usize = 56;
/// How much is read at the end at once.
const TAIL: u64 = 1 << 10;
/// Bytes of what describes a member in the table, and before its data, without name and extras.
const ENTRY: usize = 46;
const LOCAL: u64 = 30;
/// Of members that say more than which bytes to take: encrypted, patched, hidden names.
const FLAGS_REFUSED: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;
/// Sum and lengths of a member stand behind its data.
const FLAG_SUM_FOLLOWS: u16 = 1 << 3;

/// The bytes of a member, from the begin of the file that holds the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) begin: u64,
    pub(crate) bytes: u64,
    /// CRC-32 of all of them.
    pub(crate) crc: u32,
}

/// An archive somewhere in a file.
#[derive(Debug)]
pub(crate) struct Archive {
    /// Where it begins in the file.
    begin: u64,
    /// What all names begin with, with its slash.
    prefix: String,
    entries: BTreeMap<String, Entry>,
}

/// What the table says of a member.
#[derive(Debug)]
struct Entry {
    /// Of what stands before its data, from the begin of the archive.
    local: u64,
    /// Where it has to have ended: the next one begins, or the table.
    end: u64,
    bytes: u64,
    crc: u32,
}

impl Entry {
    /// Whether what stands before the data says the same, where it says anything: sums and lengths
    /// may follow the data instead, and long lengths stand elsewhere.
    fn agrees(&self, local: Fields<'_>) -> bool {
        let follows = local.u16(6).is_some_and(|flags| flags & FLAG_SUM_FOLLOWS != 0);
        let is_length = |at| {
            let length = local.u32(at);
            length == Some(u32::MAX) || length.map(u64::from) == Some(self.bytes)
        };
        follows || (local.u32(14) == Some(self.crc) && is_length(18) && is_length(22))
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a malformed archive: {what}"))
}

impl Archive {
    /// The archive that is `bytes` long and begins at `begin`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]; [`ErrorKind::Incompatible`] for compressed or encrypted members;
    /// those of reading.
    pub(crate) fn open(source: &mut Source<'_>, begin: u64, bytes: u64) -> Result<Self> {
        let place = directory(source, begin, bytes)?;
        let table = source.read(begin + place.at, place.bytes)?;
        let mut entries = parse(table, place.count)?;
        bound(&mut entries, place.at)?;
        let pickles = entries.keys().filter(|name| name.ends_with("/data.pkl"));
        let prefixes: Vec<_> = pickles.filter_map(|name| name.strip_suffix("data.pkl")).collect();
        let [prefix] = prefixes[..] else {
            return Err(corrupt("not exactly one member is its `data.pkl`"));
        };
        let archive = Self { begin, prefix: prefix.to_owned(), entries };
        archive.check_byte_order(source)?;
        Ok(archive)
    }

    /// Where the bytes of a member are, by its name below that of the archive.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if there is none, or if what stands before its data is another one.
    pub(crate) fn member(&self, source: &mut Source<'_>, name: &str) -> Result<Member> {
        let full = format!("{}{name}", self.prefix);
        let missing = || corrupt(&format!("no member `{}`", short(name)));
        let entry = self.entries.get(&full).ok_or_else(missing)?;
        let local = source.read(self.begin + entry.local, LOCAL + full.len() as u64)?;
        let fault = || {
            let what = format!("`{}` is not where its table says", short(name));
            corrupt(&what).with_offset(self.begin + entry.local)
        };
        let fields = Fields(local);
        let is_it = fields.u32(0) == Some(0x0403_4b50)
            && fields.u16(8) == Some(0)
            && fields.u16(6).is_some_and(|flags| flags & FLAGS_REFUSED == 0)
            && entry.agrees(fields)
            && fields.u16(26).map(usize::from) == Some(full.len())
            && local.get(30..) == Some(full.as_bytes());
        let extra = fields.u16(28).filter(|_| is_it).ok_or_else(fault)?;
        let begin = entry.local + LOCAL + full.len() as u64 + u64::from(extra);
        let end = begin.checked_add(entry.bytes).filter(|end| *end <= entry.end);
        end.ok_or_else(fault)?;
        Ok(Member { begin: self.begin + begin, bytes: entry.bytes, crc: entry.crc })
    }

    /// All of a member that is at most so long, checked.
    ///
    /// # Errors
    /// As [`Archive::member`]; [`ErrorKind::Unsupported`] for a longer one;
    /// [`ErrorKind::Corrupt`] if its sum is not that of its bytes.
    pub(crate) fn read<'s>(
        &self,
        source: &'s mut Source<'_>,
        name: &str,
        most: u64,
    ) -> Result<&'s [u8]> {
        let member = self.member(source, name)?;
        if member.bytes > most {
            let message =
                format!("member `{}` has {} bytes, at most {most}", short(name), member.bytes);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let bytes = source.read(member.begin, member.bytes)?;
        if crc32fast::hash(bytes) != member.crc {
            let what = format!("checksum mismatch in `{}`", short(name));
            return Err(corrupt(&what).with_offset(member.begin));
        }
        Ok(bytes)
    }

    fn check_byte_order(&self, source: &mut Source<'_>) -> Result<()> {
        if !self.entries.contains_key(&format!("{}byteorder", self.prefix)) {
            return Ok(());
        }
        match self.read(source, "byteorder", 16)? {
            b"little" => Ok(()),
            b"big" => Err(Error::new(ErrorKind::Unsupported, "its tensors are big-endian")
                .with_help("save it on a little-endian machine")),
            _ => Err(corrupt("no byte order that there is")),
        }
    }
}

/// Where the table of members lies, from the begin of the archive.
struct Place {
    at: u64,
    bytes: u64,
    count: u64,
}

/// Goes by the records at the very end; what does not fit them exactly is refused, so that all
/// readers see the same members.
fn directory(source: &mut Source<'_>, begin: u64, bytes: u64) -> Result<Place> {
    // The table of a small archive comes along.
    let tail_bytes = bytes.min(TAIL);
    let tail_at = bytes - tail_bytes;
    let end = tail_bytes.checked_sub(END).ok_or_else(|| corrupt("it is too short"))?;
    let tail = Fields(source.read(begin + tail_at, tail_bytes)?);
    let end = usize::try_from(end).unwrap_or(usize::MAX);
    let is_end = tail.u32(end) == Some(0x0605_4b50) && tail.u16(end + 20) == Some(0);
    if !is_end || tail.u32(end + 4) != Some(0) {
        return Err(corrupt("it does not end as one; it may be truncated"));
    }
    let field = |offset| tail.u32(end + offset).map(u64::from).unwrap_or_default();
    let [here, count] = [8, 10].map(|offset| tail.u16(end + offset).map(u64::from));
    let mut place = Place { at: field(16), bytes: field(12), count: count.unwrap_or_default() };
    let mut is_one = here == count;
    let mut until = tail_at + end as u64;
    let locator = end.checked_sub(LOCATOR);
    if let Some(locator) = locator.filter(|at| tail.u32(*at) == Some(0x0706_4b50)) {
        let start = locator.checked_sub(END64);
        let start = start.ok_or_else(|| corrupt("its end is cut off"))?;
        until = tail_at + start as u64;
        let is_there = tail.u64(locator + 8) == Some(until)
            && tail.u32(start) == Some(0x0606_4b50)
            && tail.u64(start + 4) == Some(END64 as u64 - 12);
        let fields = [40, 48, 32].map(|offset| tail.u64(start + offset));
        let [Some(size), Some(at), Some(count)] = fields.map(|f| f.filter(|_| is_there)) else {
            return Err(corrupt("its end is not where it says"));
        };
        let says = |short: u64, long: u64, beyond: u64| short == long || short == beyond;
        let most = u64::from(u32::MAX);
        is_one &= tail.u64(start + 24) == Some(count)
            && says(place.count, count, u64::from(u16::MAX))
            && says(place.bytes, size, most)
            && says(place.at, at, most);
        place = Place { at, bytes: size, count };
    }
    if !is_one {
        return Err(corrupt("its end says one thing and another"));
    }
    if place.at.checked_add(place.bytes) != Some(until) {
        return Err(corrupt("its table of members does not end where its end begins"));
    }
    if place.bytes > DIRECTORY_BYTES_MAX {
        let message = format!("a table of {} bytes, at most {DIRECTORY_BYTES_MAX}", place.bytes);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(place)
}

/// The members, without their ends.
fn parse(table: &[u8], count: u64) -> Result<BTreeMap<String, Entry>> {
    let (mut rest, mut entries) = (table, BTreeMap::new());
    while !rest.is_empty() {
        let (name, entry, len) = entry(rest)?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(corrupt(&format!("two members `{}`", short(&name))));
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    if entries.len() as u64 != count {
        let what = format!("{} members in its table, its end says {count}", entries.len());
        return Err(corrupt(&what));
    }
    Ok(entries)
}

/// The first member of a table, and how long its part of the table is.
fn entry(table: &[u8]) -> Result<(String, Entry, usize)> {
    let (fields, broken) = (Fields(table), || corrupt("its table of members"));
    if fields.u32(0) != Some(0x0201_4b50) {
        return Err(broken());
    }
    let lengths = [28, 30, 32].map(|offset| fields.u16(offset).map(usize::from));
    let [Some(name_len), Some(extra_len), Some(comment_len)] = lengths else {
        return Err(broken());
    };
    let (name_end, extra_end) = (ENTRY + name_len, ENTRY + name_len + extra_len);
    let name = table.get(ENTRY..name_end).ok_or_else(broken)?;
    let name = std::str::from_utf8(name).map_err(|_| broken())?.to_owned();
    let extra = table.get(name_end..extra_end).ok_or_else(broken)?;
    table.get(..extra_end + comment_len).ok_or_else(broken)?;
    let [flags, method] = [8, 10].map(|offset| fields.u16(offset).unwrap_or(u16::MAX));
    if method != 0 || flags & FLAGS_REFUSED != 0 {
        let message = format!("member `{}` is compressed or encrypted", short(&name));
        return Err(Error::new(ErrorKind::Incompatible, message)
            .with_help(
                "`torch.save` writes no such archives: of a program that `torch.jit.save` wrote, save the \
                 state dict; others can be packed again without (`zip -0`)",
            ));
    }
    let mut numbers = [20, 24, 42].map(|offset| fields.u32(offset).map(u64::from));
    large(extra, &mut numbers)?;
    let [Some(stored), Some(bytes), Some(local)] = numbers else { return Err(broken()) };
    if stored != bytes {
        return Err(corrupt(&format!("`{}` has two lengths", short(&name))));
    }
    let crc = fields.u32(16).ok_or_else(broken)?;
    Ok((name, Entry { local, end: 0, bytes, crc }, extra_end + comment_len))
}

/// Numbers that do not fit 32 bits, in the order: length, stored length, place.
fn large(extra: &[u8], numbers: &mut [Option<u64>; 3]) -> Result<()> {
    const BEYOND: Option<u64> = Some(u32::MAX as u64);
    let mut rest = extra;
    let mut values = Fields(&[]);
    while rest.len() >= 4 {
        let fields = Fields(rest);
        let len = fields.u16(2).map(usize::from).unwrap_or_default();
        let own = rest.get(4..4 + len).ok_or_else(|| corrupt("the extras of a member"))?;
        if fields.u16(0) == Some(1) {
            if !values.0.is_empty() {
                return Err(corrupt("long lengths of a member, twice"));
            }
            values = Fields(own);
        }
        rest = rest.get(4 + len..).unwrap_or_default();
    }
    let mut at = 0;
    for number in [1, 0, 2] {
        if let Some(number) = numbers.get_mut(number).filter(|number| **number == BEYOND) {
            *number = values.u64(at);
            at += 8;
        }
    }
    Ok(())
}

/// Each member ends before the next one begins, and the last one before the table: the same bytes
/// never count twice.
fn bound(entries: &mut BTreeMap<String, Entry>, table: u64) -> Result<()> {
    let mut order: Vec<(&String, &mut Entry)> = entries.iter_mut().collect();
    order.sort_unstable_by_key(|(_, entry)| Reverse(entry.local));
    let mut next = table;
    for (name, entry) in order {
        entry.end = std::mem::replace(&mut next, entry.local);
        let least = entry.local.checked_add(LOCAL + name.len() as u64);
        let end = least.and_then(|begin| begin.checked_add(entry.bytes));
        if end.is_none_or(|end| end > entry.end) {
            return Err(corrupt(&format!("`{}` overlaps another part of it", short(name))));
        }
    }
    Ok(())
}

/// Little-endian numbers at places.
#[derive(Clone, Copy)]
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}
