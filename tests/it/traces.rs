//! What others see of saves and loads: spans, and the trace file of each rank. Both belong to a
//! process, so that each test starts one, which runs [`child`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::save::{SaveOptions, save_async_overlapped};
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use crate::harness::*;

const DIR: &str = "TCH_CHECKPOINT_TEST_TRACES";
const TRACE: &str = "TCH_CHECKPOINT_TRACE";
const HUNG: Duration = Duration::from_secs(40);

/// Writes down what it is told of this crate: `name in parent field=value …`.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl Spans {
    fn tell(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let span = context.span(id).unwrap();
        let parent = span.parent().map_or("nothing", |parent| parent.name());
        let level = span.metadata().level();
        self.tell(format!("{level} {} in {parent}{}", span.name(), fields.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.tell(format!("{} is told{}", context.span(id).unwrap().name(), fields.0));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if *event.metadata().level() <= Level::WARN {
            self.tell(format!("warned{}", fields.0));
        } else if let Some(span) = context.event_span(event) {
            self.tell(format!("said in {}", span.name()));
        }
    }
}

/// One of each: a save that is waited for, one beside training, one into a file, two loads, and
/// one that fails.
fn everything(group: &ProcessGroup, storage: &Arc<dyn Storage>) {
    let tensors = usual_tensors();
    save_state(group, &**storage, "runs/waited", &tensors, 1).unwrap();
    let (state, options) = (state(&tensors, group, 2), SaveOptions::default());
    let (at, after) = (path("runs/beside"), Box::new(|_: &_| {}));
    let pending = save_async_overlapped(group, storage, &at, &state, &options, after).unwrap();
    pending.wait_copied();
    pending.wait().unwrap();
    save_single_file(group, &**storage, &path("runs/file"), &state, &options).unwrap();
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        load_state(group, &**storage, "runs/waited", &tensors, 1, atomicity).unwrap();
    }
    load_state(group, &**storage, "runs/absent", &tensors, 1, Atomicity::Atomic).unwrap_err();
}

#[test]
#[ignore = "runs as a process of its own"]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let spans = Spans::default();
    tracing::subscriber::set_global_default(Registry::default().with(spans.clone())).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    on_ranks(2, move |group| everything(&group, &storage));
    std::fs::write(format!("{dir}/spans"), spans.0.lock().unwrap().join("\n")).unwrap();
}

/// The spans of a process with that trace.
fn run(dir: &Path, trace: Option<&Path>) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "traces::child"]).stdout(Stdio::null());
    command.env(DIR, dir).env_remove(TRACE);
    if let Some(trace) = trace {
        command.env(TRACE, trace);
    }
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + HUNG;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let spans = std::fs::read_to_string(dir.join("spans")).expect("the process has failed");
    spans.lines().map(str::to_owned).collect()
}

fn count(spans: &[String], what: &str) -> usize {
    spans.iter().filter(|span| span.starts_with(what)).count()
}

#[test]
fn spans_of_saves_and_loads_lie_in_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let spans = run(dir.path(), None);
    for (what, times) in [
        // Of each of two ranks.
        ("INFO save in nothing path=runs/waited step=1 world_size=2 rank=", 2),
        ("INFO save in nothing path=runs/beside step=0 world_size=2 rank=", 2),
        ("INFO save in nothing path=runs/file step=0 world_size=2 rank=", 2),
        ("DEBUG plan in save", 6),
        ("DEBUG write in save", 6),
        ("DEBUG commit in save", 6),
        // At the call, and in the thread.
        ("DEBUG stage in save", 4),
        ("INFO load in nothing path=runs/waited world_size=2 rank=", 4),
        ("INFO load in nothing path=runs/absent world_size=2 rank=", 2),
        ("DEBUG manifest in load", 6),
        ("DEBUG plan in load", 4),
        ("DEBUG read in load", 4),
        ("DEBUG place in load", 4),
        ("save is told bytes=", 6),
        ("write is told bytes=", 6),
        ("load is told bytes=", 4),
        ("read is told bytes=", 4),
        ("warned", 0),
    ] {
        assert_eq!(count(&spans, what), times, "{what} in {spans:#?}");
    }
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 1, "nobody asked for a trace");
}

/// The events of a trace in order of their ends.
fn events(path: &Path, rank: u64) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<Value> = serde_json::from_str(&(text.clone() + "\n]")).unwrap();
    for (line, event) in text.lines().skip(1).zip(&events) {
        let line = line.strip_suffix(',').unwrap_or(line);
        assert_eq!(serde_json::from_str::<Value>(line).unwrap(), *event, "one a line");
        assert_eq!(event["pid"], rank);
    }
    events.into_iter().filter(|event| event["ph"] == "X").collect()
}

/// The last event of each name.
fn of_checkpoint<'a>(events: &'a [Value], of: &str, at: &str) -> BTreeMap<&'a str, &'a Value> {
    let own = events.iter().filter(|event| event["cat"] == of && event["args"]["path"] == at);
    own.map(|event| (event["name"].as_str().unwrap(), event)).collect()
}

fn span_of(event: &Value) -> (u64, u64) {
    let begin = event["ts"].as_u64().unwrap();
    (begin, begin + event["dur"].as_u64().unwrap())
}

#[test]
fn each_rank_leaves_a_trace_of_every_phase() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    run(dir.path(), Some(&trace));
    for (rank, file) in [(0, "trace.json"), (1, "trace.rank1.json")] {
        let all = events(&dir.path().join(file), rank);
        for (of, at, parts, of_coordinator) in [
            ("save", "runs/waited", "plan write commit save", "checks seal publish rename"),
            (
                "save",
                "runs/beside",
                "plan stage held copying write commit save",
                "checks seal publish rename",
            ),
            ("save", "runs/file", "plan write commit save", "checks publish rename"),
            ("load", "runs/waited", "manifest plan read place load", ""),
        ] {
            let own = of_checkpoint(&all, of, at);
            let more = if rank == 0 { of_coordinator } else { "" };
            let expected: BTreeSet<&str> =
                parts.split_whitespace().chain(more.split_whitespace()).collect();
            assert!(own.keys().copied().eq(expected), "{of} {at}: {:?}", own.keys());
            let (begin, end) = span_of(own[of]);
            for (name, event) in &own {
                let (from, to) = span_of(event);
                assert!(begin <= from && to <= end, "{at}: {name} is inside");
                assert!(event["args"].get("failed").is_none(), "{at}: {name}");
            }
            if of == "save" {
                assert!(own["write"]["args"]["bytes"].as_u64().unwrap() > 0);
                assert!(own["write"]["args"]["fsync_us"].is_u64());
            }
        }
        let beside = of_checkpoint(&all, "save", "runs/beside");
        let row = |name: &str| beside[name]["tid"].as_u64().unwrap();
        assert_eq!((row("plan"), row("held"), row("copying")), (1, 1, 1), "what the caller does");
        assert_eq!((row("write"), row("commit"), row("save")), (2, 2, 2), "what the thread does");
        let absent = of_checkpoint(&all, "load", "runs/absent");
        assert_eq!(absent["load"]["args"]["failed"], true);
        assert_eq!(absent["manifest"]["args"]["failed"], true);
    }
}

#[test]
fn without_a_place_for_a_trace_each_rank_warns_once_and_saves() {
    let dir = tempfile::tempdir().unwrap();
    let spans = run(dir.path(), Some(&dir.path().join("absent/trace.json")));
    let warned: Vec<_> = spans.iter().filter(|span| span.starts_with("warned")).collect();
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(warned.iter().all(|text| text.contains(TRACE) && text.contains("absent")));
    assert_eq!(count(&spans, "save is told bytes="), 6);
}
