use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::chrome::{Event, Row, begin, file_of};
use super::{
    CommitTimes, LoadTimes, RANKS_LISTED_MAX, RANKS_LISTED_OF_MANY, RankLoad, RankSave, SaveBytes,
    SaveReport, WriteTimes,
};
use crate::codec;
use crate::plan::load::LoadReport;
use crate::rank::Rank;
use crate::tensor::TensorName;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn rank_save(total: u64, bytes: u64) -> RankSave {
    let write = WriteTimes {
        stage: MS(total / 4),
        hash: MS(total / 2),
        write: Duration::from_nanos(123_456_789),
        fsync: MS(1),
        total: MS(total),
        bytes,
    };
    RankSave { write, stage: MS(total * 2), held: Some(MS(total * 3)) }
}

fn report_of(ranks: &[RankSave]) -> SaveReport {
    let commit = CommitTimes { checks: MS(1), seal: MS(2), publish: MS(3), rename: MS(4) };
    let bytes = SaveBytes { tensors: 1_490_000_000, files: 1_490_004_096, linked: 0 };
    SaveReport::of(ranks, bytes, MS(7), commit, MS(810))
}

#[test]
fn the_slowest_rank_stands_beside_the_median() {
    let report = report_of(&[rank_save(20, 5), rank_save(90, 6), rank_save(30, 7)]);
    let slowest = report.slowest.unwrap();
    assert_eq!((slowest.rank, slowest.time, slowest.median), (Rank::new(1), MS(90), MS(30)));
    assert_eq!(report.write, rank_save(90, 6).write, "where its time went");
    assert_eq!((report.stage, report.stall), (MS(180), MS(270)));
    assert_eq!((report.world_size, report.plan, report.total), (3, MS(7), MS(810)));
    let listed: Vec<_> = report.ranks.iter().map(|r| (r.rank.get(), r.time, r.bytes)).collect();
    assert_eq!(listed, [(0, MS(20), 5), (1, MS(90), 6), (2, MS(30), 7)]);
    assert_eq!(report.to_string(), "1.49 GB in 0.81 s (1.8 GB/s), slowest rank 1");
}

#[test]
fn equals_are_told_apart_by_number_and_of_two_the_shorter_is_the_median() {
    let slowest = report_of(&[rank_save(9, 0), rank_save(9, 0)]).slowest.unwrap();
    assert_eq!((slowest.rank, slowest.median), (Rank::new(0), MS(9)));
    let slowest = report_of(&[rank_save(2, 0), rank_save(9, 0)]).slowest.unwrap();
    assert_eq!((slowest.rank, slowest.median), (Rank::new(1), MS(2)));
}

#[test]
fn a_rank_alone_is_not_the_slowest_and_who_waits_is_held_up_for_all_of_it() {
    let alone = RankSave { held: None, ..rank_save(5, 1) };
    let report = report_of(&[alone]);
    assert_eq!((report.slowest, report.stall, report.write), (None, MS(810), alone.write));
    assert_eq!(report.to_string(), "1.49 GB in 0.81 s (1.8 GB/s)");
    // A clock that stands still, as a simulated one may.
    let at_once = SaveReport { total: Duration::ZERO, tensor_bytes: 999, ..report };
    assert_eq!((at_once.to_string(), at_once.bandwidth()), ("999 B in 0.00 s".to_owned(), None));
    let json: Value = serde_json::from_str(&at_once.to_json()).unwrap();
    assert_eq!(json["bytes_per_second"], Value::Null);
}

#[test]
fn of_many_ranks_the_slowest_are_listed() {
    let save = |rank| rank_save(if rank % 5 == 0 { 100 + rank } else { rank }, rank);
    let all: Vec<RankSave> = (0..RANKS_LISTED_MAX as u64).map(save).collect();
    assert_eq!(report_of(&all).ranks.len(), RANKS_LISTED_MAX);
    let many: Vec<RankSave> = (0..100).map(save).collect();
    let report = report_of(&many);
    let listed: Vec<u32> = report.ranks.iter().map(|rank| rank.rank.get()).collect();
    let slowest: Vec<u32> = (20..100).step_by(5).collect();
    assert_eq!((listed.len(), listed), (RANKS_LISTED_OF_MANY, slowest));
    assert_eq!((report.world_size, report.slowest.unwrap().rank), (100, Rank::new(95)));
}

#[test]
fn reports_go_through_json_in_seconds_and_through_votes() {
    let report = report_of(&[rank_save(20, 5), rank_save(1234, 6)]);
    let text = report.to_json();
    assert!(!text.contains('\n'));
    assert_eq!(serde_json::from_str::<SaveReport>(&text).unwrap(), report);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["total"], &json["write"]["write"]), (&0.81.into(), &0.123_456_789.into()));
    assert_eq!(json["slowest"]["rank"], 1);
    assert_eq!(json["bytes_per_second"], report.bandwidth().unwrap());
    let decoded: SaveReport = codec::decode(&codec::encode(&report).unwrap()).unwrap();
    assert_eq!(decoded, report);
    for bad in [r#"{"total":-1}"#, r#"{"total":1e300}"#, r#"{"total":"soon"}"#] {
        assert!(serde_json::from_str::<SaveReport>(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_report_of_a_load_sums_bytes_and_takes_the_longest_of_each_phase() {
    let one = RankLoad { manifest: MS(9), plan: MS(1), read: MS(5), ..RankLoad::default() };
    let one = RankLoad { bytes_wanted: 10, bytes_read: 64, ..one };
    let other = RankLoad { read: MS(50), place: MS(3), bytes_wanted: 1, ..one };
    let times = LoadTimes::of(&[one, other], 2, MS(80));
    assert_eq!((times.bytes_wanted, times.bytes_read, times.restarts), (11, 128, 2));
    let phases = (times.manifest, times.plan, times.read, times.place);
    assert_eq!(phases, (MS(9), MS(1), MS(50), MS(3)));
    assert_eq!(times.slowest.unwrap().rank, Rank::new(1));
    let missing = vec![TensorName::new("w").unwrap()];
    let report = LoadReport { times, missing, ..LoadReport::default() };
    assert_eq!(serde_json::from_str::<LoadReport>(&report.to_json()).unwrap(), report);
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["times"]["bytes_per_second"], report.times.bandwidth().unwrap());
}

#[test]
fn each_rank_has_a_trace_of_its_own() {
    for (pattern, coordinators, thirds) in [
        ("trace.json", "trace.json", "trace.rank3.json"),
        ("a.b/trace", "a.b/trace", "a.b/trace.rank3"),
        ("out/x.y.json", "out/x.y.json", "out/x.y.rank3.json"),
        ("out/%r-of-%r.json", "out/0-of-0.json", "out/3-of-3.json"),
    ] {
        let of = |rank| file_of(Path::new(pattern), Rank::new(rank));
        assert_eq!((of(0), of(3)), (PathBuf::from(coordinators), PathBuf::from(thirds)));
    }
}

#[test]
fn a_trace_is_json_whenever_it_ends() {
    let event = Event {
        name: "write",
        of: "save",
        rank: Rank::new(3),
        row: Row::Beside,
        begin: Duration::from_nanos(1_999),
        time: Duration::from_nanos(2_001),
        path: "runs/\"a\"\n",
        step: None,
        bytes: Some(7),
        write: Some(WriteTimes { hash: MS(1), ..WriteTimes::default() }),
        failed: false,
    };
    let text = begin(Rank::new(3)) + &event.appended();
    let events: Vec<Value> = serde_json::from_str(&(text.clone() + "]")).unwrap();
    for line in text.lines().skip(1) {
        let line = line.strip_suffix(',').unwrap_or(line);
        assert!(serde_json::from_str::<Value>(line).unwrap().is_object());
    }
    assert_eq!(events.len(), 4);
    // From the second microsecond to the fourth: rounding keeps what is inside inside.
    assert_eq!((&events[3]["ts"], &events[3]["dur"]), (&1.into(), &3.into()));
    assert_eq!(
        (&events[3]["ph"], &events[3]["pid"], &events[3]["tid"]),
        (&"X".into(), &3.into(), &2.into())
    );
    let args = &events[3]["args"];
    assert_eq!((&args["path"], &args["bytes"]), (&"runs/\"a\"\n".into(), &7.into()));
    assert_eq!((&args["hash_us"], args.get("failed")), (&1000.into(), None));
    let failed = Event { failed: true, write: None, bytes: None, ..event }.appended();
    assert!(failed.contains(r#""failed":true"#) && !failed.contains("bytes"), "{failed}");
}
