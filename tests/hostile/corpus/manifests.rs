//! Manifests under a right checksum that break a rule, in both versions of the format.

use tch_checkpoint::ErrorKind::{Corrupt, Incompatible};
use tch_checkpoint::state::Value;

use super::{Case, Make, case, each_is_refused};
use crate::forge::{Forge, OtherFile, PAGE, V, W, W_BYTES};

const fn bad(rule: &'static str, word: &'static str, change: fn(&mut Forge)) -> Case {
    case(rule, Corrupt, word, Make::Forged(change))
}

fn name_of_data(forge: &mut Forge, name: &str) {
    forge.body.data_files[0].name = name.to_owned();
}

fn other(forge: &mut Forge, name: &str) {
    forge.body.other_files[0].name = name.to_owned();
}

fn huge(forge: &mut Forge, shape: &[u64]) {
    let w = &mut forge.body.tensors[W];
    w.shape = shape.to_vec();
    w.pieces[0].offsets = vec![0; shape.len()];
    w.pieces[0].lengths = shape.to_vec();
}

/// Claims as many bytes in `w` as a file of that length holds.
fn long(forge: &mut Forge, bytes: u64) {
    huge(forge, &[bytes / 4]);
    forge.body.data_files[0].len = PAGE + bytes + 100;
    forge.body.tensors[V].pieces[0].begin = PAGE + bytes;
    let blocks = bytes.div_ceil(forge.block) + 1;
    forge.body.sums_files[0].len = 32 + 16 * blocks;
}

pub const CASES: [Case; 68] = [
    bad("no rank", "at least one rank", |f| {
        f.body.world_size = 0;
        f.body.rank_values.clear();
    }),
    bad("a world of 2^32 - 1 ranks", "ranks", |f| f.body.world_size = u32::MAX),
    bad("values of more ranks than there are", "sets of rank values", |f| {
        f.body.rank_values.push(Vec::new());
    }),
    bad("a version of the library that is no version", "over 256 bytes", |f| {
        f.body.library_version = "x".repeat(257);
    }),
    bad("a version of libtorch that is no version", "over 256 bytes", |f| {
        f.body.libtorch_version = "\u{1b}]0;x".repeat(100);
    }),
    bad("a path that leaves the directory", "not the name of a data file", |f| {
        name_of_data(f, "../outside/x.safetensors");
    }),
    bad("an absolute path", "not the name of a data file", |f| name_of_data(f, "/etc/passwd")),
    bad("a name with a NUL", "not the name of a data file", |f| {
        let name = f.body.data_files[0].name.replace("model", "mod\0el");
        name_of_data(f, &name);
    }),
    bad("a name with a backslash", "not the name of a data file", |f| {
        let name = f.body.data_files[0].name.replace("model", "..\\model");
        name_of_data(f, &name);
    }),
    bad("a drive letter", "not the name of a data file", |f| name_of_data(f, "C:x.safetensors")),
    bad("no name", "not the name of a data file", |f| name_of_data(f, "")),
    bad("the directory itself", "not the name of a data file", |f| name_of_data(f, ".")),
    bad("the directory above", "not the name of a data file", |f| name_of_data(f, "..")),
    bad("a hidden file", "not the name of a data file", |f| {
        let name = format!(".{}", f.body.data_files[0].name);
        name_of_data(f, &name);
    }),
    bad("a name of more than 255 bytes", "not the name of a data file", |f| {
        let name = format!("{}{}", "x".repeat(300), f.body.data_files[0].name);
        name_of_data(f, &name);
    }),
    bad("a letter that looks like another", "not the name of a data file", |f| {
        let name = f.body.data_files[0].name.replace('e', "\u{435}");
        name_of_data(f, &name);
    }),
    bad("a name that runs backwards", "not the name of a data file", |f| {
        let name = f.body.data_files[0].name.replace("model", "\u{202e}model");
        name_of_data(f, &name);
    }),
    bad("a name that drives a terminal", "not the name of a data file", |f| {
        name_of_data(f, "\u{1b}[2J\u{1b}]0;owned\u{7}.safetensors");
    }),
    bad("rank 0 of names, which count from 1", "not the name of a data file", |f| {
        let name = f.body.data_files[0].name.replace("00001-of", "00000-of");
        name_of_data(f, &name);
    }),
    bad("a rank beyond the world", "not the name of a data file", |f| {
        let name = f.body.data_files[0].name.replace("00001-of", "00002-of");
        name_of_data(f, &name);
    }),
    bad("a file of another component than its name says", "another component", |f| {
        f.body.data_files[0].component = "optimizer".to_owned();
    }),
    bad("a file of another save than its name says", "save id", |f| {
        f.body.data_files[0].save_id = [0xcd; 16];
    }),
    bad("a component that leaves the directory", "component", |f| {
        f.body.tensors[W].component = "../x".to_owned();
    }),
    bad("a component called like sums", "component", |f| {
        f.body.tensors[W].component = "sums".to_owned();
    }),
    bad("a data file twice", "listed twice", |f| {
        let again = f.body.data_files[0].clone();
        f.body.data_files.push(again);
    }),
    bad("sums under the name of data", "not the name of a sums file", |f| {
        f.body.sums_files[0].name = f.body.data_files[0].name.clone();
    }),
    bad("sums that leave the directory", "not the name of a sums file", |f| {
        f.body.sums_files[0].name = "../outside/secret".to_owned();
    }),
    bad("another file that leaves the directory", "not allowed", |f| other(f, "../secret")),
    bad("code that leaves its folder", "not allowed", |f| other(f, "code/../../secret")),
    bad("code under an absolute path", "not allowed", |f| other(f, "code//etc/passwd")),
    bad("code in a hidden folder", "not allowed", |f| other(f, "code/.git/config")),
    bad("code too deep", "not allowed", |f| {
        other(f, &format!("code/{}x", "d/".repeat(9)));
    }),
    bad("a folder that is not for code", "not allowed", |f| other(f, "data/x")),
    bad("a second manifest", "not allowed", |f| other(f, "manifest.bin")),
    bad("code of more than a megabyte", "at most 1048576", |f| {
        f.body.other_files[0].len = (1 << 20) + 1;
    }),
    bad("code of too many files", "files", |f| {
        let file = |n| OtherFile { name: format!("code/{n:05}"), len: 0, hash: [0; 16] };
        f.body.other_files = (0..1001).map(file).collect();
    }),
    bad("a file that is a folder as well", "as a folder", |f| {
        let inner = OtherFile { name: "code/model.rs/x".into(), len: 1, hash: [0; 16] };
        f.body.other_files.insert(0, inner);
    }),
    bad("data that begins in front of the file", "cannot begin at 0", |f| {
        f.body.data_files[0].data_start = 0;
    }),
    bad("data that begins between pages", "cannot begin at 4097", |f| {
        f.body.data_files[0].data_start = PAGE + 1;
    }),
    bad("data that begins behind the file", "cannot begin at", |f| {
        f.body.data_files[0].data_start = 1 << 20;
    }),
    bad("a header of more than 100 MB", "cannot begin at", |f| {
        f.body.data_files[0].data_start = PAGE << 15;
        f.body.data_files[0].len = PAGE << 20;
    }),
    bad("a file of 2^64 - 1 bytes", "overflow", |f| f.body.data_files[0].len = u64::MAX),
    bad("a file of 2^63 bytes", "overflow", |f| f.body.data_files[0].len = 1 << 63),
    bad("lengths of which the sum overflows", "overflow", |f| {
        f.body.other_files[0] = OtherFile { name: "x".into(), len: i64::MAX as u64, hash: [0; 16] };
    }),
    bad("a file that its pieces do not fill", "the file at", |f| f.body.data_files[0].len += 1),
    bad("sums of which there is no file", "not listed", |f| f.body.data_files[0].sums_file = 9),
    bad("sums that begin behind their file", "leave their file", |f| {
        f.body.data_files[0].sums_begin = 1 << 40;
    }),
    bad("sums that begin at the end of all numbers", "leave their file", |f| {
        f.body.data_files[0].sums_begin = u64::MAX - 15;
    }),
    bad("sums between two sums", "leave their file", |f| f.body.data_files[0].sums_begin += 4),
    bad("a sums file with half a sum", "multiple of 16", |f| f.body.sums_files[0].len += 8),
    bad("a tensor twice", "unique and in order", |f| {
        let again = f.body.tensors[W].clone();
        f.body.tensors.push(again);
    }),
    bad("tensors out of order", "unique and in order", |f| f.body.tensors.swap(V, W)),
    bad("a tensor without a name", "is empty", |f| f.body.tensors[W].name = String::new()),
    bad("a name of a megabyte", "longer than 4096 bytes", |f| {
        f.body.tensors[W].name = "w".repeat(1 << 20);
    }),
    bad("a tensor's name that drives a terminal", "control characters", |f| {
        f.body.tensors[W].name = "w\u{1b}[31m\u{9b}2J".to_owned();
    }),
    bad("a name that safetensors reserves", "reserved", |f| {
        f.body.tensors[W].name = "__metadata__".to_owned();
    }),
    bad("a dtype that nobody knows", "cannot be decoded", |f| f.body.tensors[W].dtype = 77),
    bad("a product of lengths beyond 2^64", "overflows", |f| huge(f, &[1 << 40, 1 << 40])),
    bad("a tensor of 2^63 bytes", "overflows", |f| huge(f, &[1 << 61])),
    bad("nothing times more than everything", "overflows", |f| huge(f, &[0, i64::MAX as u64])),
    bad("a million dimensions", "64 dimensions", |f| huge(f, &[1; 1 << 20])),
    bad("a piece outside of its tensor", "is not inside", |f| {
        f.body.tensors[W].pieces[0].offsets = vec![1, 0];
    }),
    bad("a piece that ends beyond 2^64", "make no box", |f| {
        f.body.tensors[W].pieces[0].offsets = vec![u64::MAX, 0];
    }),
    bad("a piece of other dimensions", "is not inside", |f| {
        f.body.tensors[W].pieces[0].offsets = vec![0];
        f.body.tensors[W].pieces[0].lengths = vec![70 * 64];
    }),
    bad("a piece that ends beyond its file", "leaves its file", |f| {
        f.body.tensors[W].pieces[0].begin = u64::MAX - W_BYTES + 1;
    }),
    bad("pieces over one another", "gap or an overlap", |f| {
        f.body.tensors[V].pieces[0].begin -= 4;
    }),
    bad("a terabyte that is not there", "truncated", |f| long(f, 1 << 40)),
    case("a version to come", Incompatible, "version 3", Make::Forged(|f| f.version = 3)),
];

/// More rules of manifests, of lists and texts.
pub const MORE: [Case; 17] = [
    bad("a hole in a tensor", "slices hold", |f| f.body.tensors[W].pieces[0].lengths[0] = 69),
    bad("a tensor without pieces", "slices hold", |f| f.body.tensors[W].pieces.clear()),
    bad("the same piece twice", "unique and in order", |f| {
        let again = f.body.tensors[W].pieces[0].clone();
        f.body.tensors[W].pieces.push(again);
    }),
    bad("pieces that overlap in their tensor", "overlap", |f| {
        let w = &mut f.body.tensors[W];
        w.pieces[0].lengths = vec![40, 64];
        let mut second = w.pieces[0].clone();
        second.offsets = vec![30, 0];
        w.pieces.push(second);
    }),
    bad("an empty piece", "is empty", |f| {
        let mut empty = f.body.tensors[W].pieces[0].clone();
        empty.lengths = vec![0, 64];
        f.body.tensors[W].pieces.insert(0, empty);
    }),
    bad("a piece in a file that is not listed", "not listed", |f| {
        f.body.tensors[W].pieces[0].file = u32::MAX;
    }),
    bad("a file without a piece", "holds no piece", |f| {
        let mut empty = f.body.data_files[0].clone();
        empty.name = empty.name.replace("00001.", "00001-2.");
        empty.len = empty.data_start;
        f.body.data_files.push(empty);
    }),
    bad("an alias of nothing", "not an alias", |f| f.body.aliases[0].1 = "gone".to_owned()),
    bad("an alias that is a tensor", "not an alias", |f| f.body.aliases[0].0 = "v".to_owned()),
    bad("an alias twice", "unique and in order", |f| {
        let again = f.body.aliases[0].clone();
        f.body.aliases.push(again);
    }),
    bad("an alias that drives a terminal", "control characters", |f| {
        f.body.aliases[0].0 = "\u{1b}c".to_owned();
    }),
    bad("bytes behind the body", "left over", |f| f.splice = |body| body.push(0)),
    bad("a body that ends early", "cannot be decoded", |f| {
        f.splice = |body| body.truncate(body.len() / 2);
    }),
    bad("no body", "cannot be decoded", |f| f.splice = Vec::clear),
    bad("a name that is no text", "cannot be decoded", |f| {
        f.splice = |body| {
            let at = body.windows(5).position(|w| w == b"model").unwrap();
            body[at] = 0xff;
        };
    }),
    bad("a list of 2^64 - 1 entries", "cannot be decoded", |f| {
        // All of these are one byte long in version 2, and eight in version 1.
        f.splice = |body| {
            let at = body.windows(5).position(|w| w == b"0.1.0").unwrap();
            body.truncate(at + 5);
            body.extend([0xff; 64]);
        };
    }),
    bad("a list that is longer than memory", "cannot be decoded", |f| {
        f.body.values = vec![("x".to_owned(), Value::Floats(Vec::new()))];
        f.splice = |body| {
            let at = body.len() - 12;
            body.truncate(at);
            body.extend([253, 255, 255, 255, 255, 255, 0, 0, 0, 255, 255, 255, 255, 255, 255]);
        };
    }),
];

#[test]
fn manifests_that_break_a_rule_are_refused() {
    each_is_refused("manifests", &CASES);
    each_is_refused("lists and texts of manifests", &MORE);
}
