//! Files are read back byte by byte, by what the formats say alone.

use std::path::Path;

use super::record::{crc32c, masked};
use super::*;

/// An event as it was read.
#[derive(Debug, PartialEq)]
enum Read {
    Version(String),
    Start(u64),
    Scalars(u64, Vec<(String, f32)>),
}

/// Takes bytes from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = self.take(1)[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        unreachable!()
    }

    /// Field number, and what it holds; numbers as their bytes.
    fn fields(mut self) -> Vec<(u64, Vec<u8>)> {
        let mut fields = Vec::new();
        while !self.0.is_empty() {
            let key = self.varint();
            let held = match key & 7 {
                0 => self.varint().to_le_bytes().to_vec(),
                1 => self.take(8).to_vec(),
                2 => {
                    let len = usize::try_from(self.varint()).unwrap();
                    self.take(len).to_vec()
                }
                5 => self.take(4).to_vec(),
                other => panic!("kind {other}"),
            };
            fields.push((key >> 3, held));
        }
        fields
    }
}

fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let mut rest = Bytes(bytes);
        let len = rest.take(8);
        let sum = |bytes: &[u8]| masked(crc32c(bytes)).to_le_bytes();
        assert_eq!(rest.take(4), sum(len));
        let len = u64::from_le_bytes(len.try_into().unwrap());
        let data = rest.take(usize::try_from(len).unwrap());
        assert_eq!(rest.take(4), sum(data));
        all.push(data.to_vec());
        bytes = rest.0;
    }
    all
}

fn event(record: &[u8]) -> Read {
    let fields = Bytes(record).fields();
    let [(1, time), (2, step), (kind, held)] = &fields[..] else { panic!("{fields:?}") };
    assert!(f64::from_le_bytes(time[..].try_into().unwrap()) > 1.7e9);
    let step = u64::from_le_bytes(step[..].try_into().unwrap());
    match kind {
        3 => Read::Version(String::from_utf8(held.clone()).unwrap()),
        7 => {
            assert_eq!(held, &[1 << 3, 1], "status: start");
            Read::Start(step)
        }
        5 => {
            let values = Bytes(held).fields().into_iter().map(|(field, value)| {
                assert_eq!(field, 1);
                let fields = Bytes(&value).fields();
                let [(1, tag), (2, number)] = &fields[..] else { panic!("{fields:?}") };
                let number = f32::from_le_bytes(number[..].try_into().unwrap());
                (String::from_utf8(tag.clone()).unwrap(), number)
            });
            Read::Scalars(step, values.collect())
        }
        other => panic!("field {other}"),
    }
}

/// The events of each file, in the order of names.
fn read(directory: &Path) -> Vec<Vec<Read>> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.collect();
    files.sort();
    let of = |file| records(&std::fs::read(file).unwrap()).iter().map(|r| event(r)).collect();
    files.into_iter().map(of).collect()
}

fn version() -> Read {
    Read::Version("brain.Event:2".to_owned())
}

fn one(step: u64, tag: &str, value: f32) -> Read {
    Read::Scalars(step, vec![(tag.to_owned(), value)])
}

#[test]
fn checksums_are_those_of_the_standard() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(b""), 0);
    assert_eq!(masked(0), 0xA282_EAD8);
    assert_eq!(masked(0x8000), 0xA282_EAD9);
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = EventLog::new(&dir.path().join("a/b"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing before it is needed");
    log.scalars(300, [("loss", 0.5), ("é/\u{1}", -1e30), ("nan", f64::NAN)]);
    log.scalars(u64::MAX, [("loss", 1e300)]);
    log.scalars(7, []);
    let files = read(&dir.path().join("a/b"));
    let [events] = &files[..] else { panic!("{files:?}") };
    assert_eq!(events[..2], [version(), Read::Start(0)]);
    let Read::Scalars(300, values) = &events[2] else { panic!("{events:?}") };
    assert_eq!(values[..2], [("loss".to_owned(), 0.5), ("é/\u{1}".to_owned(), -1e30)]);
    assert!(values[2].1.is_nan());
    assert_eq!(events[3], one(i64::MAX as u64, "loss", f32::INFINITY));
    assert_eq!(events.len(), 4);
}

#[test]
fn a_run_that_goes_back_begins_a_file_that_takes_back_and_sorts_last() {
    let dir = tempfile::tempdir().unwrap();
    // A clock that was wrong once.
    std::fs::write(dir.path().join("events.out.tfevents.9000000000.x.1"), "").unwrap();
    let log = EventLog::new(dir.path());
    log.go_on_with(11);
    log.scalars(20, [("loss", 2.0)]);
    log.go_on_with(21);
    log.scalars(21, [("loss", 2.5)]);
    log.go_on_with(16);
    log.go_on_with(6);
    log.scalars(7, [("loss", 3.0)]);
    EventLog::new(dir.path()).scalars(1, [("loss", 4.0)]);
    let first = vec![version(), Read::Start(11), one(20, "loss", 2.0), one(21, "loss", 2.5)];
    let second = vec![version(), Read::Start(6), one(7, "loss", 3.0)];
    let third = vec![version(), Read::Start(0), one(1, "loss", 4.0)];
    assert_eq!(read(dir.path()), [vec![], first, second, third]);
}

#[test]
fn a_save_and_a_load_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = EventLog::new(dir.path());
    let seconds = Duration::from_secs;
    let mut report = SaveReport { tensor_bytes: 4096, total: seconds(2), ..Default::default() };
    report.commit.rename = seconds(1);
    report.commit.seal = seconds(3);
    log.saved(5, &report);
    let times = LoadTimes { bytes_wanted: 7, total: seconds(8), ..Default::default() };
    log.loaded(6, &times);
    let files = read(dir.path());
    let Read::Scalars(5, saved) = &files[0][2] else { panic!("{files:?}") };
    let told = |name: &str| saved.iter().find(|(tag, _)| tag == name).map(|(_, value)| *value);
    assert_eq!(told("checkpoint/bytes"), Some(4096.0));
    assert_eq!(told("checkpoint/bytes_per_second"), Some(2048.0));
    assert_eq!(told("checkpoint/commit_seconds"), Some(4.0));
    assert_eq!(saved.len(), 8);
    let loaded = [("checkpoint/load_bytes", 7.0), ("checkpoint/load_seconds", 8.0)];
    let loaded = loaded.map(|(tag, value)| (tag.to_owned(), value)).to_vec();
    assert_eq!(files[0][3], Read::Scalars(6, loaded));
}

#[test]
fn what_cannot_be_written_hinders_nothing_and_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("taken");
    std::fs::write(&at, "a file").unwrap();
    let log = EventLog::new(&at);
    log.scalars(1, [("loss", 1.0)]);
    std::fs::remove_file(&at).unwrap();
    log.scalars(2, [("loss", 1.0)]);
    log.go_on_with(1);
    log.scalars(3, [("loss", 1.0)]);
    assert!(!at.exists());
}
