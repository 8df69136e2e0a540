use super::*;

fn storage_with(path: &str, bytes: &[u8]) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let path = Path::new(path);
    storage.create_dir_all(path.parent().unwrap()).unwrap();
    storage.write(path, bytes).unwrap();
    storage
}

#[test]
fn clones_share_the_tree() {
    let storage = storage_with("run/a", b"abc");
    let clone = storage.clone();
    clone.write(Path::new("run/b"), b"x").unwrap();
    assert_eq!(storage.read(Path::new("/run/./b")).unwrap(), b"x");
    assert_eq!(MemoryStorage::new().open_dir(Path::new("run")).unwrap_err().kind(), {
        ErrorKind::NotFound
    });
}

#[test]
fn writing_replaces_what_was_there() {
    let storage = storage_with("run/a", b"long content");
    storage.write(Path::new("run/a"), b"short").unwrap();
    assert_eq!(storage.read(Path::new("run/a")).unwrap(), b"short");
    for missing in ["none/a", "run/a/b"] {
        let error = storage.write(Path::new(missing), b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{missing}");
    }
    let error = storage.write(Path::new("/"), b"").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn corrupting_flips_bits_of_one_byte() {
    let storage = storage_with("run/a", &[0, 0b1010, 0]);
    storage.corrupt(Path::new("run/a"), 1, 0b0110).unwrap();
    assert_eq!(storage.read(Path::new("run/a")).unwrap(), [0, 0b1100, 0]);
    let error = storage.corrupt(Path::new("run/a"), 3, 1).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::InvalidInput, Some(3)));
    let error = storage.corrupt(Path::new("run"), 0, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_wrong_offset_does_not_eat_the_memory() {
    let dir = MemoryStorage::new().create_dir_all(Path::new("d")).unwrap();
    let file = dir.create_file("a").unwrap();
    for offset in [4 << 30, u64::MAX - 1, u64::MAX] {
        assert_eq!(file.write_at(offset, b"xy").unwrap_err().kind(), ErrorKind::Storage);
        assert_eq!(file.reserve(offset).err().map(|e| e.kind()), {
            (offset > 4 << 30).then_some(ErrorKind::Storage)
        });
    }
    assert_eq!(dir.open_file("a").unwrap().len(), 0);
}
