//! Files of PyTorch that lie: each is refused with a typed error that names the file, and nothing
//! is made.

use tch_checkpoint::ErrorKind::{self, Corrupt, Incompatible, Unsupported};

use super::forge::*;
use super::*;

/// What is wrong, the file, and what is said of it.
type Case = (&'static str, Vec<u8>, ErrorKind, &'static str);

fn refuse(cases: Vec<Case>) {
    for (what, bytes, kind, said) in cases {
        let memory = MemoryStorage::new();
        put(&memory, "w.pt", &bytes);
        let found = catalog::find(&memory, &wanted("/from/w.pt").or_unverified());
        let errors = [imported(&memory, "w.pt").map(drop), found.map(drop)];
        let is_read = said.contains("checksum mismatch in a storage");
        for error in errors.into_iter().take(if is_read { 1 } else { 2 }) {
            let Err(error) = error else { panic!("{what} is taken") };
            assert_eq!(error.kind(), kind, "{what}: {error}");
            assert!(error.to_string().contains(said), "{what}: {error}");
            assert!(error.path().is_some_and(|path| path.ends_with("w.pt")), "{what}: {error}");
        }
        let made = memory.open_dir(Path::new("/runs"));
        // Sums of tensors are compared while a save reads them, which leaves a hidden attempt.
        let names = made.map(|dir| dir.list().unwrap()).unwrap_or_default();
        assert!(names.is_empty() || (is_read && !names.iter().any(|e| e.name == "a")), "{what}");
    }
}

fn good() -> Forged {
    archive_of(&GOOD)
}

/// Without this the cases would show nothing: each is one lie away from it.
#[test]
fn the_archive_that_the_others_are_made_of_is_read() {
    for archive in [good(), good().large()] {
        let memory = MemoryStorage::new();
        put(&memory, "w.pt", &archive.bytes);
        imported(&memory, "w.pt").unwrap();
        let seen = ("F32".to_owned(), vec![3, 2], data());
        assert_same(&tensors_of(&memory, "/runs/a"), &[("w".to_owned(), seen)].into(), "w");
    }
}

#[test]
fn tables_of_members_that_lie_are_refused() {
    let member = |member: usize, at, bytes: &[u8]| good().entry(member, at, bytes).bytes;
    let local = |member: usize, at, bytes: &[u8]| good().local(member, at, bytes).bytes;
    let first = u32::try_from(good().members[0].0).unwrap().to_le_bytes();
    // Where the sum stands behind the data, the table alone has it.
    let behind = good().entry(0, 16, &[0; 4]).local(0, 6, &[8]).bytes;
    refuse(vec![
        ("a compressed member", member(2, 10, &[8]), Incompatible, "compressed"),
        ("an encrypted member", member(2, 8, &[1]), Incompatible, "encrypted"),
        ("a patched member", member(0, 8, &[1 << 5]), Incompatible, "compressed or encrypted"),
        ("hidden names", member(0, 9, &[1 << 5]), Incompatible, "compressed or encrypted"),
        ("one that is compressed where it lies", local(2, 8, &[8]), Corrupt, "not where"),
        ("one that is encrypted where it lies", local(0, 6, &[1]), Corrupt, "not where"),
        ("another name where it lies", local(2, 37, b"1"), Corrupt, "not where"),
        ("another sum where it lies", local(2, 14, &[1]), Corrupt, "not where"),
        ("another length where it lies", local(2, 22, &[23]), Corrupt, "not where"),
        ("no member where it lies", local(2, 0, b"XX"), Corrupt, "not where"),
        ("extras over its data", local(2, 28, &[24]), Corrupt, "not where"),
        ("a name longer than the table", member(2, 28, &[255, 255]), Corrupt, "its table"),
        ("extras longer than the table", member(2, 30, &[255, 255]), Corrupt, "its table"),
        ("a comment longer than the table", member(2, 32, &[255, 255]), Corrupt, "its table"),
        ("a name that is no text", member(2, 46, &[0xff]), Corrupt, "its table"),
        ("two lengths", member(2, 20, &[23]), Corrupt, "two lengths"),
        ("a length of 64 bits that is nowhere", member(0, 20, &[0xff; 8]), Corrupt, "its table"),
        ("a length over the table", member(2, 20, &[25, 0, 0, 0, 25]), Corrupt, "overlaps"),
        ("two members in one place", member(2, 42, &first), Corrupt, "overlaps"),
        ("a place beyond the end", member(2, 42, &[0, 0, 0, 127]), Corrupt, "overlaps"),
        ("a place of 64 bits that is nowhere", member(2, 42, &[255; 4]), Corrupt, "its table"),
        ("another sum of the pickle", behind, Corrupt, "checksum mismatch in `data.pkl`"),
    ]);
}

#[test]
fn sums_of_storages_are_compared_before_anything_is_saved() {
    let at = |bytes: &[u8]| bytes.windows(24).position(|part| part == data()).unwrap();
    let mut flipped = good().bytes;
    let place = at(&flipped);
    flipped[place + 5] ^= 1;
    let rows = Tensor { shape: &[1, 2], ..GOOD };
    let columns = Tensor { shape: &[2, 3], strides: &[1, 2], ..GOOD };
    let mut cases = vec![("whole", flipped)];
    for (what, tensor) in [("in part", rows), ("by columns", columns)] {
        let mut bytes = archive_of(&tensor).bytes;
        let place = at(&bytes);
        // Outside of what the part shows.
        bytes[place + 23] ^= 1;
        cases.push((what, bytes));
    }
    let said = "checksum mismatch in a storage";
    refuse(cases.into_iter().map(|(what, bytes)| (what, bytes, Corrupt, said)).collect());
}

#[test]
fn ends_of_archives_that_lie_are_refused() {
    let end = |at: usize, bytes: &[u8]| good().with(good().end + at, bytes).bytes;
    let large = |at: usize, bytes: &[u8]| good().large().with(good().end + at, bytes).bytes;
    let with = |bytes: Vec<u8>, more: &[u8]| [&bytes[..], more].concat();
    let other = Forged::new(&[("a/data.pkl", b"\x80\x02}.")]).bytes;
    let commented = with(end(20, &u16::try_from(other.len()).unwrap().to_le_bytes()), &other);
    let mut between = good().bytes;
    between.insert(good().end, 0);
    refuse(vec![
        ("more members than there are", end(8, &[4, 0, 4, 0]), Corrupt, "its end says 4"),
        ("very many members", end(8, &[255; 4]), Corrupt, "its end says 65535"),
        ("no members", end(8, &[0; 4]), Corrupt, "its end says 0"),
        ("two numbers of members", end(8, &[4, 0]), Corrupt, "one thing and another"),
        ("a part of several", end(4, &[1]), Corrupt, "does not end as one"),
        ("a table of 4 GiB", end(12, &[255; 4]), Corrupt, "does not end where"),
        ("a table beyond the end", end(16, &[255; 4]), Corrupt, "does not end where"),
        ("a byte behind the table", between, Corrupt, "does not end where"),
        ("a byte behind the end", with(good().bytes, &[0]), Corrupt, "does not end as one"),
        ("another archive in the comment", commented, Corrupt, "its table"),
        ("another archive behind the end", with(good().bytes, &other), Corrupt, "does not end"),
        ("a table for 64 bits elsewhere", large(64, &[1]), Corrupt, "not where it says"),
        ("no table for 64 bits", large(0, b"XX"), Corrupt, "not where it says"),
        ("one of another length", large(4, &[45]), Corrupt, "not where it says"),
        ("other members for 64 bits", large(32, &[2]), Corrupt, "one thing and another"),
        ("a table of 2^64", large(40, &[255; 8]), Corrupt, "one thing and another"),
        ("a table at 2^64", large(48, &[255; 8]), Corrupt, "one thing and another"),
    ]);
}

#[test]
fn archives_without_what_they_need_are_refused() {
    let pickle = dict(&[("w", GOOD.pickle())]);
    let of = |members: &[(&str, &[u8])]| Forged::new(members).bytes;
    let data = data();
    let (first, order): ((&str, &[u8]), _) = (("a/data.pkl", &pickle), "a/byteorder");
    let storage: (&str, &[u8]) = ("a/data/0", &data);
    refuse(vec![
        ("no pickle", of(&[storage]), Corrupt, "`data.pkl`"),
        ("a pickle without a directory", of(&[("data.pkl", &pickle)]), Corrupt, "`data.pkl`"),
        ("two pickles", of(&[first, ("b/data.pkl", &pickle), storage]), Corrupt, "`data.pkl`"),
        ("a member twice", of(&[first, storage, storage]), Corrupt, "two members"),
        ("no storage", of(&[first]), Corrupt, "no member `data/0`"),
        ("the storage of another", of(&[first, ("b/data/0", &data)]), Corrupt, "no member"),
        ("a longer storage", of(&[first, ("a/data/0", &[0; 28])]), Corrupt, "28 bytes, 24"),
        ("big-endian", of(&[first, (order, b"big"), storage]), Unsupported, "big-endian"),
        ("an odd byte order", of(&[first, (order, b"pdp"), storage]), Corrupt, "byte order"),
        ("a long byte order", of(&[first, (order, &[0; 99]), storage]), Unsupported, "99 bytes"),
        ("nothing but its first bytes", b"PK\x03\x04".to_vec(), Corrupt, "too short"),
    ]);
}

#[test]
fn tensors_that_lie_are_refused() {
    let case = |what, tensor: Tensor<'_>, kind, said| (what, archive_of(&tensor).bytes, kind, said);
    let cannot = "shape or strides cannot be";
    let far = 1 << 62;
    let deep = [1i64; 5000];
    refuse(vec![
        case(
            "a key that is a path",
            Tensor { key: "../../etc/passwd", ..GOOD },
            Corrupt,
            "no member",
        ),
        case("a key that is nothing", Tensor { key: "", ..GOOD }, Corrupt, "no member"),
        case(
            "a key that is a pickle",
            Tensor { key: "/../data.pkl", ..GOOD },
            Corrupt,
            "no member",
        ),
        case("a longer storage", Tensor { count: 7, ..GOOD }, Corrupt, "28 are stated"),
        case("a storage of 2^64 bytes", Tensor { count: far, ..GOOD }, Corrupt, "too large"),
        case("a storage of -6", Tensor { count: -6, ..GOOD }, Corrupt, "in another way"),
        case("another dtype", Tensor { class: "DoubleStorage", ..GOOD }, Corrupt, "48 are stated"),
        case("no storage", Tensor { class: "Size", ..GOOD }, Incompatible, "`Size`"),
        case("a begin before the storage", Tensor { first: -1, ..GOOD }, Corrupt, cannot),
        case("a begin behind the storage", Tensor { first: 1, ..GOOD }, Corrupt, "leaves"),
        case("a begin at 2^62", Tensor { first: far, ..GOOD }, Corrupt, "leaves"),
        case("a negative stride", Tensor { strides: &[-2, 1], ..GOOD }, Corrupt, cannot),
        case("a stride beyond", Tensor { strides: &[3, 1], ..GOOD }, Corrupt, "leaves"),
        case("a stride of 2^62", Tensor { strides: &[far, 1], ..GOOD }, Corrupt, "leaves"),
        case("a negative length", Tensor { shape: &[-3, 2], ..GOOD }, Corrupt, cannot),
        case("a stride too few", Tensor { strides: &[1], ..GOOD }, Corrupt, cannot),
        case("2^124 elements", Tensor { shape: &[far, far], ..GOOD }, Corrupt, "overflows"),
        case("expanded", Tensor { shape: &[4, 2], strides: &[0, 1], ..GOOD }, Unsupported, "w"),
        case("5000 dimensions", Tensor { shape: &deep, strides: &deep, ..GOOD }, Corrupt, "w"),
        case("not yet conjugated", Tensor { mark: Some("conj"), ..GOOD }, Unsupported, "`conj`"),
        case("not yet negated", Tensor { mark: Some("neg"), ..GOOD }, Unsupported, "`neg`"),
    ]);
}

/// Nothing is called, whatever it is: the name is enough to refuse it.
#[test]
fn names_that_are_not_expected_are_refused_and_named() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("numpy", "load"),
        ("collections", "Counter"),
        ("__main__", "Config"),
    ] {
        let old = format!("c{module}\n{name}\n(X\x04\0\0\0truetR").into_bytes();
        let new = [text(module), text(name), b"\x93)R".to_vec()].concat();
        let said = format!("`{module}.{name}`");
        for call in [old, new] {
            let pickle = dict(&[("w", GOOD.pickle()), ("x", call)]);
            let memory = MemoryStorage::new();
            put(&memory, "w.pt", &archive(&pickle).bytes);
            let error = imported(&memory, "w.pt").unwrap_err();
            assert_eq!(error.kind(), Incompatible, "{said}: {error}");
            assert!(error.to_string().contains(&said), "{said}: {error}");
            assert!(error.to_string().contains("nothing in it was executed"), "{said}: {error}");
        }
    }
}

#[test]
fn pickles_that_are_bombs_or_no_state_dict_are_refused() {
    let of = |value: Vec<u8>| archive(&dict(&[("w", GOOD.pickle()), ("x", value)])).bytes;
    let raw = |pickle: &[u8]| archive(pickle).bytes;
    let nested = |open: &[u8], close: &[u8]| [open.repeat(5000), b"N".to_vec(), close.repeat(5000)];
    // Each pair holds the one before twice.
    let doubled = [b"K\x01".to_vec(), b"q\0h\0\x86".repeat(60)].concat();
    let twice = dict(&[("w", GOOD.pickle()), ("w", GOOD.pickle())]);
    let long = [b"\x80\x02X".to_vec(), vec![255; 4]].concat();
    let longer = [b"\x80\x04\x8d".to_vec(), vec![255; 8]].concat();
    refuse(vec![
        ("lists in lists", of(nested(b"](", b"e").concat()), Unsupported, "deep"),
        ("tuples in tuples", of(nested(b"(", b"t").concat()), Unsupported, "deep"),
        ("a list that holds itself", of(b"]q\0h\0a".to_vec()), Unsupported, "deep"),
        ("doubled sixty times", of(doubled), Unsupported, "over and over"),
        (
            "an integer of 1000 bits",
            of([b"\x8a\x7d".to_vec(), vec![1; 125]].concat()),
            Unsupported,
            "64",
        ),
        ("a text of 4 GiB", raw(&long), Corrupt, "ends too early"),
        ("a text of 2^64 bytes", raw(&longer), Corrupt, "ends too early"),
        ("no end", raw(b"\x80\x02}"), Corrupt, "ends too early"),
        ("nothing", raw(b""), Corrupt, "ends too early"),
        ("an empty stack", raw(b"\x80\x02."), Corrupt, "stack"),
        ("no mark", raw(b"\x80\x02}u."), Corrupt, "no mark"),
        ("an odd number of entries", raw(b"\x80\x02}(NNNu."), Corrupt, "without a value"),
        ("protocol 200", raw(b"\x80\xc8}."), Incompatible, "protocol 200"),
        ("an instruction that nobody needs", raw(b"\x80\x02\x82\x01."), Incompatible, "0x82"),
        ("a name twice", raw(&twice), Corrupt, "w: twice"),
        (
            "a call of a text",
            of([text("os"), b")R".to_vec()].concat()),
            Corrupt,
            "cannot be called",
        ),
        ("an empty dictionary", raw(b"\x80\x02}."), Incompatible, "no tensor"),
        ("a number", raw(b"\x80\x02K\x01."), Incompatible, ""),
        ("a key that is a list", of(b"}]Ns".to_vec()), Incompatible, "key"),
    ]);
}

#[test]
fn old_and_bare_pickles_are_refused_with_what_helps() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let old = b"\x80\x03\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    for (what, bytes, said) in [
        ("tar", tar, "`tar`"),
        ("old", old, "before 1.6"),
        ("bare", b"\x80\x04\x95\x11\0\0\0\0\0\0\0}\x94.".to_vec(), "without an archive"),
        ("bare", dict(&[("x", int(1))]), "without an archive"),
    ] {
        let memory = MemoryStorage::new();
        put(&memory, "w.pt", &bytes);
        let error = imported(&memory, "w.pt").unwrap_err();
        assert_eq!(error.kind(), Incompatible, "{what}: {error}");
        assert!(error.to_string().contains(said), "{what}: {error}");
        assert!(error.help().is_some_and(|help| help.contains("1.6")), "{what}: {error}");
    }
}
