//! `report`: what is on the page, and that nothing else gets there.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tch_checkpoint::tensor::Dtype;

use crate::snapshot::{Made, assert_snapshot, assert_text, verb};
use crate::{Folder, Ran, assert_code, flip, run, shard};

/// A directory of checkpoints with the traces and the page of a job.
pub(crate) struct Job {
    pub(crate) folder: Folder,
    traces: Vec<String>,
}

impl Job {
    /// Eight saves on three ranks, of which two are gone and one failed.
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        fs::create_dir(folder.at("run")).unwrap();
        let run = Folder::new();
        for step in 1..=8u64 {
            made(step).save(&run);
            let at = format!("step-{:04}", step * 100);
            fs::rename(run.at(&at), folder.at(&format!("run/{at}"))).unwrap();
        }
        for gone in ["step-0200", "step-0400"] {
            fs::remove_dir_all(folder.at(&format!("run/{gone}"))).unwrap();
        }
        std::os::unix::fs::symlink("step-0700", folder.at("run/best")).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let begin = now - Duration::from_secs(900);
        let traces = (0..3).map(|rank| trace(&folder, rank, begin)).collect();
        Self { folder, traces }
    }

    pub(crate) fn page(&self) -> String {
        self.folder.at("report.html")
    }

    pub(crate) fn report(&self, more: &[&str]) -> Ran {
        let (dir, page) = (self.folder.at("run"), self.page());
        let traces = self.traces.iter().map(String::as_str);
        let arguments = ["report", &dir, "-o", &page, "--trace"].into_iter().chain(traces);
        run(&arguments.chain(more.iter().copied()).collect::<Vec<_>>())
    }

    fn text(&self) -> String {
        fs::read_to_string(self.page()).unwrap()
    }
}

fn made(step: u64) -> Made {
    let loss = 2.0 / (step as f64 + 1.0) + if step == 8 { 0.2 } else { 0.0 };
    let mut made = Made::new(step * 100, step).metric("val_loss", loss).metric("accuracy", 0.5);
    let losses: Vec<f64> = (1..=step).map(|entry| 2.0 / (entry as f64 + 1.0)).collect();
    made.state.values.set("history.val_loss", tch_checkpoint::state::Value::Floats(losses));
    for layer in 0..6 {
        let name = format!("encoder.layers.{layer}.attention.weight");
        made = made.floats(&name, &[64, 64], &vec![0.5; 4096]);
        made = made.floats(&format!("encoder.layers.{layer}.bias"), &[64], &[0.5; 64]);
        let name = format!("optimizer.encoder.{layer}.exp_avg");
        made = made.tensor_of("optimizer", &name, Dtype::F32, &[64, 48], vec![0; 64 * 48 * 4]);
    }
    made.tensor("embedding.weight", Dtype::F16, &[256, 64], vec![0; 32768])
}

/// What a rank writes of these saves, with times of its own.
fn trace(folder: &Folder, rank: u64, start: Duration) -> String {
    let mut text = "[\n".to_owned();
    for step in 1..=9u64 {
        let at = u64::try_from(start.as_micros()).unwrap() + step * 90_000_000;
        let failed = step == 9;
        let beside = step % 2 == 0;
        let path = format!("jobs/run/step-{:04}", step * 100);
        let mut event = |name: &str, begin: u64, end: u64, row: u32| {
            let (ts, dur) = (at + begin * 1000, (end - begin) * 1000);
            let failed = if failed && name == "save" { ",\"failed\":true" } else { "" };
            text += &format!(
                ",\n{{\"name\":\"{name}\",\"cat\":\"save\",\"ph\":\"X\",\"ts\":{ts},\"dur\":{dur},\"pid\":{rank},\
                 \"tid\":{row},\"args\":{{\"path\":\"{path}\",\"bytes\":150000,\"step\":{}{failed}}}}}",
                step * 100
            );
        };
        let row = if beside { 2 } else { 1 };
        let written = 30 + 20 * rank + step;
        event("plan", 0, 8 + rank, row);
        if beside {
            event("held", 0, 9 + rank, 1);
            event("stage", 9 + rank, 18 + rank, row);
        }
        event("write", 18 + rank, written, row);
        if rank == 0 {
            event("checks", 75 + step, 80 + step, row);
            event("publish", 80 + step, 94 + step, row);
        }
        event("commit", written, 100 + step, row);
        event("save", 0, 100 + step, row);
    }
    let path = folder.at(&format!("trace.rank{rank}.json"));
    fs::write(&path, text.replacen("[\n,\n", "[\n", 1)).unwrap();
    path
}

/// Tags become lines, times are left out: what a reader without a browser would see.
fn text_of(html: &str) -> String {
    let body = html.split_once("<body>").unwrap().1;
    let (mut text, mut rest) = (String::new(), body);
    while let Some((before, after)) = rest.split_once('<') {
        let (tag, next) = after.split_once('>').unwrap();
        if !before.trim().is_empty() && !text.ends_with("UTC\n") {
            text += before.trim();
            text.push('\n');
        }
        rest = match tag {
            "time" => next.split_once("</time>").unwrap().1,
            _ if tag.contains("time tick") => next.split_once("</text>").unwrap().1,
            _ => next,
        };
        if ["h1", "h2", "h3", "table", "/table"].contains(&tag) {
            text += &format!("[{tag}]\n");
        } else if tag.starts_with("svg id") {
            text += &format!("[figure {}]\n", tag.split('"').nth(1).unwrap());
        }
    }
    text
}

#[test]
fn a_report_tells_what_is_known() {
    let job = Job::new();
    let ran = job.report(&[]);
    assert_snapshot("report", &ran, &job.folder);
    let text = text_of(&job.text()).replace(job.folder.path(), "DIR");
    assert_text("report_page", &text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    let ran = job.report(&["--force", "--json", "--monitor", "val_loss", "--mode", "min"]);
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&said["checkpoints"], &said["saves"]), (&6.into(), &9.into()));
    assert_eq!(said["bytes"], job.text().len());
}

/// No reader of the page fetches or runs anything, and every part that opens ends.
#[test]
fn a_report_is_one_whole_file() {
    let job = Job::new();
    assert_code(&job.report(&[]), 0);
    let html = job.text();
    for outside in ["http:", "https:", "//", "<script", "@import", "<iframe", "src=", "onload"] {
        assert!(!html.contains(outside), "{outside}");
    }
    let mut open = Vec::new();
    let voids = ["!DOCTYPE", "meta", "link"];
    for tag in html.split('<').skip(1).map(|part| part.split_once('>').unwrap().0) {
        let name = tag.split([' ', '\n', '/']).next().unwrap_or_default();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed.trim()), "{tag}");
        } else if !voids.contains(&name) && !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let ids: Vec<&str> =
        html.split(" id=\"").skip(1).map(|part| part.split_once('"').unwrap().0).collect();
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "{ids:?}");
    for part in html.split("href=\"#").skip(1).chain(html.split("url(#").skip(1)) {
        let id = part.split(['"', ')']).next().unwrap();
        assert!(ids.contains(&id), "{id}");
    }
}

#[test]
fn names_of_checkpoints_are_text_and_nothing_else() {
    let folder = Folder::new();
    fs::create_dir(folder.at("run")).unwrap();
    let evil = "</title><script>alert(1)</script><img src=x onerror='a'>\"&\u{202e}";
    let made = Made::new(1, 1).metric(evil, 1.0).floats(evil, &[64, 64], &[0.0; 4096]);
    let made = made.metric("plain", 1.0);
    let run_dir = Folder(tempfile::tempdir_in(folder.at("run")).unwrap());
    let name = "<script>alert(2)<&'\">";
    made.save_as(&run_dir, name);
    fs::create_dir(run_dir.at("x</h1><script>")).unwrap_err();
    let page = folder.at("r.html");
    let trace = folder.at("t.json");
    fs::write(&trace, format!("[\n{}", serde_json::json!({
        "name": "save", "cat": "save", "ph": "X", "ts": 1, "dur": u64::MAX, "pid": u32::MAX, "tid": 1,
        "args": { "path": name, "bytes": u64::MAX, "step": u64::MAX }
    }))).unwrap();
    assert_code(
        &verb("report", run_dir.path(), &["-o", &page, "--monitor", evil, "--trace", &trace]),
        0,
    );
    let html = fs::read_to_string(&page).unwrap();
    for bad in ["<script", "<img", "</title><s", "onerror='", "\u{202e}"] {
        assert!(!html.contains(bad), "{bad}");
    }
    assert!(html.contains("&lt;script&gt;alert(2)&lt;&amp;&#39;&quot;&gt;"));
}

#[test]
fn a_report_of_nothing_or_of_damage_says_so() {
    let folder = Folder::new();
    fs::create_dir(folder.at("run")).unwrap();
    let (dir, page) = (folder.at("run"), folder.at("r.html"));
    assert_code(&verb("report", &dir, &["-o", &page]), 0);
    let text = text_of(&fs::read_to_string(&page).unwrap());
    assert!(
        text.contains("There is no checkpoint.") && text.contains("No trace was given"),
        "{text}"
    );
    let run_dir = Folder::new();
    made(1).save(&run_dir);
    made(2).save(&run_dir);
    flip(&std::path::Path::new(&run_dir.at("step-0200")).join("manifest.bin"), 30);
    fs::write(shard(&run_dir.at("step-0100")), "short").unwrap();
    assert_code(&verb("report", run_dir.path(), &["-o", &page, "--force"]), 0);
    let text = text_of(&fs::read_to_string(&page).unwrap());
    assert!(text.contains("0 committed, 2 damaged, 0 partial"), "{text}");
    assert_code(&verb("report", &folder.at("missing"), &["-o", &folder.at("m.html")]), 7);
    assert_eq!(folder.entries(), ["r.html", "run"]);
}

#[test]
fn what_is_there_is_replaced_if_asked_for_only_and_never_half() {
    let job = Job::new();
    fs::write(job.page(), "mine").unwrap();
    let ran = job.report(&[]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(job.text(), "mine");
    assert_code(&job.report(&["--force"]), 0);
    assert!(job.text().ends_with("</html>\n"));
    let entries = job.folder.entries();
    assert!(entries.iter().all(|name| !name.starts_with('.')), "{entries:?}");
    let dir = job.folder.at("run");
    for bad in [job.folder.at("absent/r.html"), "/".to_owned(), dir.clone()] {
        let ran = verb("report", &dir, &["-o", &bad, "--force"]);
        assert!(ran.code != Some(0) && !ran.stderr.contains("panicked"), "{bad}: {}", ran.stderr);
    }
    let notes = job.folder.at("notes");
    fs::write(&notes, "text").unwrap();
    assert_code(&verb("report", &dir, &["-o", &job.folder.at("n"), "--trace", &notes]), 7);
    assert!(!job.folder.entries().contains(&"n".to_owned()));
}
