//! Headers: what stock readers see, and what the strict parser refuses.

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::*;
use crate::error::ErrorKind;

#[test]
fn stock_readers_open_our_files_and_see_where_pieces_belong() {
    let mut state = StateDict::new();
    let all = Dtype::ALL.iter();
    let mut pieces: Vec<_> =
        all.map(|d| whole(&mut state, &format!("t.{d}"), *d, &[2, 3])).collect();
    pieces.push(whole(&mut state, "scalar \"x\"", Dtype::I64, &[]));
    pieces.push(whole(&mut state, "empty", Dtype::F16, &[0, 4]));
    pieces[3].slice = Slice::new(vec![1, 0], vec![1, 3]).unwrap();
    let plan = plan_of(vec![planned_file("a.safetensors", pieces)]);
    let dir = MemoryDir::default();
    let receipt = save(&dir, &plan, &state).unwrap();
    let file = dir.0.lock().files["a.safetensors"].clone();

    let stock = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(stock.len(), plan.files[0].pieces.len());
    for piece in &plan.files[0].pieces {
        let view = stock.tensor(piece.name.as_str()).unwrap();
        assert_eq!(view.data(), expected(&state, piece), "{}", piece.name);
        let shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
        assert_eq!(shape, piece.slice.lengths());
        assert_eq!(view.dtype().to_string(), piece.spec.dtype().as_str());
    }
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let texts = header.metadata().as_ref().unwrap();
    assert_eq!((texts["format"].as_str(), texts["DCP_VERSION"].as_str()), ("pt", "1.0"));
    assert_eq!(texts["tch_checkpoint.save_id"], "ab".repeat(16));
    assert_eq!(texts["tch_checkpoint.step"], "17");
    assert_eq!(texts["tch_checkpoint.rank"], "3");
    let sharding: Value = serde_json::from_str(&texts["DCP_SHARDING_INFO"]).unwrap();
    assert_eq!(sharding["t.F8_E5M2"], json!({"saved_offsets": [1, 0]}));
    assert_eq!(sharding["scalar \"x\""], json!({"saved_offsets": []}));
    assert_eq!(sharding.as_object().unwrap().len(), stock.len());
    let shapes: Value = serde_json::from_str(&texts["tch_checkpoint.shapes"]).unwrap();
    assert_eq!(shapes["t.F8_E5M2"], json!([2, 3]));
    assert!(shapes.get("scalar \"x\"").is_none(), "a whole tensor's own shape says it");
    assert_eq!(receipt.files[0].data_start % 4096, 0);
    assert_eq!(receipt.files[0].len, file.len() as u64);
}

#[test]
fn our_headers_parse_back_and_are_deterministic() {
    let (_, plan) = small();
    let header = Header::of(&plan.files[0], &SAVE_ID, RANK, STEP).unwrap();
    assert_eq!(header, Header::of(&plan.files[0], &SAVE_ID, RANK, STEP).unwrap());
    assert_ne!(header.hash(), Header::of(&plan.files[0], &SAVE_ID, RANK, STEP + 1).unwrap().hash());
    let parsed = ParsedHeader::parse(header.bytes(), header.file_len()).unwrap();
    assert_eq!(parsed.data_start, header.data_start());
    let sizes: Vec<_> = parsed.tensors.iter().map(|t| t.end - t.begin).collect();
    assert_eq!(sizes, header.piece_bytes());
    for (tensor, piece) in parsed.tensors.iter().zip(&plan.files[0].pieces) {
        assert_eq!(tensor.name, piece.name);
        assert_eq!(tensor.spec, piece.spec);
    }
    let empty = Header::of(&planned_file("e", vec![]), &SAVE_ID, RANK, STEP).unwrap();
    assert_eq!(ParsedHeader::parse(empty.bytes(), empty.file_len()).unwrap().tensors, []);
}

#[test]
fn impossible_pieces_have_no_header() {
    let mut state = StateDict::new();
    let good = whole(&mut state, "t", Dtype::U8, &[4]);
    let of = |pieces| Header::of(&planned_file("f", pieces), &SAVE_ID, RANK, STEP);
    let twice = of(vec![good.clone(), good.clone()]).unwrap_err();
    assert_eq!((twice.kind(), twice.tensor()), (ErrorKind::InvalidInput, Some("t")));
    let mut outside = good.clone();
    outside.slice = Slice::new(vec![2], vec![3]).unwrap();
    assert_eq!(of(vec![outside]).unwrap_err().kind(), ErrorKind::InvalidInput);
    let huge = |text: &str| {
        let spec = TensorSpec::new(Dtype::U8, vec![i64::MAX as u64]).unwrap();
        let slice = Slice::full(spec.shape());
        PlannedPiece { name: name(text), spec, held: slice.clone(), slice }
    };
    assert!(of(vec![huge("a")]).is_ok());
    let overflow = of(vec![huge("a"), huge("b")]).unwrap_err();
    assert!(overflow.message().contains("overflow"), "{overflow}");
}

#[test]
fn a_header_too_long_for_stock_readers_is_refused() {
    let piece = |i: usize| {
        let spec = TensorSpec::new(Dtype::U8, vec![2]).unwrap();
        let slice = Slice::full(&[1]);
        // Every quote is escaped, and escaped again inside the metadata.
        let text = format!("{i:05}{}", "\"".repeat(4000));
        PlannedPiece { name: name(&text), spec, held: slice.clone(), slice }
    };
    let file = planned_file("f", (0..2600).map(piece).collect());
    let error = Header::of(&file, &SAVE_ID, RANK, STEP).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("2600 tensors"), "{}", error.message());
}

fn parse(json: &str, data_bytes: u64) -> Result<ParsedHeader> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    ParsedHeader::parse(&bytes, bytes.len() as u64 + data_bytes)
}

#[test]
fn tensors_are_given_in_file_order_whatever_the_order_of_keys() {
    let json = r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
        "a":{"data_offsets":[2,3],"shape":[],"dtype":"U8"}}"#;
    let parsed = parse(json, 3).unwrap();
    let names: Vec<_> = parsed.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn malformed_headers_are_refused() {
    let tensor = |fields: &str| format!("{{\"t\":{{{fields}}}}}");
    let cases = [
        ("gap", tensor(r#""dtype":"U8","shape":[2],"data_offsets":[1,3]"#)),
        ("size", tensor(r#""dtype":"U16","shape":[2],"data_offsets":[0,3]"#)),
        ("backwards", tensor(r#""dtype":"U8","shape":[3],"data_offsets":[3,0]"#)),
        ("negative", tensor(r#""dtype":"U8","shape":[-3],"data_offsets":[0,3]"#)),
        (
            "overflow",
            tensor(r#""dtype":"U8","shape":[0,9223372036854775807,3],"data_offsets":[0,0]"#),
        ),
        ("too short", tensor(r#""dtype":"U8","shape":[2],"data_offsets":[0,2]"#)),
        ("too long", tensor(r#""dtype":"U8","shape":[4],"data_offsets":[0,4]"#)),
        ("offsets", tensor(r#""dtype":"U8","shape":[3],"data_offsets":[0,3,3]"#)),
        ("field", tensor(r#""dtype":"U8","shape":[3],"data_offsets":[0,3],"more":1"#)),
        ("field twice", tensor(r#""dtype":"U8","dtype":"U8","shape":[3],"data_offsets":[0,3]"#)),
        ("missing", tensor(r#""dtype":"U8","data_offsets":[0,3]"#)),
        ("65 dimensions", {
            let shape = format!("[3{}]", ",1".repeat(64));
            tensor(&format!(r#""dtype":"U8","shape":{shape},"data_offsets":[0,3]"#))
        }),
        ("same name", {
            let t = |b, e| {
                format!(r#""t":{{"dtype":"U8","shape":[{}],"data_offsets":[{b},{e}]}}"#, e - b)
            };
            format!("{{{},{}}}", t(0, 1), t(1, 3))
        }),
        ("empty name", r#"{"":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#.to_owned()),
        ("overlap", {
            let t = |n, b, e| {
                format!(r#""{n}":{{"dtype":"U8","shape":[{}],"data_offsets":[{b},{e}]}}"#, e - b)
            };
            format!("{{{},{}}}", t("a", 0, 2), t("b", 1, 3))
        }),
        ("no object", " [1]".to_owned()),
        ("depth", format!("{{\"t\":{}{}}}", "[".repeat(5000), "]".repeat(5000))),
        ("bytes after", "{} x".to_owned()),
    ];
    assert!(parse(&tensor(r#""dtype":"U8","shape":[3],"data_offsets":[0,3]"#), 3).is_ok());
    for (what, json) in cases {
        let error = parse(&json, 3).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    for json in [
        r#"{"__metadata__":{"a":"1","a":"2"}}"#,
        r#"{"__metadata__":{},"__metadata__":{}}"#,
        r#"{"__metadata__":{"a":1}}"#,
        r#"{"__metadata__":null}"#,
    ] {
        assert_eq!(parse(json, 0).expect_err(json).kind(), ErrorKind::Corrupt);
    }
    let unknown = parse(&tensor(r#""dtype":"F4","shape":[3],"data_offsets":[0,3]"#), 3);
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::Incompatible);
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_read() {
    assert!(ParsedHeader::parse(&[0; 7], 7).is_err());
    for (len, file) in [(u64::MAX, u64::MAX), (100_000_001, u64::MAX), (93, 100)] {
        let error = ParsedHeader::data_start(len.to_le_bytes(), file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    assert_eq!(ParsedHeader::data_start(92u64.to_le_bytes(), 100).unwrap(), 100);
}
