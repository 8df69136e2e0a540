//! Bytes of files.

use super::*;

on_every_storage!(
    a_file_is_created_once,
    only_regular_files_are_read,
    an_existing_file_is_filled_by_several_writers,
    bytes_come_back_from_their_offsets,
    ranges_are_written_by_many_threads,
    reserving_keeps_length_and_bytes,
    a_file_that_ends_early_is_corrupt,
    the_length_is_that_at_opening,
);

fn a_file_is_created_once(place: &Place) {
    let dir = place.dir();
    put(&*dir, "a", b"first");
    dir.create_dir("d").unwrap();
    dir.create_link("dangling", "b").unwrap();
    for taken in ["a", "d", "dangling"] {
        let made = dir.create_file(taken);
        assert_eq!(kind(made, taken), ErrorKind::AlreadyExists, "{taken}");
    }
    assert_eq!(get(&*dir, "a"), b"first");
    assert_eq!(names(&*dir), ["a", "d", "dangling"], "nothing behind the link");
}

fn only_regular_files_are_read(place: &Place) {
    let dir = place.dir();
    put(&*dir, "file", b"x");
    dir.create_dir("d").unwrap();
    dir.create_link("link", "file").unwrap();
    for other in ["d", "link"] {
        assert_eq!(kind(dir.open_file(other), other), ErrorKind::Corrupt, "{other}");
    }
    assert_eq!(kind(dir.open_file("missing"), "missing"), ErrorKind::NotFound);
}

fn an_existing_file_is_filled_by_several_writers(place: &Place) {
    let dir = place.dir();
    put(&*dir, "a", b"0123456789");
    dir.create_dir("d").unwrap();
    dir.create_link("link", "a").unwrap();
    let (one, two) = (dir.open_for_writing("a").unwrap(), dir.open_for_writing("a").unwrap());
    one.write_at(2, b"ab").unwrap();
    two.write_at(8, b"cdef").unwrap();
    two.finish().unwrap();
    one.finish().unwrap();
    assert_eq!(get(&*dir, "a"), b"01ab4567cdef");
    for other in ["d", "link"] {
        assert_eq!(kind(dir.open_for_writing(other), other), ErrorKind::Corrupt, "{other}");
    }
    assert_eq!(kind(dir.open_for_writing("missing"), "missing"), ErrorKind::NotFound);
    assert_eq!(names(&*dir), ["a", "d", "link"], "nothing was created");
}

fn bytes_come_back_from_their_offsets(place: &Place) {
    let dir = place.dir();
    let file = dir.create_file("a").unwrap();
    file.write_at(5, b"fghij").unwrap();
    file.write_at(0, b"abcde").unwrap();
    file.write_at(12, b"m").unwrap();
    file.write_at(99, b"").unwrap();
    file.finish().unwrap();
    assert_eq!(get(&*dir, "a"), b"abcdefghij\0\0m");
    let mut middle = [0; 3];
    dir.open_file("a").unwrap().read_at(4, &mut middle).unwrap();
    assert_eq!(&middle, b"efg");
}

fn ranges_are_written_by_many_threads(place: &Place) {
    const RANGE_BYTES: usize = 10_007;
    let dir = place.dir();
    let file = dir.create_file("a").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let file = &file;
            let offset = u64::from(thread) * RANGE_BYTES as u64;
            scope.spawn(move || file.write_at(offset, &[thread; RANGE_BYTES]).unwrap());
        }
    });
    file.finish().unwrap();
    let wanted: Vec<u8> = (0..4u8).flat_map(|thread| [thread; RANGE_BYTES]).collect();
    assert_eq!(get(&*dir, "a"), wanted);
}

fn reserving_keeps_length_and_bytes(place: &Place) {
    let dir = place.dir();
    let file = dir.create_file("a").unwrap();
    file.reserve(0).unwrap();
    file.write_at(0, b"abc").unwrap();
    file.reserve(4096).unwrap();
    file.finish().unwrap();
    assert_eq!(get(&*dir, "a"), b"abc");
}

fn a_file_that_ends_early_is_corrupt(place: &Place) {
    let dir = place.dir();
    put(&*dir, "a", b"0123456789");
    let file = dir.open_file("a").unwrap();
    for (offset, len, at) in [(0, 11, 10), (8, 4, 10), (10, 1, 10), (40, 2, 40)] {
        let error = file.read_at(offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.offset(), Some(at), "{error}");
        assert!(error.path().unwrap().ends_with('a'), "{error}");
    }
    file.read_at(10, &mut []).unwrap();
    file.read_at(9, &mut [0]).unwrap();
}

fn the_length_is_that_at_opening(place: &Place) {
    let dir = place.dir();
    let writer = dir.create_file("a").unwrap();
    writer.write_at(0, b"abc").unwrap();
    let reader = dir.open_file("a").unwrap();
    writer.write_at(3, b"def").unwrap();
    assert_eq!(reader.len(), 3);
    assert_eq!(dir.open_file("a").unwrap().len(), 6);
    dir.remove_file("a").unwrap();
    let mut bytes = [0; 3];
    reader.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abc");
}
