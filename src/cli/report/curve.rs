//! Curves: a metric over steps, with what became of checkpoints, and the disk over time.

use std::time::Duration;

use super::html::{escaped, folded, note, short, table, time, utc};
use super::saves::Save;
use super::svg::{Area, Figure, Mark, Scale, WIDTH, legend};
use crate::cli::format::{bytes, number};
use crate::manifest::CheckpointInfo;

/// Longer curves are drawn by the lowest and highest of so many parts.
const PARTS_MAX: usize = 300;
/// So many checkpoints have marks of their own: the newest, and the best.
const MARKS_MAX: usize = 400;
/// So many are rows of a table.
const ROWS_MAX: usize = 500;
const PLOT: Area = Area { x: 80.0, y: 14.0, width: WIDTH - 100.0, height: 220.0 };
const HEIGHT: f64 = 270.0;

/// A checkpoint that is there.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) info: CheckpointInfo,
    /// Of all files that its manifest lists.
    pub(super) file_bytes: u64,
    pub(super) is_best: bool,
    pub(super) is_latest: bool,
}

/// The curve of a metric over `kept`, which come oldest first, and what was saved and is gone.
pub(super) fn metric(name: Option<&str>, kept: &[Kept], gone: &[&Save]) -> String {
    let Some(name) = name else {
        let has_any = kept.iter().any(|kept| !kept.info.metrics.is_empty());
        return note(if has_any {
            "No checkpoint has a metric that is a finite number: <code>--monitor</code> shows others."
        } else {
            "No checkpoint has a metric."
        });
    };
    let value = |kept: &Kept| kept.info.metrics.get(name).copied();
    let with: Vec<&Kept> = kept.iter().filter(|kept| value(kept).is_some()).collect();
    if with.is_empty() {
        return note(format!("No checkpoint has the metric <b>{}</b>.", escaped(name)));
    }
    let finite = |kept: &&&Kept| value(kept).is_some_and(f64::is_finite);
    let mut html = legend(&[
        ("kept", "kept"),
        ("best", "best"),
        ("gone", "saved and removed since: its number is not recorded"),
        ("odd", "not finite"),
    ]);
    let known: Vec<(f64, f64)> = with
        .iter()
        .filter(finite)
        .filter_map(|kept| Some((kept.info.step as f64, value(kept)?)))
        .collect();
    let steps = with.iter().map(|kept| kept.info.step as f64);
    let gone_steps = gone.iter().filter_map(|save| save.step).map(|step| step as f64);
    let x = Scale::of(steps.chain(gone_steps.clone()), PLOT.x, PLOT.x + PLOT.width);
    let bottom = PLOT.y + PLOT.height;
    // Marks at the bottom are below the lowest number.
    let y = Scale::of(known.iter().map(|(_, value)| *value), bottom - 24.0, PLOT.y + 10.0);
    let mut figure = Figure::new(HEIGHT);
    figure.y_axis(&y, PLOT, &number);
    figure.x_axis(&x, PLOT, &whole);
    figure.text("tick end", (PLOT.x + PLOT.width, HEIGHT - 4.0), "step");
    let line: Vec<(f64, f64)> =
        thinned(&known).into_iter().map(|(step, value)| (x.at(step), y.at(value))).collect();
    figure.path("curve", &line);
    for step in gone_steps.rev().take(MARKS_MAX) {
        let title = format!("step {}: saved, removed since", whole(step));
        figure.mark(Mark::Cross, (x.at(step), bottom - 8.0), &title);
    }
    let newest = with.len().saturating_sub(MARKS_MAX);
    let marked = with.iter().enumerate().filter(|(index, kept)| *index >= newest || kept.is_best);
    let mut labels = Vec::new();
    for (_, kept) in marked {
        let value = value(kept).unwrap_or(f64::NAN);
        let at = (x.at(kept.info.step as f64), y.at(value));
        labels.extend(mark(&mut figure, kept, at, value, bottom));
    }
    // Above all marks.
    for ((x, y), text) in apart(labels) {
        let anchor = if x > WIDTH / 2.0 { "end" } else { "start" };
        figure.text(&format!("label {anchor}"), (x, y), &text);
    }
    let title = format!("{} over steps", short(name, 60));
    let what = format!("{} checkpoints, {} known to be removed since", with.len(), gone.len());
    html.push_str(&note(format!("<b>{}</b>: {what}.", escaped(name))));
    html.push_str(&figure.finish("metric-curve", &title, &what));
    html
}

/// Steps have no fractions, and near ones are told apart.
fn whole(count: f64) -> String {
    match count.abs() {
        1e15.. => number(count),
        _ if (count - count.round()).abs() > 1e-6 => String::new(),
        _ => format!("{:.0}", count.round()),
    }
}

/// What is written beside a mark, and where.
type Label = ((f64, f64), String);

/// Labels of marks that are near each other, one above the other.
fn apart(mut labels: Vec<Label>) -> Vec<Label> {
    labels.sort_by(|a, b| b.0.1.total_cmp(&a.0.1));
    for index in 1..labels.len() {
        let (before, rest) = labels.split_at_mut(index);
        if let (Some(((x, y), _)), Some(((other_x, other_y), _))) =
            (before.last(), rest.first_mut())
            && (*x - *other_x).abs() < 120.0
        {
            *other_y = other_y.min(*y - 15.0);
        }
    }
    labels
}

fn mark(
    figure: &mut Figure,
    kept: &Kept,
    (x, y): (f64, f64),
    value: f64,
    bottom: f64,
) -> Option<Label> {
    let title = format!(
        "{}: {}{}{}",
        short(&kept.info.name, 80),
        number(value),
        if kept.is_best { ", best" } else { "" },
        if kept.is_latest { ", latest" } else { "" }
    );
    if !value.is_finite() {
        figure.mark(Mark::Triangle, (x, bottom - 8.0), &title);
        return None;
    }
    figure.mark(if kept.is_best { Mark::Diamond } else { Mark::Dot }, (x, y), &title);
    let label = match (kept.is_best, kept.is_latest) {
        (true, true) => "best and latest",
        (true, _) => "best",
        (_, true) => "latest",
        _ => return None,
    };
    let above = if y < PLOT.y + 30.0 { 22.0 } else { -13.0 };
    Some(((x, y + above), format!("{label} {}", number(value))))
}

/// Few enough points that look like all of them.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * PARTS_MAX {
        return points.to_vec();
    }
    let parts = points.chunks(points.len().div_ceil(PARTS_MAX));
    let ends = parts.flat_map(|part| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Vec<(f64, f64)> = part
            .iter()
            .min_by(by_value)
            .into_iter()
            .chain(part.iter().max_by(by_value))
            .copied()
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends
    });
    ends.collect()
}

/// Losses that the newest checkpoint remembers, entry by entry: of pruned checkpoints as well.
pub(super) fn history(name: &str, losses: &[f64], index: usize) -> String {
    let points: Vec<(f64, f64)> = losses
        .iter()
        .enumerate()
        .filter(|(_, loss)| loss.is_finite())
        .map(|(index, loss)| (index as f64 + 1.0, *loss))
        .collect();
    if points.len() < 2 {
        return String::new();
    }
    let x = Scale::of(points.iter().map(|point| point.0), PLOT.x, PLOT.x + PLOT.width);
    let bottom = PLOT.y + 120.0;
    let plot = Area { height: 120.0, ..PLOT };
    let y = Scale::of(points.iter().map(|point| point.1), bottom - 6.0, PLOT.y + 6.0);
    let mut figure = Figure::new(170.0);
    figure.y_axis(&y, plot, &number);
    figure.x_axis(&x, plot, &whole);
    figure.text("tick end", (PLOT.x + PLOT.width, 166.0), "entry");
    let line: Vec<(f64, f64)> =
        thinned(&points).into_iter().map(|(at, value)| (x.at(at), y.at(value))).collect();
    figure.path("curve", &line);
    let title = format!("History: {}", short(name, 60));
    let what = format!(
        "{} entries, from {} to {}, as the newest checkpoint has them",
        losses.len(),
        number(points.first().map_or(0.0, |point| point.1)),
        number(points.last().map_or(0.0, |point| point.1))
    );
    format!(
        "<h3>{title}</h3>\n{}{}",
        note(&what),
        figure.finish(&format!("history-{index}"), &title, &what)
    )
}

/// Bytes that lie there, by when they were saved; and, of traces, all that was ever saved.
pub(super) fn disk(kept: &[Kept], saves: &[&Save]) -> String {
    let mut here: Vec<(f64, f64)> = kept
        .iter()
        .map(|kept| (kept.info.created_unix_ms as f64 / 1e3, kept.file_bytes as f64))
        .collect();
    let mut written: Vec<(f64, f64)> = saves
        .iter()
        .filter(|save| !save.failed())
        .filter_map(|save| Some((save.end.as_secs_f64(), save.bytes()? as f64)))
        .collect();
    if here.is_empty() {
        return note("There is no checkpoint.");
    }
    for points in [&mut here, &mut written] {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut sum = 0.0;
        points.iter_mut().for_each(|point| {
            sum += point.1;
            point.1 = sum;
        });
    }
    let total = here.last().map_or(0.0, |point| point.1);
    let most = here.iter().chain(&written).map(|point| point.1).fold(0.0, f64::max);
    let (unit, unit_bytes) = unit_of(most);
    here.iter_mut().chain(&mut written).for_each(|point| point.1 /= unit_bytes);
    let all = || here.iter().chain(&written);
    let first = all().map(|p| p.0).fold(f64::INFINITY, f64::min);
    // One moment is the beginning of the figure.
    let last = all().map(|p| p.0).fold(first + 1.0, f64::max);
    let x = Scale::of([first, last], PLOT.x, PLOT.x + PLOT.width);
    let y = Scale::of(all().map(|p| p.1).chain([0.0]), PLOT.y + PLOT.height, PLOT.y + 6.0);
    let mut figure = Figure::new(HEIGHT);
    figure.y_axis(&y, PLOT, &|count| format!("{} {unit}", number(count)));
    let ends = [(first, "start", PLOT.x), (last, "end", PLOT.x + PLOT.width)];
    let bottom = PLOT.y + PLOT.height;
    figure.line("axis", (PLOT.x, bottom), (PLOT.x + PLOT.width, bottom));
    for (at, anchor, x) in ends {
        let text = format!("{} UTC", utc(Duration::from_secs_f64(at.clamp(0.0, 1e15))));
        figure.text(&format!("time tick {anchor}"), (x, bottom + 17.0), &text);
    }
    for (class, points) in [("written", &written), ("held", &here)] {
        figure.path(class, &stairs(points, &x, &y, PLOT.x + PLOT.width));
    }
    let what = format!("{} in {} checkpoints", size(total), kept.len());
    let mut html = legend(&[
        ("held", "what is there now, by when it was saved"),
        ("written", "all that was ever saved, by traces (tensors)"),
    ]);
    html.push_str(&note(format!("{what}. When checkpoints were removed is not recorded.")));
    html.push_str(&figure.finish("disk-curve", "Disk over time", &what));
    html
}

/// In which so many bytes are a number above 1, so that axes have round ones.
fn unit_of(most: f64) -> (&'static str, f64) {
    let units = ["PiB", "TiB", "GiB", "MiB", "KiB"];
    let sizes = (1..=5).rev().map(|power| 1024f64.powi(power));
    units.into_iter().zip(sizes).find(|(_, size)| most >= *size).unwrap_or(("B", 1.0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes, at least 0")]
fn size(count: f64) -> String {
    bytes(count.max(0.0) as u64)
}

/// Each point holds until the next one.
fn stairs(points: &[(f64, f64)], x: &Scale, y: &Scale, end: f64) -> Vec<(f64, f64)> {
    let mut line = Vec::new();
    let mut last = y.at(0.0);
    let skipped = points.len().div_ceil(2 * PARTS_MAX).max(1);
    let shown =
        points.iter().enumerate().filter(|(i, _)| i % skipped == 0 || i + 1 == points.len());
    for (_, (at, value)) in shown {
        line.extend([(x.at(*at), last), (x.at(*at), y.at(*value))]);
        last = y.at(*value);
    }
    line.extend((!points.is_empty()).then_some((end, last)));
    line
}

/// All that is there, newest first.
pub(super) fn checkpoints(kept: &[Kept]) -> String {
    if kept.is_empty() {
        return note("There is no checkpoint.");
    }
    let header =
        ["checkpoint", "step", "epoch", "metrics", "tensors", "files", "saved", "ranks", "marks"];
    let rows = table(&header, kept.iter().rev().take(ROWS_MAX).map(row));
    let summary = format!("{} checkpoints as a table", kept.len());
    let cut = kept.len().saturating_sub(ROWS_MAX);
    let rest = if cut > 0 { note(format!("And {cut} older ones.")) } else { String::new() };
    folded(&summary, rows + &rest)
}

fn row(kept: &Kept) -> Vec<String> {
    let info = &kept.info;
    let metrics = info.metrics.iter().take(4);
    let metrics: Vec<String> =
        metrics.map(|(name, value)| format!("{}={}", short(name, 40), number(*value))).collect();
    let marks = [(kept.is_latest, "latest"), (kept.is_best, "best"), (info.pinned, "pinned")];
    let marks: Vec<&str> = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
    vec![
        escaped(&info.name),
        info.step.to_string(),
        info.epoch.to_string(),
        metrics.join(" "),
        bytes(info.tensor_bytes),
        bytes(kept.file_bytes),
        time(Duration::from_millis(info.created_unix_ms)),
        info.world_size.to_string(),
        marks.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_lie_on_each_other() {
        let label = |x: f64, y: f64| ((x, y), String::new());
        let at = |labels: Vec<Label>| labels.into_iter().map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(
            at(apart(vec![label(800.0, 195.0), label(830.0, 200.0)])),
            [(830.0, 200.0), (800.0, 185.0)]
        );
        let far = vec![label(830.0, 200.0), label(300.0, 195.0)];
        assert_eq!(at(apart(far.clone())), at(far));
        assert!(apart(Vec::new()).is_empty());
    }

    #[test]
    fn steps_are_whole_numbers() {
        let shown = [0.0, 0.6, 3.000_000_000_1, 1_000_050.0, 1e18].map(whole);
        assert_eq!(shown, ["0", "", "3", "1000050", "1.000e18"]);
    }

    #[test]
    fn a_metric_that_nothing_has_is_said_so() {
        assert!(metric(Some("<b>"), &[], &[]).contains("the metric <b>&lt;b&gt;</b>."));
        assert!(metric(None, &[], &[]).contains("No checkpoint has a metric."));
    }
}
