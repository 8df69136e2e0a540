//! Pickles of the real PyTorch, what our own writer writes, and what no pickler would.

use super::*;

const TORCH: &[u8] = include_bytes!("../../tests/fixtures/pickle/torch_save.pkl");
const DCP: &[u8] = include_bytes!("../../tests/fixtures/pickle/dcp_metadata.pkl");

fn read(bytes: &[u8]) -> Result<Pickle> {
    let (pickle, len) = Pickle::read(bytes, &|_, _| true)?;
    assert_eq!(len, bytes.len());
    Ok(pickle)
}

#[test]
fn a_state_dict_of_torch_is_read() {
    let pickle = read(TORCH).unwrap();
    let root = pickle.root();
    let at = |path: &[&str]| path.iter().fold(root, |view, key| view.get(key).unwrap());
    assert_eq!(at(&["epoch"]).int(), Some(3));
    assert_eq!(at(&["loss"]).float(), Some(f64::INFINITY));
    assert_eq!(at(&["note"]).text(), Some("é"));
    assert_eq!(at(&["negative"]).int(), Some(-(1 << 40)));
    assert_eq!((at(&["huge"]).int(), at(&["huge"]).what()), (None, "an integer".to_owned()));
    let bytes = at(&["bytes"]).made().unwrap();
    assert!(bytes.is("_codecs", "encode"));
    assert_eq!(bytes.argument(0).and_then(View::text), Some("\0ÿ"));
    let weight = at(&["model", "0.weight"]).made().unwrap();
    assert!(weight.is("torch._utils", "_rebuild_tensor_v2"));
    let size: Vec<_> = weight.argument(2).unwrap().items().unwrap().map(View::count).collect();
    assert_eq!(size, [Some(3), Some(2)]);
    let storage = weight.argument(0).and_then(View::persistent).unwrap();
    let parts: Vec<_> = storage.items().unwrap().collect();
    assert_eq!(parts[0].text(), Some("storage"));
    assert_eq!(parts[1].global(), Some(("torch", "FloatStorage")));
    assert_eq!((parts[2].text(), parts[4].count()), (Some("0"), Some(6)));
    // A parameter that is there twice is one thing.
    assert_eq!(at(&["tied", "a"]).identity(), at(&["tied", "b"]).identity());
    let state = at(&["optimizer", "state"]);
    let ids: Vec<_> = state.entries().unwrap().map(|(key, _)| key.int().unwrap()).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
}

#[test]
fn the_metadata_of_a_distributed_checkpoint_is_read() {
    let pickle = read(DCP).unwrap();
    let root = pickle.root().made().unwrap();
    assert!(root.is("torch.distributed.checkpoint.metadata", "Metadata"));
    let state = root.state.unwrap();
    let tensors = state.get("state_dict_metadata").unwrap();
    assert_eq!(tensors.entries().unwrap().len(), 8);
    let weight = tensors.get("model.0.weight").unwrap().made().unwrap();
    let size = weight.state.unwrap().get("size").unwrap().made().unwrap();
    assert!(size.is("torch", "Size"));
}

#[test]
fn what_is_written_is_read() {
    let mut writer = Writer::new();
    writer.empty_list();
    writer.mark();
    let ints = [0, 255, 256, 65_535, 65_536, -1, i64::from(i32::MIN), i64::MAX, i64::MIN];
    ints.iter().for_each(|int| writer.int(*int));
    let floats = [-0.0, 1.5, f64::INFINITY];
    floats.iter().for_each(|float| writer.float(*float));
    writer.text("é\n").unwrap();
    writer.none();
    writer.bool(true);
    writer.bytes(&[0, 128, 255]).unwrap();
    writer.append();
    let pickle = read(&writer.finish()).unwrap();
    let items: Vec<_> = pickle.root().items().unwrap().collect();
    let read: Vec<_> = items[..9].iter().map(|item| item.int().unwrap()).collect();
    assert_eq!(read, ints);
    let read: Vec<_> = items[9..12].iter().map(|item| item.float().unwrap().to_bits()).collect();
    assert_eq!(read, floats.map(f64::to_bits));
    assert_eq!(items[12].text(), Some("é\n"));
    assert!(items[13].is_none() && items[14].bool() == Some(true));
    assert_eq!(items[15].made().unwrap().argument(0).unwrap().text(), Some("\0\u{80}ÿ"));
}

/// Nothing that a pickle names is imported or called, whatever it is; the name is told.
#[test]
fn a_name_that_is_not_expected_ends_the_reading() {
    let attack = b"cos\nsystem\n(U\x02lstR.";
    let error = Pickle::read(attack, &|module, _| module == "torch").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.message().contains("os.system"), "{error}");
    let stacked = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.";
    let error = Pickle::read(stacked, &|_, _| false).unwrap_err();
    assert!(error.message().contains("builtins.eval"), "{error}");
    // What is expected is noted, not called.
    let noted = read(attack).unwrap();
    assert!(noted.root().made().unwrap().is("os", "system"));
}

#[test]
fn what_is_no_pickle_is_told_with_its_place() {
    let cases: [(&str, &[u8]); 34] = [
        ("nothing", b""),
        ("no end", b"N"),
        ("an end of nothing", b"."),
        ("an unknown instruction", b"\xffN."),
        ("a protocol of the future", b"\x80\x63N."),
        ("a frame beyond the end", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff."),
        ("a text beyond the end", b"X\xff\xff\xff\xffab."),
        ("a text of 16 EiB", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab."),
        ("bytes of 16 EiB", b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff."),
        ("a byte array of 16 EiB", b"\x96\xff\xff\xff\xff\xff\xff\xff\xff."),
        ("an integer of 2 GiB", b"\x8b\xff\xff\xff\x7f\x01."),
        ("a text that is no UTF-8", b"X\x02\0\0\0\xff\xfe."),
        ("a name that is no UTF-8", b"c\xff\n\xff\n."),
        ("a line that does not end", b"I123"),
        ("no integer", b"Ix\n."),
        ("an integer with a sign only", b"I-\n."),
        ("no number", b"Fx\n."),
        ("a memo that is empty", b"h\x00."),
        ("a memo beyond its end", b"Nq\x00j\xff\xff\xff\xff."),
        ("a place in the memo that is no number", b"g-1\n."),
        ("memorizing nothing", b"q\x00."),
        ("a tuple without a mark", b"NNt."),
        ("a tuple of more than there is", b"N\x87."),
        ("a tuple across a mark", b"N(N\x86."),
        ("popping across a mark", b"N(b."),
        ("a key without a value", b"}(Nu."),
        ("a dictionary of an odd number", b"(Nd."),
        ("entries for a list", b"](NNu."),
        ("items for a dictionary", b"}(Ne."),
        ("items for nothing", b"(Ne."),
        ("a call of a text", b"U\x01x)R."),
        ("a call with no tuple", b"cos\nsystem\nNR."),
        ("a state for a list", b"]Nb."),
        ("a second state", b"cos\nsystem\n)\x81}b}b."),
    ];
    for (what, bytes) in cases {
        let error = Pickle::read(bytes, &|_, _| true).map(drop).unwrap_err();
        let kinds = [ErrorKind::Corrupt, ErrorKind::Incompatible];
        assert!(kinds.contains(&error.kind()), "{what}: {error}");
        assert!(error.offset().is_some(), "{what}: {error}");
    }
}

/// Shared parts are there once, and what holds itself can be looked at and dropped.
#[test]
fn bombs_and_knots_take_no_more_than_their_own_length() {
    let mut bomb = b"(lq\x00".to_vec();
    for level in 0..100u8 {
        bomb.extend([b'(', b'h', level, b'h', level, b'l', b'q', level + 1]);
    }
    bomb.push(b'.');
    let pickle = read(&bomb).map_err(|e| e.to_string());
    // The lists below are left on the stack; the last is what counts.
    assert_eq!(pickle.unwrap().nodes.len(), 101);
    let knot = read(b"]q\x00h\x00a.").unwrap();
    let inner = knot.root().items().unwrap().next().unwrap();
    assert_eq!(inner.identity(), knot.root().identity());
    assert!(inner.what() == "a list" && format!("{knot:?}").len() < 200);
    let mut deep = vec![b')'];
    deep.extend(std::iter::repeat_n(0x85, 1_000_000));
    deep.push(b'.');
    assert_eq!(read(&deep).unwrap().nodes.len(), 1_000_001);
}

#[test]
fn no_instruction_claims_more_memory_than_the_limit() {
    let most = usize::try_from(PICKLE_BYTES_MAX).unwrap();
    let error = Pickle::read(&vec![b'N'; most + 1], &|_, _| true).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = Pickle::read(&vec![b'N'; NODES_MAX + 1], &|_, _| true).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn integers_of_any_width_keep_their_value() {
    for (bytes, expected) in [
        (&b"\x8a\x00."[..], Some(0)),
        (b"\x8a\x01\xff.", Some(-1)),
        (b"\x8a\x02\xff\x00.", Some(255)),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00.", None),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\xff.", Some(i64::MIN)),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", Some(i64::MAX)),
        (b"\x8b\x01\0\0\0\x05.", Some(5)),
        (b"L-12L\n.", Some(-12)),
        (b"L99999999999999999999L\n.", None),
        (b"M\x00\x01.", Some(256)),
        (b"J\xff\xff\xff\xff.", Some(-1)),
    ] {
        assert_eq!(read(bytes).unwrap().root().int(), expected, "{bytes:?}");
    }
    assert_eq!(read(b"I01\n.").unwrap().root().bool(), Some(true));
}
