use super::nested::DEPTH_MAX;
use super::*;
use crate::codec;

#[test]
fn display_names_everything_and_escapes_control_characters() {
    let error = Error::new(ErrorKind::Corrupt, "checksum mismatch")
        .with_path("runs/e1/model.safetensors")
        .with_tensor("a\u{1b}[31m")
        .with_offset(4096)
        .at_rank(Rank::new(3))
        .in_phase("place");
    let text = error.to_string();
    assert_eq!(
        text,
        "corrupt checkpoint: checksum mismatch (`runs/e1/model.safetensors`, tensor \
         `a\\u{1b}[31m`, offset 4096, rank 3, phase \"place\")"
    );
}

#[test]
fn a_cause_outranks_the_loss_of_a_peer() {
    let lost = Error::new(ErrorKind::PeerLost, "connection closed").at_rank(Rank::new(0));
    let full = Error::new(ErrorKind::Storage, "disk full").at_rank(Rank::new(2));
    let verdict = Error::from_failures(vec![lost, full]);
    assert_eq!(verdict.kind(), ErrorKind::Storage);
    assert_eq!(verdict.rank(), Some(Rank::new(2)));
    assert_eq!(verdict.failures().len(), 2);
}

/// The bytes of an error that lies in `depth` lists of failures, one in the other.
fn nested(depth: usize) -> Vec<u8> {
    let leaf = codec::encode(&Error::new(ErrorKind::Storage, "full")).unwrap();
    // What comes last is how many failures it holds.
    let (head, none) = leaf.split_at(leaf.len() - 8);
    let around = [head, &1u64.to_le_bytes()].concat();
    [around.repeat(depth).as_slice(), head, none].concat()
}

fn depth(error: &Error) -> usize {
    error.failures().iter().map(|failure| depth(failure) + 1).max().unwrap_or(0)
}

#[test]
fn failures_within_failures_end_somewhere() {
    let told = |depth| codec::decode::<Error>(&nested(depth));
    assert_eq!(told(DEPTH_MAX).as_ref().map(depth), Ok(DEPTH_MAX));
    for too_deep in [1_000_000, DEPTH_MAX + 1] {
        assert_eq!(told(too_deep).unwrap_err().kind(), ErrorKind::Corrupt, "{too_deep}");
    }
    // A refusal leaves nothing behind.
    assert_eq!(told(DEPTH_MAX).as_ref().map(depth), Ok(DEPTH_MAX));
}

#[test]
fn every_verdict_can_be_told() {
    let full = Error::new(ErrorKind::Storage, "full");
    let mut verdict = full.clone();
    for round in 1..2 * DEPTH_MAX {
        verdict = Error::from_failures(vec![verdict, full.clone()]);
        assert_eq!(depth(&verdict), round.min(DEPTH_MAX));
        let told = codec::decode(&codec::encode(&verdict).unwrap());
        assert_eq!(told.as_ref(), Ok(&verdict));
    }
}
