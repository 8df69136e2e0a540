use super::*;
use crate::error::ErrorKind;
use crate::manifest::OtherFile;
use crate::tensor::Dtype;

const ID: SaveId = SaveId::from_bytes([3; 16]);

fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

/// Two tensors; the second one in two pieces of columns, cut up by rows.
fn body() -> Body {
    let parts = FileParts { len: 4136, data_start: 4096, header_hash: [1; 16], sums_hash: [2; 16] };
    let spec = |shape: &[u64]| TensorSpec::new(Dtype::F32, shape).unwrap();
    let piece = |begin, offsets: &[u64], lengths: &[u64]| Piece {
        file: 0,
        begin,
        slice: Slice::new(offsets.to_vec(), lengths.to_vec()).unwrap(),
        first_sum: 0,
    };
    let record = |text: &str, spec, pieces| TensorRecord {
        name: name(text),
        component: Component::new(text).unwrap(),
        spec,
        pieces,
    };
    let columns = vec![
        piece(4112, &[0, 0], &[1, 1]),
        piece(4116, &[0, 1], &[1, 2]),
        piece(4124, &[1, 0], &[1, 1]),
        piece(4128, &[1, 1], &[1, 2]),
    ];
    Body {
        tensors: vec![
            record("a", spec(&[4]), vec![piece(4096, &[0], &[4])]),
            record("b", spec(&[2, 3]), columns),
        ],
        aliases: vec![(name("tied"), name("a"))],
        ..empty_body(ID, vec![data_file(ITSELF, ID, &parts)])
    }
}

fn single() -> Form {
    Form::Single { siblings: vec![Component::optimizer()] }
}

#[test]
fn what_is_encoded_is_parsed_back_and_derives_sums() {
    let manifest = Manifest::from_single(Format::NEWEST, body(), single()).unwrap();
    assert_eq!(Manifest::parse(&manifest.encode().unwrap()).unwrap(), manifest);
    assert_eq!(manifest.data_files()[0].sums_count, 5);
    let sums: Vec<u64> = manifest.pieces_of_file(0).map(|(_, piece)| piece.first_sum).collect();
    assert_eq!(sums, [0, 1, 2, 3, 4]);
    // Hashes and positions do not change its length: headers are laid out before they are known.
    let mut other = body();
    other.data_files[0].header_hash = [0xFF; 16];
    let other = Manifest::from_single(Format::NEWEST, other, single()).unwrap();
    assert_eq!(other.encode().unwrap().len(), manifest.encode().unwrap().len());
}

#[test]
fn bodies_that_break_a_rule_are_corrupt() {
    type Change = fn(&mut Body);
    let table: [(&str, Change); 18] = [
        ("no file", |b| b.data_files.clear()),
        ("other files", |b| {
            b.other_files.push(OtherFile { name: "x".into(), len: 0, hash: [0; 16] });
        }),
        ("a path", |b| b.data_files[0].name = "../x".into()),
        ("hidden", |b| b.data_files[0].name = ".x".into()),
        ("twice", |b| b.data_files.push(b.data_files[0].clone())),
        ("another save", |b| b.data_files[0].save_id = SaveId::from_bytes([4; 16])),
        ("unaligned", |b| b.data_files[0].data_start -= 1),
        ("start beyond the end", |b| b.data_files[0].data_start = 8192),
        ("length", |b| b.data_files[0].len = u64::MAX),
        ("longer", |b| b.data_files[0].len += 1),
        ("sums elsewhere", |b| b.data_files[0].sums_begin = 32),
        ("order of tensors", |b| b.tensors.swap(0, 1)),
        ("a gap", |b| drop(b.tensors[1].pieces.remove(2))),
        ("elsewhere", |b| b.tensors[1].pieces[1].begin += 4),
        ("not contiguous", |b| {
            b.tensors[1].pieces.truncate(1);
            b.tensors[1].pieces[0].slice = Slice::new(vec![0, 0], vec![2, 1]).unwrap();
        }),
        ("overlapping tensors", |b| {
            b.tensors[1].pieces.iter_mut().for_each(|piece| piece.begin -= 4);
        }),
        ("no such file", |b| b.tensors[0].pieces[0].file = 7),
        ("beyond all numbers", |b| b.tensors[0].pieces[0].begin = u64::MAX - 3),
    ];
    for (what, change) in table {
        let mut changed = body();
        change(&mut changed);
        let error = Manifest::from_single(Format::NEWEST, changed, single()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn manifests_of_one_save_are_joined() {
    let mut other = body();
    other.data_files[0].name = "other".into();
    other.aliases.clear();
    for (tensor, text) in other.tensors.iter_mut().zip(["c", "d"]) {
        tensor.name = name(text);
    }
    let [one, two] =
        [body(), other].map(|b| Manifest::from_single(Format::NEWEST, b, single()).unwrap());
    let joined = one.clone().join(vec![two]).unwrap();
    assert_eq!(joined.tensors().len(), 4);
    assert_eq!(joined.tensor("d").unwrap().pieces[0].file, 1);
    assert_eq!(Manifest::parse(&joined.encode().unwrap()).unwrap(), joined);
    let twice = one.clone().join(vec![one.found_as("third")]).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Corrupt, "{twice}");
}
