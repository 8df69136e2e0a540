use super::*;

#[test]
fn a_list_that_is_too_long_to_be_told_is_refused() {
    let mut info = CheckpointInfo::unknown("a", CheckpointState::Damaged);
    assert!(check_tellable(&[info.clone()], 200).is_ok());
    info.fault = Some("f".repeat(80));
    let error = check_tellable(&[info.clone()], 200).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    info.fault = None;
    info.metrics.insert("m".repeat(80), 0.0);
    assert!(check_tellable(&[info], 200).is_err());
}
