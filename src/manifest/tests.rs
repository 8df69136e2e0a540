use super::*;
use crate::error::{ErrorKind, Result};
use crate::plan::save::{MergedPlan, merge_plans};
use crate::plan::{LocalPlan, Receipt, SaveTarget, WriteItem};
use crate::tensor::Dtype;

const ID: SaveId = SaveId::from_bytes([7; 16]);

fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

fn item(component: &str, tensor: &str, shape: &[u64], rows: std::ops::Range<u64>) -> WriteItem {
    let mut slice = Slice::full(shape);
    if !shape.is_empty() {
        slice = slice.rows(rows).unwrap();
    }
    WriteItem {
        name: name(tensor),
        component: Component::new(component).unwrap(),
        spec: TensorSpec::new(Dtype::F32, shape).unwrap(),
        slice,
    }
}

/// Two ranks: `w` in three pieces on both, a scalar, an alias, values.
pub(crate) fn merged() -> MergedPlan {
    let target = SaveTarget {
        directory: "ck".into(),
        name: "a".into(),
        step: 3,
        epoch: 1,
        ..SaveTarget::default()
    };
    let mut values = Values::new();
    values.set("loss", 0.5);
    let mut plans: Vec<LocalPlan> = (0..2i64)
        .map(|rank| {
            let mut rank_values = Values::new();
            rank_values.set("seed", rank);
            let items = vec![item("model", "z.scalar", &[], 0..1)];
            let aliases = vec![(name("tied"), name("w"))];
            LocalPlan {
                target: target.clone(),
                items,
                aliases,
                values: values.clone(),
                rank_values,
                attached: Vec::new(),
            }
        })
        .collect();
    for (rank, rows) in [(0, 0..20_000), (1, 20_000..30_000), (1, 30_000..30_001)] {
        plans[rank].items.push(item("model", "w", &[30_001, 2], rows));
    }
    plans[0].items.push(item("optimizer", "optimizer.w.exp_avg", &[3, 2], 0..3));
    merge_plans(ID, &plans).unwrap()
}

/// What ranks would report that have done as planned.
pub(crate) fn receipts(merged: &MergedPlan) -> Vec<Receipt> {
    merged.plans.iter().map(Receipt::as_planned).collect()
}

fn others() -> Vec<OtherFile> {
    vec![OtherFile { name: "code/model.rs".into(), len: 5, hash: [4; 16] }]
}

pub(super) fn seal() -> Manifest {
    let merged = merged();
    let info = SealInfo {
        created_unix_ms: 9,
        library_version: "0.1.0".into(),
        libtorch_version: String::new(),
    };
    Manifest::seal(&merged, receipts(&merged), others(), info).unwrap()
}

#[test]
fn what_is_sealed_is_read_back() {
    let manifest = seal();
    let bytes = manifest.encode().unwrap();
    let read = Manifest::parse(&bytes).unwrap();
    assert_eq!(read, manifest);
    assert_eq!(read.encode().unwrap(), bytes);
    assert_eq!((read.step(), read.epoch(), read.save_id()), (3, 1, ID));
    assert_eq!((read.world_size().get(), read.created_unix_ms()), (2, 9));
    assert_eq!(read.values().float("loss").unwrap(), 0.5);
    assert_eq!(read.rank_values(Rank::new(1)).unwrap().int("seed").unwrap(), 1);
    assert!(read.rank_values(Rank::new(2)).is_none());
    let names: Vec<_> = read.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["optimizer.w.exp_avg", "w", "z.scalar"]);
    assert_eq!(read.tensor("tied"), read.tensor("w"));
    assert!(read.tensor("tie").is_none());
    let others = read.other_files().iter().chain(read.sums_files()).map(|f| f.len);
    let lens = read.data_files().iter().map(|f| f.len).chain(others);
    assert_eq!(read.total_bytes(), lens.sum::<u64>());
}

#[test]
fn block_sums_are_counted_from_each_piece() {
    let manifest = seal();
    for (index, file) in manifest.data_files().iter().enumerate() {
        let (mut end, mut sums) = (file.data_start, 0);
        for (tensor, piece) in manifest.pieces_of_file(index) {
            assert_eq!((piece.file as usize, piece.begin, piece.first_sum), (index, end, sums));
            end += tensor.piece_bytes(piece);
            sums += tensor.piece_bytes(piece).div_ceil(16384);
        }
        assert_eq!((end, sums), (file.len, file.sums_count));
    }
    assert_eq!(manifest.data_files()[0].sums_count, 10, "160000 bytes in blocks of 16384");
    assert_eq!(manifest.pieces_of_file(99).count(), 0);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = seal().encode().unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = Manifest::parse(&flipped).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}");
    }
}

#[test]
fn every_truncation_and_extension_is_noticed() {
    let mut bytes = seal().encode().unwrap();
    for len in 0..bytes.len() {
        let error = Manifest::parse(&bytes[..len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len} bytes");
    }
    bytes.push(0);
    assert_eq!(Manifest::parse(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_wrong_length_is_noticed_under_a_right_checksum() {
    let mut bytes = seal().encode().unwrap();
    bytes[12] ^= 1;
    let covered = bytes.len() - 32;
    let checksum = blake3::hash(&bytes[..covered]);
    bytes[covered..].copy_from_slice(checksum.as_bytes());
    let error = Manifest::parse(&bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let newer = parse::envelope(3, b"whatever").unwrap();
    let error = Manifest::parse(&newer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("version 3"), "{error}");
    let error = Manifest::parse(b"PK\x03\x04 something else").unwrap_err();
    assert!(error.to_string().contains("not a checkpoint manifest"), "{error}");
}

fn reparse(body: &Body) -> Result<Manifest> {
    let body = crate::codec::encode_compact(&(BLOCK_BYTES, body))?;
    Manifest::parse(&parse::envelope(FORMAT_VERSION, &body)?)
}

type Change = fn(&mut Body);

fn check_refused(table: &[(&str, Change)]) {
    for (what, change) in table {
        let mut body = seal().body;
        change(&mut body);
        let error = reparse(&body).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        let text = error.to_string();
        assert!(text.contains(what), "`{what}` is not in: {text}");
    }
}

const W: usize = 1;

#[test]
fn bodies_with_bad_tensors_are_refused() {
    check_refused(&[
        ("unique and in order", |b| b.tensors.swap(0, 1)),
        ("unique and in order", |b| b.tensors.push(b.tensors[2].clone())),
        ("optimizer", |b| b.tensors[0].component = Component::model()),
        ("in a file that is not listed", |b| b.tensors[W].pieces[0].file = 99),
        ("leaves its file", |b| b.tensors[W].pieces[0].begin = u64::MAX),
        ("leaves its file", |b| b.tensors[W].pieces[0].begin = 0),
        ("gap or an overlap", |b| b.tensors[2].pieces[0].begin -= 4),
        ("leaves its file", |b| b.tensors[2].pieces[0].begin += 0x10_0000),
        ("is not inside", |b| b.tensors[W].pieces[0].slice = Slice::full(&[40_000, 2])),
        ("is not inside", |b| b.tensors[W].pieces[0].slice = Slice::full(&[2])),
        ("unique and in order", |b| b.tensors[W].pieces.swap(0, 1)),
        ("slices hold", |b| drop(b.tensors[W].pieces.pop())),
        ("overlap", |b| {
            b.tensors[W].pieces[1].slice = Slice::new(vec![19_999, 0], vec![10_000, 2]).unwrap();
        }),
        ("slices hold", |b| b.tensors[W].pieces.clear()),
        ("two of its pieces are in one file", |b| {
            let (file, begin) = (b.tensors[W].pieces[0].file, b.tensors[W].pieces[0].begin);
            let second = &mut b.tensors[W].pieces[1];
            (second.file, second.begin) = (file, begin);
        }),
        ("not an alias of tensor", |b| b.aliases[0].1 = name("gone")),
        ("not an alias of tensor", |b| b.aliases[0].0 = name("w")),
        ("aliases are not unique", |b| b.aliases.push(b.aliases[0].clone())),
    ]);
}

#[test]
fn bodies_with_bad_files_are_refused() {
    check_refused(&[
        ("sets of rank values", |b| b.world_size = 3),
        ("at least one rank", |b| {
            b.world_size = 0;
            b.rank_values.clear();
        }),
        ("over 256 bytes", |b| b.library_version = "x".repeat(257)),
        ("not the name of a data file", |b| b.data_files[0].name = "../x".into()),
        ("not the name of a data file", |b| b.data_files[0].name = "x.safetensors".into()),
        ("another component", |b| b.data_files[0].component = Component::optimizer()),
        ("another component or save id", |b| b.data_files[0].save_id = SaveId::from_bytes([8; 16])),
        ("listed twice", |b| b.data_files.push(b.data_files[0].clone())),
        ("cannot begin at 0", |b| b.data_files[0].data_start = 0),
        ("cannot begin at 4097", |b| b.data_files[0].data_start = 4097),
        ("cannot begin at", |b| {
            b.data_files[0].data_start = 25_000 * 4096;
            b.data_files[0].len = 26_000 * 4096;
        }),
        ("the file at", |b| b.data_files[0].len += 1),
        ("leaves its file", |b| b.data_files[0].len -= 1),
        ("overflow", |b| b.data_files[0].len = u64::MAX),
        ("overflow", |b| {
            b.other_files[0] = OtherFile { name: "x".into(), len: i64::MAX as u64, hash: [0; 16] };
        }),
        ("at most 1048576", |b| b.other_files[0].len = (1 << 20) + 1),
        ("as a folder", |b| {
            let name = "code/model.rs/x".into();
            b.other_files.insert(0, OtherFile { name, ..b.other_files[0].clone() });
        }),
        ("too much", |b| {
            let file = |n| OtherFile { name: format!("code/{n}"), len: 1 << 20, hash: [0; 16] };
            b.other_files.extend((0..16).map(file));
        }),
        ("sums file is not listed", |b| b.data_files[0].sums_file = 99),
        ("sums file is of another save", |b| {
            let other = SaveId::from_bytes([8; 16]);
            b.sums_files[0].name =
                b.sums_files[0].name.replace(&ID.to_string(), &other.to_string());
        }),
        ("sums leave their file", |b| b.data_files[0].sums_begin = u64::MAX - 15),
        ("sums leave their file", |b| b.data_files[0].sums_begin += 4),
        ("sums leave their file", |b| b.sums_files[0].len -= 16),
        ("multiple of 16", |b| b.sums_files[0].len += 1),
        ("not the name of a sums file", |b| b.sums_files[0].name = "sums.bin".into()),
        ("not allowed", |b| b.other_files[0].name = "code/../x".into()),
        ("not allowed", |b| b.other_files[0].name = crate::layout::MANIFEST.into()),
        ("listed twice", |b| b.other_files[0].name = b.data_files[1].name.clone()),
        ("holds no piece", |b| {
            let mut file = b.data_files[0].clone();
            file.name = file.name.replace("00001-of-00002.", "00001-of-00002-9.");
            file.len = file.data_start;
            b.data_files.push(file);
        }),
    ]);
}

#[test]
fn bytes_that_are_no_body_are_refused() {
    // A dtype, a slice and a shape that the constructors refuse, spliced into encoded bytes.
    let manifest = seal();
    let body = crate::codec::encode_compact(&(BLOCK_BYTES, &manifest.body)).unwrap();
    let at = |needle: &[u8]| body.windows(needle.len()).position(|w| w == needle).unwrap();
    // Numbers below 251 take one byte, those of two bytes follow 251, those of eight 253.
    let [low, high] = 30_001u16.to_le_bytes();
    let shape = at(&[2, 251, low, high, 2]);
    let ([o, p], [l, m]) = (20_000u16.to_le_bytes(), 10_000u16.to_le_bytes());
    let slice = at(&[2, 251, o, p, 0, 2, 251, l, m, 2]);
    let huge = [&[253], &u64::MAX.to_le_bytes()[..]].concat();
    for (place, len, bytes) in [
        (shape - 1, 1, &[77][..]),
        (shape + 1, 3, &huge),
        (shape, 1, &huge),
        (slice + 1, 3, &huge),
        (at(b"z.scalar"), 1, &[0xff]),
        (at(b"z.scalar"), 1, b"\n"),
        (at(b"optimizer-0"), 4, b"OPTI"),
        (0, 1, &[]),
    ] {
        let mut damaged = body.clone();
        damaged.splice(place..place + len, bytes.iter().copied());
        let sealed = parse::envelope(FORMAT_VERSION, &damaged).unwrap();
        let error = Manifest::parse(&sealed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let longer = parse::envelope(FORMAT_VERSION, &[&body[..], &[0]].concat()).unwrap();
    assert!(Manifest::parse(&longer).is_err());
}

#[test]
fn receipts_that_do_not_match_the_plan_are_refused() {
    type Change = fn(&mut Vec<Receipt>);
    let table: [(&str, Change); 12] = [
        ("1 receipts of 2", |r| drop(r.pop())),
        ("written `nothing`", |r| drop(r[1].files.pop())),
        ("planned `nothing`", |r| {
            let mut extra = r[1].files[0].clone();
            extra.name = "extra".into();
            r[1].files.push(extra);
        }),
        ("planned `model-00002", |r| r[1].files.swap(0, 1)),
        ("pieces written", |r| r[1].files[0].piece_bytes.push(0)),
        ("pieces written", |r| r[1].files[0].piece_bytes.clear()),
        ("pieces written", |r| r[1].files[0].piece_bytes[0] -= 4),
        ("bytes long", |r| r[1].files[0].len += 1),
        ("bytes long", |r| r[1].files[0].data_start = 8192),
        ("no sums file", |r| r[1].sums_file = None),
        ("its sums are", |r| r[1].sums_file.as_mut().unwrap().len += 16),
        ("block sums begin", |r| r[1].files[1].sums_begin = 0),
    ];
    let merged = merged();
    for (what, change) in table {
        let mut changed = receipts(&merged);
        change(&mut changed);
        let error = Manifest::seal(&merged, changed, Vec::new(), SealInfo::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{what}: {error}");
        assert!(what.contains("receipts") || error.rank() == Some(Rank::new(1)), "{what}");
        assert!(error.to_string().contains(what), "`{what}` is not in: {error}");
    }
    let mut bad = others();
    bad[0].name = "/etc/passwd".into();
    let error = Manifest::seal(&merged, receipts(&merged), bad, SealInfo::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let mut misaligned = receipts(&merged);
    misaligned[0].files[0].data_start -= 1;
    misaligned[0].files[0].len -= 1;
    assert!(Manifest::seal(&merged, misaligned, Vec::new(), SealInfo::default()).is_err());
}

#[test]
fn many_pieces_take_little_room() {
    let (world, tensors) = (64u64, 50u64);
    let plans: Vec<LocalPlan> = (0..world)
        .map(|rank| LocalPlan {
            target: merged().target,
            items: (0..tensors)
                .map(|t| item("model", &format!("{t}"), &[4 * world, 2], 4 * rank..4 * rank + 4))
                .collect(),
            aliases: Vec::new(),
            values: Values::new(),
            rank_values: Values::new(),
            attached: Vec::new(),
        })
        .collect();
    let merged = merge_plans(ID, &plans).unwrap();
    let receipts = receipts(&merged);
    let manifest = Manifest::seal(&merged, receipts, Vec::new(), SealInfo::default()).unwrap();
    let bytes = manifest.encode().unwrap();
    assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    let files = world * 400;
    let per_piece = (bytes.len() as u64 - files) / (world * tensors);
    assert!(per_piece <= 90, "{per_piece} bytes per piece");
}
