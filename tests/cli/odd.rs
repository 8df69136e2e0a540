//! Odd amounts, and odd places to save to.

use crate::{Folder, assert_code, run};

#[test]
fn odd_amounts() {
    let folder = Folder::new();
    let ran = folder.save("1", &["--bytes", "10", "--ranks", "0"]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("rank"), "{}", ran.stderr);
    assert_code(&folder.save("1", &["--bytes", "10", "--ranks", "4294967295"]), 7);
    assert_eq!(folder.entries(), [""; 0]);
    assert_code(&folder.save("2", &["--bytes", "0"]), 0);
    assert_code(&folder.save("3", &["--bytes", "0", "--ranks", "2"]), 0);
    assert_code(&folder.save("4", &["--bytes", "5", "--ranks", "7"]), 0);
    assert_code(&folder.save("18446744073709551615", &["--bytes", "1"]), 0);
    for step in ["00000002", "00000003", "00000004", "18446744073709551615"] {
        assert_code(&run(&["verify", &folder.at(&format!("step-{step}"))]), 0);
        assert_code(&run(&["inspect", &folder.at(&format!("step-{step}"))]), 0);
    }
}

#[test]
fn directories_that_cannot_be_written() {
    let folder = Folder::new();
    std::fs::write(folder.at("file"), "text").unwrap();
    for dir in
        ["/proc/nothing/here", "/dev/null/below", &folder.at("file/below"), &folder.at("file")]
    {
        let ran = run(&["stress", "save", "--dir", dir, "--step", "1", "--bytes", "10"]);
        assert!(matches!(ran.code, Some(3 | 7)), "{dir}: {:?} {}", ran.code, ran.stderr);
        assert!(ran.stderr.contains(dir.split('/').nth(1).unwrap()), "{dir}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    assert_eq!(folder.entries(), ["file"]);
}
