//! What each rank did when in a save, with waits marked.

use std::time::Duration;

use super::html::{
    escaped, folded, note, of_seconds, rate as per_second, seconds, short, table, time,
};
use super::saves::{Kind, Rank, Save};
use super::svg::{Area, Figure, Mark, Scale, WIDTH, legend};
use crate::cli::format::bytes;

/// So many of the newest saves are drawn, and the one that took longest.
const SAVES_MAX: usize = 4;
/// Of a save so many ranks are drawn: rank 0, which commits, those that failed, and those that wrote
/// longest.
const RANKS_MAX: usize = 16;
const ROW: f64 = 30.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 130.0;

pub(super) fn timelines(saves: &[&Save]) -> String {
    if saves.is_empty() {
        return note(
            "No trace was given, so nothing is known of the phases of saves. Jobs write traces with \
             <code>TCH_CHECKPOINT_TRACE=trace.json</code>; give them to the report with <code>--trace</code>.",
        );
    }
    let mut html = legend(&[
        ("plan", "plan (waiting for plans of others included)"),
        ("stage", "copying to memory"),
        ("write", "writing, fsync included"),
        ("commit", "commit, by rank 0"),
        ("wait", "waiting for other ranks"),
        ("held", "below a row: training is held up"),
    ]);
    let newest = saves.len().saturating_sub(SAVES_MAX);
    let longest = saves.iter().enumerate().max_by_key(|(_, save)| save.time());
    let earlier = longest.filter(|(index, _)| *index < newest).map(|(index, _)| index);
    for index in earlier.into_iter().chain(newest..saves.len()).rev() {
        let what = if earlier == Some(index) { "the longest of all" } else { "" };
        if let Some(save) = saves.get(index) {
            html.push_str(&timeline(index, save, what));
        }
    }
    if saves.len() > SAVES_MAX {
        html.push_str(&note(format!(
            "{} saves are known; drawn are the newest, and the one that took longest. All are in \
             <a href=\"#saves\">stall and bandwidth</a>.",
            saves.len()
        )));
    }
    html
}

fn timeline(index: usize, save: &Save, what: &str) -> String {
    let ranks = drawn(save);
    let height = ROW * ranks.len() as f64 + 44.0;
    let plot = Area { x: LEFT, y: 6.0, width: WIDTH - LEFT - RIGHT, height: height - 44.0 };
    let total = save.time().as_secs_f64();
    let scale = Scale::of([0.0, total.max(1e-6)], plot.x, plot.x + plot.width);
    let mut figure = Figure::new(height);
    for (row, (number, rank)) in ranks.iter().enumerate() {
        let y = plot.y + ROW * row as f64;
        draw(&mut figure, save, *number, rank, &scale, y);
    }
    figure.x_axis(&scale, plot, &|tick| seconds(of_seconds(tick)));
    let title = heading(save, what);
    let mut html = format!("<h3>{title}</h3>\n");
    html.push_str(&note(summary(save, ranks.len())));
    html.push_str(&figure.finish(
        &format!("timeline-{index}"),
        &title,
        &summary(save, ranks.len()),
    ));
    html + &folded("as a table", times(&ranks))
}

fn heading(save: &Save, what: &str) -> String {
    let step = save.step.map_or(String::new(), |step| format!(", step {step}"));
    let what = if what.is_empty() { String::new() } else { format!(" ({what})") };
    format!("{}{step}{what}", short(save.name(), 80))
}

/// Without elements.
fn summary(save: &Save, drawn: usize) -> String {
    let mut text = format!("{} on {} ranks", seconds(save.time()), save.ranks.len());
    if save.ranks.len() > drawn {
        text.push_str(&format!(
            " (shown are {drawn}: rank 0, and those that failed or wrote longest)"
        ));
    }
    if let (Some(size), Some(rate)) = (save.bytes(), save.bandwidth()) {
        text.push_str(&format!(", {} of tensors, {}", bytes(size), per_second(rate)));
    }
    text.push_str(&format!(", training held up for {}", seconds(save.stall())));
    if let Some(slowest) = save.slowest() {
        text.push_str(&format!("; rank {slowest} wrote longest"));
    }
    if save.failed() {
        text.push_str("; failed: not committed");
    }
    text
}

/// By number.
fn drawn(save: &Save) -> Vec<(u32, &Rank)> {
    let mut ranks: Vec<(u32, &Rank)> = save.ranks.iter().map(|(n, rank)| (*n, rank)).collect();
    ranks.sort_by_key(|(n, rank)| {
        (*n != 0, !rank.failed, std::cmp::Reverse(rank.of(Kind::Write)), *n)
    });
    ranks.truncate(RANKS_MAX);
    ranks.sort_by_key(|(n, _)| *n);
    ranks
}

fn draw(figure: &mut Figure, save: &Save, number: u32, rank: &Rank, scale: &Scale, y: f64) {
    let at = |time: Duration| scale.at(time.saturating_sub(save.begin).as_secs_f64());
    figure.text("end", (LEFT - 8.0, y + 15.0), &format!("rank {number}"));
    for part in &rank.parts {
        let (x, end) = (at(part.begin), at(part.end));
        let area = Area { x, y, width: (end - x).max(0.4), height: ROW - 10.0 };
        let took = seconds(part.end.saturating_sub(part.begin));
        figure.rect(part.kind.name(), area, &format!("rank {number}: {} {took}", part.kind.name()));
    }
    // From its beginning on; copies that were waited for later are not shown apart.
    let (x, held) = (at(rank.begin), at(rank.begin.saturating_add(rank.stall)));
    figure.line("held", (x, y + ROW - 7.0), (held.max(x + 1.0), y + ROW - 7.0));
    let mark = match (rank.failed, save.slowest() == Some(number)) {
        (true, _) => " ✕ failed",
        (_, true) => " ◂ slowest",
        _ => "",
    };
    let text = format!("{}{mark}", seconds(rank.end.saturating_sub(rank.begin)));
    figure.text("start", (WIDTH - RIGHT + 8.0, y + 15.0), &text);
}

fn times(ranks: &[(u32, &Rank)]) -> String {
    let header =
        ["rank", "plan", "stage", "write", "written", "commit", "wait", "total", "held up"];
    table(
        &header,
        ranks.iter().map(|(number, rank)| {
            let of = |kind| seconds(rank.of(kind));
            vec![
                number.to_string(),
                of(Kind::Plan),
                of(Kind::Stage),
                of(Kind::Write),
                rank.written.map_or("–".to_owned(), bytes),
                of(Kind::Commit),
                of(Kind::Wait),
                seconds(rank.end.saturating_sub(rank.begin)),
                seconds(rank.stall),
            ]
        }),
    )
}

/// So many of the newest saves have bars, and rows in the table.
const BARS_MAX: usize = 120;

/// How long training was held up by each save, and how fast it was.
pub(super) fn stall_and_bandwidth(saves: &[&Save], is_here: &dyn Fn(&Save) -> bool) -> String {
    if saves.is_empty() {
        return note("Known from traces only, and none was given.");
    }
    let shown = &saves[saves.len().saturating_sub(BARS_MAX)..];
    let mut html = legend(&[
        ("write", "training waited for all of the save"),
        ("plan", "saved beside training: waited for a part of it"),
        ("gone", "failed"),
    ]);
    let stall = |save: &Save| Some(save.stall().as_secs_f64());
    html.push_str(&bars("stall", "Training held up, per save", shown, &stall, &|value| {
        seconds(of_seconds(value))
    }));
    html.push_str(&bars(
        "bandwidth",
        "Tensor bytes per second, per save",
        shown,
        &Save::bandwidth,
        &per_second,
    ));
    if shown.len() < saves.len() {
        html.push_str(&note(format!("The newest {} of {} saves.", shown.len(), saves.len())));
    }
    html + &folded("as a table", saves_table(shown, is_here))
}

fn bars(
    id: &str,
    title: &str,
    saves: &[&Save],
    value: &dyn Fn(&Save) -> Option<f64>,
    show: &dyn Fn(f64) -> String,
) -> String {
    let plot = Area { x: LEFT, y: 30.0, width: WIDTH - LEFT - 10.0, height: 130.0 };
    let mut figure = Figure::new(190.0);
    figure.text("head start", (0.0, 16.0), title);
    let most = saves.iter().filter_map(|save| value(save)).fold(0.0, f64::max);
    let bottom = plot.y + plot.height;
    let scale = Scale::of([0.0, if most > 0.0 { most } else { 1.0 }], bottom, plot.y);
    figure.y_axis(&scale, plot, show);
    let step = plot.width / saves.len() as f64;
    for (index, save) in saves.iter().enumerate() {
        let x = plot.x + step * index as f64;
        let shown = value(save).map_or("not known".to_owned(), show);
        let title = format!("{}: {shown}", short(save.name(), 60));
        let top = scale.at(value(save).unwrap_or(0.0));
        let width = (step * 0.75).min(60.0);
        let class = if save.is_beside() { "plan" } else { "write" };
        let area = Area { x: x + (step - width) / 2.0, y: top, width, height: bottom - top };
        figure.rect(class, area, &title);
        if save.failed() {
            // Above the bar, where it is seen.
            figure.mark(Mark::Cross, (x + step / 2.0, (top - 9.0).max(plot.y - 6.0)), "failed");
        }
    }
    figure.line("axis", (plot.x, bottom), (plot.x + plot.width, bottom));
    let label = |save: &&Save| save.step.map_or("".to_owned(), |step| format!("step {step}"));
    let ends = [(saves.first(), "start", plot.x), (saves.last(), "end", plot.x + plot.width)];
    for (save, anchor, x) in ends.into_iter().take(saves.len()) {
        let text = save.map(label).unwrap_or_default();
        figure.text(&format!("tick {anchor}"), (x, bottom + 17.0), &text);
    }
    figure.finish(id, title, &format!("{} saves, oldest at the left", saves.len()))
}

fn saves_table(saves: &[&Save], is_here: &dyn Fn(&Save) -> bool) -> String {
    let header =
        ["save", "step", "began", "took", "held up", "tensors", "bandwidth", "ranks", "outcome"];
    table(
        &header,
        saves.iter().rev().map(|save| {
            let outcome = match (save.failed(), is_here(save)) {
                (true, _) => "failed",
                (_, true) => "committed, kept",
                _ => "committed, removed since",
            };
            let unknown = || "–".to_owned();
            vec![
                escaped(save.name()),
                save.step.map_or_else(unknown, |step| step.to_string()),
                time(save.begin),
                seconds(save.time()),
                seconds(save.stall()),
                save.bytes().map_or_else(unknown, bytes),
                save.bandwidth().map_or_else(unknown, per_second),
                save.ranks.len().to_string(),
                outcome.to_owned(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::saves::Part;

    #[test]
    fn of_many_ranks_those_are_drawn_that_tell_something() {
        let rank = |number: u32| {
            let end = Duration::from_millis(u64::from(number) + 1);
            let part = Part { kind: Kind::Write, begin: Duration::ZERO, end };
            (number, Rank { end, failed: number == 7, parts: vec![part], ..Rank::default() })
        };
        let save = Save { ranks: (0..64).map(rank).collect(), ..Save::default() };
        let numbers: Vec<u32> = drawn(&save).iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 7].into_iter().chain(50..64).collect::<Vec<_>>());
    }
}
