//! Which libraries a program asks the dynamic loader for. Nothing of the file is believed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most entries of a table that are looked at.
const ENTRIES_MAX: u64 = 4096;
/// Longest name of a library.
const NAME_MAX: usize = 255;
/// Kinds of segments.
const LOAD: u64 = 1;
const DYNAMIC: u64 = 2;
/// Kinds of entries of the dynamic segment.
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;

/// A part of the file, and where in memory it goes.
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

/// The names of the libraries, in order; none if it is linked statically.
///
/// # Errors
/// Those of reading; `InvalidData` for what is no 64-bit little-endian ELF file.
pub(super) fn needed(path: &Path) -> io::Result<Vec<String>> {
    let file = File::open(path)?;
    let segments = segments(&file)?;
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == DYNAMIC) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    let mut strings = None;
    for entry in 0..(dynamic.size / 16).min(ENTRIES_MAX) {
        let at = add(dynamic.offset, entry * 16)?;
        match (number(&file, at, 8)?, number(&file, add(at, 8)?, 8)?) {
            (0, _) => break,
            (NEEDED, name) => names.push(name),
            (STRINGS, address) => strings = Some(address),
            _ => {}
        }
    }
    let strings = in_file(&segments, strings.ok_or_else(unfit)?)?;
    names.into_iter().map(|name| text(&file, add(strings, name)?)).collect()
}

fn segments(file: &File) -> io::Result<Vec<Segment>> {
    // Magic, 64 bits, little-endian.
    if number(file, 0, 6)? != u64::from_le_bytes([0x7f, b'E', b'L', b'F', 2, 1, 0, 0]) {
        return Err(unfit());
    }
    let (table, size) = (number(file, 32, 8)?, number(file, 54, 2)?);
    let count = number(file, 56, 2)?.min(ENTRIES_MAX);
    let segment = |index: u64| {
        let at = add(table, index * size)?;
        Ok(Segment {
            kind: number(file, at, 4)?,
            offset: number(file, add(at, 8)?, 8)?,
            address: number(file, add(at, 16)?, 8)?,
            size: number(file, add(at, 32)?, 8)?,
        })
    };
    (0..count).map(segment).collect()
}

/// Where in the file that address of memory comes from.
fn in_file(segments: &[Segment], address: u64) -> io::Result<u64> {
    let holds = |segment: &&Segment| {
        let inside = address.checked_sub(segment.address);
        segment.kind == LOAD && inside.is_some_and(|inside| inside < segment.size)
    };
    let segment = segments.iter().find(holds).ok_or_else(unfit)?;
    add(segment.offset, address - segment.address)
}

fn text(file: &File, at: u64) -> io::Result<String> {
    let mut bytes = [0; NAME_MAX + 1];
    let read = file.read_at(&mut bytes, at)?;
    let bytes = bytes.get(..read).unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(unfit)?;
    Ok(String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned())
}

/// A little-endian number of at most 8 bytes.
fn number(file: &File, at: u64, bytes: usize) -> io::Result<u64> {
    let mut number = [0; 8];
    file.read_exact_at(number.get_mut(..bytes).unwrap_or_default(), at)?;
    Ok(u64::from_le_bytes(number))
}

fn add(a: u64, b: u64) -> io::Result<u64> {
    a.checked_add(b).ok_or_else(unfit)
}

fn unfit() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no program of 64 bits as Linux has them")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> std::path::PathBuf {
        std::env::current_exe().unwrap()
    }

    #[test]
    fn a_program_s_libraries_are_found() {
        let names = needed(&own()).unwrap();
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
        assert!(names.iter().all(|name| name.contains(".so")), "{names:?}");
    }

    #[test]
    fn what_is_cut_short_or_no_program_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut");
        let whole = File::open(own()).unwrap();
        for bytes in [0, 5, 6, 40, 64, 100, 500] {
            let mut head = vec![0; bytes];
            whole.read_exact_at(&mut head, 0).unwrap();
            std::fs::write(&path, &head).unwrap();
            assert!(needed(&path).is_err(), "{bytes}");
        }
        std::fs::write(&path, "#!/bin/sh\nexit 0\n# and some more text, as long as a header is\n")
            .unwrap();
        assert_eq!(needed(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(needed(dir.path()).is_err());
    }

    #[test]
    fn no_number_of_the_file_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wrong");
        let mut head = vec![0; 4096];
        File::open(own()).unwrap().read_exact_at(&mut head, 0).unwrap();
        for at in 0..head.len().min(1200) {
            let mut wrong = head.clone();
            wrong[at..(at + 8).min(head.len())].fill(0xff);
            std::fs::write(&path, &wrong).unwrap();
            // Whatever comes of it: it ends, without a panic.
            let _ = needed(&path);
        }
    }
}
