//! The page: its parts in order, and what all figures share.

use std::path::Path;
use std::time::Duration;

use super::data::Data;
use super::html::{escaped, folded, note, section, table, time};
use super::saves::Save;
use super::{curve, timeline, treemap};
use crate::cli::format::bytes;
use crate::manifest::CheckpointState;
use crate::shown;

const STYLE: &str = include_str!("style.css");

/// Nothing is fetched, and nothing runs, whatever a name of a checkpoint may say.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Patterns, so that figures can be read without colour.
const PATTERNS: &str = r#"<svg class="defs" aria-hidden="true" focusable="false"><defs>
<pattern id="p-plan" width="6" height="6" patternUnits="userSpaceOnUse"><rect width="6" height="6" style="fill:var(--bg)"/><circle cx="3" cy="3" r="1.5" style="fill:var(--plan)"/></pattern>
<pattern id="p-stage" width="5" height="5" patternUnits="userSpaceOnUse"><rect width="5" height="5" style="fill:var(--bg)"/><path d="M2 0v5" style="stroke:var(--stage);stroke-width:2"/></pattern>
<pattern id="p-commit" width="7" height="7" patternUnits="userSpaceOnUse"><rect width="7" height="7" style="fill:var(--bg)"/><path d="M0 0l7 7M7 0l-7 7" style="stroke:var(--commit);stroke-width:1.6"/></pattern>
<pattern id="p-wait" width="12" height="12" patternUnits="userSpaceOnUse"><rect width="12" height="12" style="fill:var(--bg)"/><path d="M-1 13l14 -14" style="stroke:var(--muted);stroke-width:1"/></pattern>
<pattern id="t-0" width="40" height="40" patternUnits="userSpaceOnUse"><rect width="40" height="40" style="fill:var(--write);opacity:.22"/></pattern>
<pattern id="t-1" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" style="fill:var(--plan);opacity:.16"/><path d="M-1 9l10 -10" style="stroke:var(--plan);stroke-width:1;opacity:.6"/></pattern>
<pattern id="t-2" width="9" height="9" patternUnits="userSpaceOnUse"><rect width="9" height="9" style="fill:var(--commit);opacity:.16"/><circle cx="4" cy="4" r="1.3" style="fill:var(--commit);opacity:.7"/></pattern>
<pattern id="t-3" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" style="fill:var(--stage);opacity:.16"/><path d="M0 4h8" style="stroke:var(--stage);stroke-width:1;opacity:.6"/></pattern>
</defs></svg>
"#;

/// The whole of it.
pub(super) fn page(dir: &Path, data: &Data, now: Duration) -> String {
    let title = escaped(&shown::path(dir));
    let body = [summary(data, now), contents(), figures(data), unknown(data)].concat();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>Checkpoints of {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{PATTERNS}\
         <header><h1>Checkpoints of {title}</h1></header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

fn summary(data: &Data, now: Duration) -> String {
    let count = |state| data.survey.of_state(state).count();
    let name = |is: fn(&curve::Kept) -> bool| {
        data.kept.iter().rev().find(|kept| is(kept)).map_or("none known".to_owned(), |kept| {
            format!("{}, step {}", escaped(&kept.info.name), kept.info.step)
        })
    };
    let size: u64 = data.kept.iter().map(|kept| kept.file_bytes).sum();
    let states = format!(
        "{} committed, {} damaged, {} partial",
        data.kept.len(),
        count(CheckpointState::Damaged),
        count(CheckpointState::Partial)
    );
    let entries = [
        ("checkpoints", states),
        ("bytes", bytes(size)),
        ("latest", name(|kept| kept.is_latest)),
        ("best", name(|kept| kept.is_best)),
        ("saves in traces", data.saves.len().to_string()),
        ("written", format!("{}, by tch-checkpoint {}", time(now), env!("CARGO_PKG_VERSION"))),
    ];
    let entries: String =
        entries.iter().map(|(what, text)| format!("<dt>{what}</dt><dd>{text}</dd>\n")).collect();
    format!("<dl>\n{entries}</dl>\n{}", damaged(data))
}

fn damaged(data: &Data) -> String {
    let rows: Vec<_> = data
        .survey
        .of_state(CheckpointState::Damaged)
        .take(50)
        .map(|info| vec![escaped(&info.name), escaped(info.fault.as_deref().unwrap_or("unknown"))])
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let count = data.survey.of_state(CheckpointState::Damaged).count();
    folded(&format!("{count} damaged"), table(&["checkpoint", "what is wrong"], rows))
}

fn contents() -> String {
    let parts = [
        ("timeline", "Phases"),
        ("saves", "Stall and bandwidth"),
        ("metric", "Metric"),
        ("tensors", "Tensors"),
        ("disk", "Disk"),
        ("unknown", "What is not known"),
    ];
    let links: String =
        parts.iter().map(|(id, title)| format!("<a href=\"#{id}\">{title}</a>\n")).collect();
    format!("<nav aria-label=\"Parts\">\n{links}</nav>\n")
}

fn figures(data: &Data) -> String {
    let saves: Vec<&Save> = data.saves.iter().collect();
    let is_gone = |save: &&&Save| !save.failed() && !data.is_here(save);
    let gone: Vec<&Save> = saves.iter().filter(is_gone).copied().collect();
    let mut metric = curve::metric(data.monitor.as_deref(), &data.kept, &gone);
    let newest = data.newest.as_ref();
    for (index, (name, losses)) in newest.iter().flat_map(|newest| &newest.history).enumerate() {
        metric.push_str(&curve::history(name, losses, index));
    }
    let tensors = newest.map_or_else(
        || note("There is no checkpoint."),
        |newest| treemap::treemap(&newest.name, newest.tensors.clone()),
    );
    let disk = curve::disk(&data.kept, &saves) + &curve::checkpoints(&data.kept);
    let stall = timeline::stall_and_bandwidth(&saves, &|save| data.is_here(save));
    [
        section("timeline", "Phases of saves, by rank", timeline::timelines(&saves)),
        section("saves", "Stall and bandwidth, by save", stall),
        section("metric", "Metric and checkpoints", metric),
        section("tensors", "Sizes of tensors", tensors),
        section("disk", "Disk over time", disk),
    ]
    .concat()
}

/// What a reader might miss, and why it is not here.
fn unknown(data: &Data) -> String {
    let traces = &data.traces;
    let counts = [
        (data.elsewhere, "saves of the traces went into other directories"),
        (data.loose_events, "events of the traces belong to no save that has ended"),
        (traces.unreadable, "lines of the traces are no events"),
    ];
    let mut lines = vec![
        "Phases, stall and bandwidth of a save are in no checkpoint, but in traces alone."
            .to_owned(),
        "Of checkpoints that were removed nothing remains but what traces and the history tell."
            .to_owned(),
        "Checkpoints that are single files are not listed.".to_owned(),
        "Clocks of hosts may differ: then ranks of several hosts are moved against each other."
            .to_owned(),
    ];
    let known = counts.into_iter().filter(|(count, _)| *count > 0);
    lines.extend(known.map(|(count, what)| format!("{count} {what}.")));
    if traces.is_cut {
        lines.push("Of the traces only the beginning is used: they are too large.".to_owned());
    }
    let lines: String = lines.iter().map(|line| format!("<li>{line}</li>\n")).collect();
    section("unknown", "What is not known", format!("<ul>\n{lines}</ul>\n"))
}
