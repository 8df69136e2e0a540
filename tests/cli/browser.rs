//! A report in Chromium: it is laid out, in light and dark, and nothing is complained of.

use std::fs;
use std::process::Stdio;

use crate::report::Job;
use crate::{assert_code, output_of, tier};

/// Puts into the page where things are; the page itself lets no script run.
const MEASURE: &str = r#"<script>addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height].map(Math.round); };
  const all = q => [...document.querySelectorAll(q)];
  const told = {
    figures: Object.fromEntries(all("figure > svg").map(e => [e.id, box(e)])),
    outside: all("figure text").filter(t => { const a = box(t), b = box(t.closest("svg"));
      return a[0] < b[0] - 2 || a[0] + a[2] > b[0] + b[2] + 2 || a[1] + a[3] > b[1] + b[3] + 3; }).map(t => t.textContent),
    empty: all("figure > svg").filter(e => e.querySelectorAll("rect,path,polyline,line").length < 3).map(e => e.id),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    wider: document.documentElement.scrollWidth - innerWidth,
  };
  const pre = document.createElement("pre"); pre.id = "measured";
  pre.textContent = JSON.stringify(told); document.body.append(pre);
});</script>"#;

/// What it prints: on standard output, and of the console.
fn open(page: &str, more: &[&str]) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let mut command = tier::chromium();
    // The page is our own, and root has no sandbox.
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.args(more).arg(format!("file://{page}"));
    command.env("HOME", profile.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = output_of(command.spawn().unwrap(), "the browser");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

fn measured(page: &str, more: &[&str]) -> serde_json::Value {
    let (dom, stderr) = open(page, &[&["--dump-dom"], more].concat());
    let found = dom.split_once("<pre id=\"measured\">").unwrap_or_else(|| panic!("{stderr}{dom}"));
    serde_json::from_str(found.1.split_once("</pre>").unwrap().0).unwrap()
}

fn assert_laid_out(told: &serde_json::Value) {
    let figures = told["figures"].as_object().unwrap();
    for id in ["stall", "bandwidth", "metric-curve", "tensors-map", "disk-curve"] {
        let at: Vec<i64> = serde_json::from_value(figures[id].clone()).unwrap();
        assert!(at[2] > 300 && at[3] > 60, "{id} is {at:?}");
    }
    assert!(figures.keys().any(|id| id.starts_with("timeline-")), "{figures:?}");
    let mut ends: Vec<(i64, i64)> = figures
        .values()
        .map(|at| (at[1].as_i64().unwrap(), at[1].as_i64().unwrap() + at[3].as_i64().unwrap()))
        .collect();
    ends.sort_unstable();
    // Rounded to whole pixels.
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0 + 2), "figures overlap: {ends:?}");
    assert_eq!(told["outside"], serde_json::json!([]), "texts leave their figures");
    assert_eq!(told["empty"], serde_json::json!([]), "figures without content");
    assert_eq!(told["wider"], 0, "the page has to be moved sideways");
}

#[test]
fn a_report_is_laid_out_in_light_and_dark() {
    if !tier::has(&[tier::Need::Chromium]) {
        return;
    }
    let job = Job::new();
    assert_code(&job.report(&[]), 0);
    let html = fs::read_to_string(job.page()).unwrap();
    let (before, policy) = html.split_once("<meta http-equiv").unwrap();
    let after = policy.split_once(">\n").unwrap().1;
    let probe = job.folder.at("probe.html");
    fs::write(&probe, format!("{before}{after}{MEASURE}")).unwrap();
    let size = "--window-size=1000,1200";
    let light = measured(&probe, &[size, "--blink-settings=preferredColorScheme=1"]);
    let dark =
        measured(&probe, &["--window-size=600,1200", "--blink-settings=preferredColorScheme=0"]);
    for told in [&light, &dark] {
        assert_laid_out(told);
    }
    assert_eq!(light["background"], "rgb(255, 255, 255)");
    assert_eq!(
        (&dark["background"], &dark["ink"]),
        (&"rgb(18, 22, 28)".into(), &"rgb(230, 237, 243)".into())
    );
    let shots =
        ["light", "dark"].map(|name| format!("{}/report-{name}.png", env!("CARGO_TARGET_TMPDIR")));
    for (shot, scheme) in shots.iter().zip(["1", "0"]) {
        let (to, scheme) = (
            format!("--screenshot={shot}"),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        );
        let (_, stderr) = open(&job.page(), &["--window-size=1000,3600", &to, &scheme]);
        assert!(!stderr.contains("CONSOLE"), "{stderr}");
    }
    let blank = job.folder.at("blank.html");
    fs::write(&blank, "<!DOCTYPE html>").unwrap();
    let shot = job.folder.at("blank.png");
    open(&blank, &["--window-size=1000,3600", &format!("--screenshot={shot}")]);
    let bytes = |path: &str| fs::metadata(path).unwrap().len();
    assert!(shots.iter().all(|path| bytes(path) > 5 * bytes(&shot)), "a page looks blank");
    assert_ne!(fs::read(&shots[0]).unwrap(), fs::read(&shots[1]).unwrap());
}
