use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// What `work` returns, which takes no time worth speaking of unless it hangs.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    wait.recv_timeout(Duration::from_secs(60)).expect("it hangs")
}

fn content(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(len).collect()
}

/// Blocks that no direct I/O takes.
pub(in crate::cli::bench) fn misplaced() -> Blocks {
    let mut blocks = Blocks::new().unwrap();
    blocks.free.iter_mut().for_each(|block| block.begin += 1);
    blocks
}

#[test]
fn a_raw_file_holds_the_bytes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".x.bench-raw-0");
    let bytes = content(BLOCK + 12_345);
    let share = [&bytes[..7], &bytes[7..BLOCK - 1], &bytes[BLOCK - 1..]];
    let mut blocks = Blocks::new().unwrap();
    // What an interrupted run has left is taken away, once for each file system's way.
    for is_direct in [true, false] {
        fs::write(&path, "left").unwrap();
        let made = write_as(&mut blocks, &path, &share, &Progress::default(), is_direct);
        match made {
            Err(e) if is_direct => assert_eq!(e.kind(), io::ErrorKind::InvalidInput),
            made => {
                let made = made.unwrap();
                assert!(fs::read(&path).unwrap() == bytes);
                drop(made);
            }
        }
        assert!(!path.exists());
        assert_eq!(blocks.free.len(), DEPTH);
    }
    let made = write(&mut blocks, &path, &[], &Progress::default()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    drop(made);
    let nowhere = dir.path().join("nowhere/x");
    assert!(write(&mut blocks, &nowhere, &share, &Progress::default()).is_err());
}

#[test]
fn a_failed_write_ends_and_gives_every_block_back() {
    let (dir, share) = (tempfile::tempdir().unwrap(), content(5 * BLOCK));
    let path = dir.path().join("x");
    fs::write(&path, "").unwrap();
    let left = in_time(move || {
        let (mut blocks, progress) = (Blocks::new().unwrap(), Progress::default());
        for _ in 0..2 {
            let read_only = File::open(&path).unwrap();
            assert!(pump(&read_only, &mut blocks, &[&share], &progress).is_err());
        }
        let made = write(&mut blocks, &path, &[&share], &progress).unwrap();
        assert!(fs::read(&path).unwrap() == share);
        drop(made);
        blocks.free.len()
    });
    assert_eq!(left, DEPTH);
}

/// What a file system does that takes the flag and then no write.
#[test]
fn refused_direct_writes_are_tried_once() {
    let (dir, share) = (tempfile::tempdir().unwrap(), content(5 * BLOCK + 7));
    let path = dir.path().join("x");
    let (left, tried) = in_time(move || {
        let (mut blocks, progress) = (misplaced(), Progress::default());
        let tried = [0, 1].map(|_| {
            let made = write(&mut blocks, &path, &[&share], &progress).unwrap();
            assert!(fs::read(&path).unwrap() == share);
            (made.is_direct, blocks.is_direct)
        });
        (blocks.free.len(), tried)
    });
    assert_eq!(left, DEPTH);
    // A file system without sectors takes them wherever they lie.
    assert!(tried == [(false, false); 2] || tried == [(true, true); 2], "{tried:?}");
}
