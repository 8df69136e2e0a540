use super::*;
use crate::storage::{MemoryStorage, Storage};

const BYTES: u64 = 10 << 20;

/// A file that is one member, with what is shown of it, and one bit wrong.
fn damaged(stretches: &[(u64, u64)]) -> ExtentDirectory {
    let memory = MemoryStorage::new();
    let dir = memory.create_dir_all(Path::new("/d")).unwrap();
    let mut bytes: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    let member = Member { begin: 0, bytes: BYTES, crc: crc32fast::hash(&bytes) };
    bytes[5 << 20] ^= 1;
    memory.write(Path::new("/d/file"), &bytes).unwrap();
    let stretch =
        |(begin, bytes): &(u64, u64)| Stretch { bytes: *bytes, data: Data::Rows(member, *begin) };
    let stretches = stretches.iter().map(stretch).collect();
    ExtentDirectory::new(dir, vec![Extent::new("file", BYTES, stretches).unwrap()])
}

/// Reads all that is shown, a few MiB at a time, as a save does.
fn read_all(dir: &ExtentDirectory) -> Result<()> {
    let file = dir.open_file("file")?;
    let mut part = vec![0; 4 << 20];
    let mut at = 0;
    while at < file.len() {
        let len = usize::try_from(file.len() - at).unwrap().min(part.len());
        file.read_at(at, &mut part[..len])?;
        at += len as u64;
    }
    Ok(())
}

/// However the tensors of a storage lie over each other.
#[test]
fn damage_is_found_before_a_save_or_by_it() {
    let whole = (0, BYTES);
    let shown: [&[(u64, u64)]; 5] =
        [&[whole], &[(1 << 20, 1 << 20)], &[(1 << 20, 1 << 20), whole], &[whole, whole], &[]];
    for stretches in shown {
        let dir = damaged(stretches);
        let found = dir.check_members(0, 1).and_then(|()| read_all(&dir));
        let error = found.map_err(|e| e.kind());
        let expected = if stretches.is_empty() { Ok(()) } else { Err(ErrorKind::Corrupt) };
        assert_eq!(error, expected, "{stretches:?}");
    }
}
