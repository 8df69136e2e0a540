//! What is shared in a pickle, and how often it may be there afterwards.

use super::*;

fn read(bytes: &[u8]) -> Result<Tree<Described>> {
    described(&Pickle::read(bytes, &is_known)?.0)
}

/// One text of so many letters, in a list as often.
fn repeated(letters: u32, times: usize) -> Vec<u8> {
    let mut pickle = [&b"X"[..], &letters.to_le_bytes()].concat();
    pickle.extend(vec![b'a'; letters as usize]);
    pickle.extend(b"q\x00](");
    pickle.extend(b"h\x00".repeat(times));
    pickle.extend(b"e.");
    pickle
}

#[test]
fn what_is_shared_is_there_as_often_as_it_is_held() {
    let Tree::List(items) = read(&repeated(10, 20_000)).unwrap() else { panic!("no list") };
    let text = Tree::Plain(Plain::Text("a".repeat(10)));
    assert!(items.len() == 20_000 && items.iter().all(|item| *item == text));
}

#[test]
fn what_is_shared_does_not_multiply() {
    let mut lists = b"N".to_vec();
    for _ in 0..30 {
        // A list that holds the last one twice.
        lists.extend(b"q\x00](h\x00h\x00e");
    }
    lists.push(b'.');
    let knot = b"]q\x00h\x00a.".to_vec();
    let cases = [("a long text", repeated(10_000, 10_000)), ("lists", lists), ("a knot", knot)];
    for (what, pickle) in cases {
        let error = read(&pickle).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}: {error}");
    }
}

#[test]
fn tensors_have_as_many_dimensions_as_there_are() {
    let tensor = |dimensions: usize| {
        let mut pickle = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage".to_vec();
        pickle.extend(b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0(");
        pickle.extend(b"K\x01".repeat(dimensions));
        pickle.extend(b"t(");
        pickle.extend(b"K\x01".repeat(dimensions));
        pickle.extend(b"t\x89}tR.");
        read(&pickle)
    };
    assert!(matches!(tensor(DIMENSIONS_MAX), Ok(Tree::Tensor(_))));
    assert_eq!(tensor(DIMENSIONS_MAX + 1).unwrap_err().kind(), ErrorKind::Corrupt);
}
