//! Headers of safetensors files of other tools.

use std::fs;

use tch_checkpoint::ErrorKind::{self, Corrupt, Incompatible};

use super::{Case, Make, each_is_refused};
use crate::forge::Forge;
use crate::judge;
use crate::scene::{Scene, with_header};

const FILE: &str = "a.safetensors";

const fn file(rule: &'static str, kind: ErrorKind, word: &'static str, make: fn(&Scene)) -> Case {
    Case { rule, kind, word, at: FILE, unverified: true, make: Make::Placed(make) }
}

/// Puts `w` and `v` as these texts say; `v` after 17920 bytes of `w` by itself is good.
fn of(scene: &Scene, w: &str, v: &str) {
    scene.put(FILE, with_header(&format!("{{{w},{v}}}")));
}

const W: &str = r#""w":{"dtype":"F32","shape":[70,64],"data_offsets":[0,17920]}"#;
const V: &str = r#""v":{"dtype":"U8","shape":[100],"data_offsets":[17920,18020]}"#;

fn v(scene: &Scene, v: &str) {
    of(scene, W, v);
}

fn raw(scene: &Scene, length: u64, rest: &[u8], file_len: u64) {
    scene.put(FILE, [length.to_le_bytes().as_slice(), rest].concat());
    let file = fs::OpenOptions::new().write(true).open(scene.dir().join(FILE)).unwrap();
    file.set_len(file_len).unwrap();
}

fn repeated(scene: &Scene, begin: &str, part: &str, count: usize, end: &str) {
    of(scene, W, &format!("{begin}{}{end}", part.repeat(count)));
}

pub const CASES: [Case; 52] = [
    file("a header of 2^64 - 1 bytes", Corrupt, "at most 100000000", |s| {
        raw(s, u64::MAX, b"{}", 1 << 30);
    }),
    file("a header of 2^63 bytes", Corrupt, "at most 100000000", |s| raw(s, 1 << 63, b"{}", 10)),
    file("a header of one byte too many", Corrupt, "at most 100000000", |s| {
        raw(s, 100_000_001, b"{}", 1 << 40);
    }),
    file("a header longer than its file", Corrupt, "header of", |s| raw(s, 1000, b"{}", 100)),
    file("a file of seven bytes", Corrupt, "", |s| raw(s, 0, b"", 7)),
    file("an empty file", Corrupt, "", |s| raw(s, 0, b"", 0)),
    file("a header of no bytes", Corrupt, "no JSON object", |s| raw(s, 0, b"{}", 100)),
    file("a header of nothing in a terabyte", Corrupt, "no JSON object", |s| {
        raw(s, 100_000_000, b"", 1 << 40);
    }),
    file("a header that does not begin at once", Corrupt, "no JSON object", |s| {
        s.put(FILE, with_header(&format!(" {{{W},{V}}}")));
    }),
    file("a list", Corrupt, "no JSON object", |s| s.put(FILE, with_header("[]"))),
    file("a header that does not end", Corrupt, "malformed", |s| {
        s.put(FILE, with_header(&format!("{{{W}")));
    }),
    file("two headers", Corrupt, "malformed", |s| {
        s.put(FILE, with_header(&format!("{{{W},{V}}}{{}}")));
    }),
    file("comments", Corrupt, "malformed", |s| of(s, &format!("/* x */{W}"), V)),
    file("a comma too many", Corrupt, "malformed", |s| of(s, W, &format!("{V},"))),
    file("text that is no text", Corrupt, "malformed", |s| {
        let mut bytes = with_header(&format!("{{{W},{V}}}"));
        bytes[10] = 0xff;
        s.put(FILE, bytes);
    }),
    file("half a pair of code units", Corrupt, "malformed", |s| {
        v(s, &V.replace("\"v\"", "\"\\ud800\""));
    }),
    file("lists in lists, 50,000 deep", Corrupt, "malformed", |s| {
        repeated(s, "\"v\":", "[", 50_000, &"]".repeat(50_000));
    }),
    file("objects in objects, 50,000 deep", Corrupt, "malformed", |s| {
        repeated(s, "\"v\":", "{\"a\":", 50_000, &format!("1{}", "}".repeat(50_000)));
    }),
    file("lists of metadata, 50,000 deep", Corrupt, "malformed", |s| {
        repeated(s, "\"__metadata__\":{\"a\":", "[", 50_000, "}");
    }),
    file("a megabyte of numbers", Corrupt, "malformed", |s| {
        repeated(s, r#""v":{"dtype":"U8","shape":["#, "1,", 500_000, "1]}");
    }),
    file("a number of a megabyte", Corrupt, "malformed", |s| {
        repeated(s, r#""v":{"dtype":"U8","shape":["#, "9", 1_000_000, "]}");
    }),
    file("a number beyond all numbers", Corrupt, "malformed", |s| {
        v(s, &V.replace("[100]", "[1e400]"));
    }),
    file("a length with a fraction", Corrupt, "malformed", |s| v(s, &V.replace("[100]", "[1e2]"))),
    file("a negative length", Corrupt, "malformed", |s| v(s, &V.replace("[100]", "[-100]"))),
    file("a length that is no number", Corrupt, "malformed", |s| {
        v(s, &V.replace("[100]", "[NaN]"))
    }),
    file("a length of 2^64", Corrupt, "malformed", |s| {
        v(s, &V.replace("[100]", "[18446744073709551616]"));
    }),
    file("lengths that are text", Corrupt, "malformed", |s| v(s, &V.replace("[100]", "\"100\""))),
    file("a tensor that is nothing", Corrupt, "malformed", |s| v(s, "\"v\":null")),
    file("a tensor without a shape", Corrupt, "missing field", |s| {
        v(s, &V.replace(r#""shape":[100],"#, ""));
    }),
    file("a field that nobody knows", Corrupt, "unknown field", |s| {
        v(s, &V.replace("\"dtype\"", "\"pickle\":\"x\",\"dtype\""));
    }),
    file("a field whose name is a megabyte", Corrupt, "unknown field", |s| {
        v(s, &V.replace("\"dtype\"", &format!("\"{}\":1,\"dtype\"", "k".repeat(1 << 20))));
    }),
    file("a field whose name drives a terminal", Corrupt, "unknown field", |s| {
        v(s, &V.replace("\"dtype\"", "\"\\u001b[2J\\nFORGED ok\":1,\"dtype\""));
    }),
    file("a text of a megabyte for a number", Corrupt, "malformed", |s| {
        v(s, &V.replace("[17920,", &format!("[\"{}\",", "x".repeat(1 << 20))));
    }),
    file("a field twice", Corrupt, "duplicate field", |s| {
        v(s, &V.replace("\"dtype\"", "\"dtype\":\"U8\",\"dtype\""));
    }),
    file("a tensor twice in a header", Corrupt, "twice", |s| {
        of(s, W, &format!("{V},{V}"));
    }),
    file("a tensor twice in a header, once in other letters", Corrupt, "twice", |s| {
        of(s, W, &format!("{V},{}", V.replace("\"v\"", "\"\\u0076\"")));
    }),
    file("metadata twice", Corrupt, "twice", |s| {
        of(s, "\"__metadata__\":{},\"__metadata__\":{}", &format!("{W},{V}"));
    }),
    file("a key of the metadata twice", Corrupt, "twice", |s| {
        of(s, "\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}", &format!("{W},{V}"));
    }),
    file("metadata that is no text", Corrupt, "malformed", |s| {
        of(s, "\"__metadata__\":{\"a\":1}", &format!("{W},{V}"));
    }),
    file("a tensor that has no name", Corrupt, "is empty", |s| v(s, &V.replace("\"v\"", "\"\""))),
    file("a tensor of a name of 5000 bytes", Corrupt, "longer than 4096", |s| {
        v(s, &V.replace("\"v\"", &format!("\"{}\"", "v".repeat(5000))));
    }),
    file("a tensor whose name drives a terminal", Corrupt, "control characters", |s| {
        v(s, &V.replace("\"v\"", "\"v\\u001b]0;x\\u0007\""));
    }),
    file("65 dimensions", Corrupt, "malformed", |s| {
        v(s, &V.replace("[100]", &format!("[100{}]", ",1".repeat(64))));
    }),
    file("a shape whose product overflows", Corrupt, "overflows", |s| {
        v(s, &V.replace("[100]", "[4294967296,4294967296,100]"));
    }),
    file("a shape of nothing times too much", Corrupt, "overflows", |s| {
        v(s, &V.replace("[100]", "[0,9223372036854775807,9]").replace("18020", "17920"));
    }),
    file("offsets that do not hold the shape", Corrupt, "do not hold", |s| {
        v(s, &V.replace("[100]", "[99]"));
    }),
    file("offsets that run backwards", Corrupt, "do not hold", |s| {
        v(s, &V.replace("[17920,18020]", "[18020,17920]"));
    }),
    file("offsets at the end of all numbers", Corrupt, "expected", |s| {
        v(s, &V.replace("[17920,18020]", "[18446744073709551515,18446744073709551615]"));
    }),
    file("tensors over one another", Corrupt, "expected", |s| {
        v(s, &V.replace("[17920,18020]", "[17919,18019]"));
    }),
    file("a hole between tensors", Corrupt, "expected", |s| {
        v(s, &V.replace("[17920,18020]", "[17921,18021]"));
    }),
    file("bytes behind the last tensor", Corrupt, "the file has", |s| {
        let forge = Forge::honest(2, 0);
        s.put(FILE, [forge.header.as_slice(), &forge.data, b"MZ"].concat());
    }),
    file("data that is not there", Corrupt, "the file has", |s| {
        let forge = Forge::honest(2, 0);
        s.put(FILE, [forge.header.as_slice(), &forge.data[1..]].concat());
    }),
];

/// Told apart from damage: somebody may know it one day.
pub const UNKNOWN: [Case; 3] = [
    file("a dtype of others", Incompatible, "unknown dtype `F4`", |s| {
        v(s, &V.replace("\"U8\"", "\"F4\""));
    }),
    file("a dtype of a megabyte", Incompatible, "unknown dtype", |s| {
        v(s, &V.replace("\"U8\"", &format!("\"{}\"", "F".repeat(1 << 20))));
    }),
    file("a dtype that drives a terminal", Incompatible, "unknown dtype", |s| {
        v(s, &V.replace("\"U8\"", "\"\\u001b[2J\\nFORGED ok\""));
    }),
];

#[test]
fn headers_that_break_a_rule_are_refused() {
    each_is_refused("headers", &CASES);
    each_is_refused("dtypes of headers", &UNKNOWN);
}

/// As many bytes as a header may have, none of which is there: what they would take when parsed is
/// asked for, and given back at once.
#[test]
fn the_longest_header_takes_a_few_times_its_length() {
    let _alone = crate::alone();
    let scene = Scene::new();
    raw(&scene, 100_000_000, b"{", 1 << 40);
    let path = scene.dir().join(FILE);
    let wanted = tch_checkpoint::catalog::Wanted::parse(path).unwrap().or_unverified();
    for read in judge::read_all(&scene, &wanted) {
        let error = judge::refused(read.result);
        assert_eq!(error.kind(), Corrupt, "{}: {error}", read.reader);
        assert!(read.peak < 700_000_000, "{}: {} bytes", read.reader, read.peak);
    }
}
