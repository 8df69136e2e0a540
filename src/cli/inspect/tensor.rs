//! `inspect --tensor`: what the numbers of one tensor look like.

use serde_json::json;

use super::Output;
use crate::catalog::Found;
use crate::cli::format::{bytes, finite, number};
use crate::cli::grid::{Column, Grid};
use crate::cli::{Stop, progress};
use crate::shown::line;
use crate::statistics::{Number, Statistics, statistics};

/// Longest bar of a histogram.
const BAR_CHARS: u64 = 40;

pub(super) fn show(
    out: &mut Output<'_>,
    found: &Found,
    name: &str,
    json: bool,
) -> Result<(), Stop> {
    let size = found.manifest.tensor(name).map_or(0, |tensor| tensor.spec.size_bytes());
    let bar = progress::bytes("reading", size.saturating_mul(2));
    let shown = statistics(found, name, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    if json { out.json(&as_json(&shown)) } else { text(out, &shown) }
}

fn text(out: &mut Output<'_>, shown: &Statistics) -> Result<(), Stop> {
    let spec = &shown.spec;
    out.line(format!("tensor     {}", line(shown.name.as_str())))?;
    let size = bytes(spec.size_bytes());
    out.line(format!("dtype      {}   shape {:?}   {size}", spec.dtype(), spec.shape()))?;
    let (nan, infinite, zeros) = (shown.nan, shown.infinite, shown.zeros);
    out.line(format!("numbers    {}   NaN {nan}   Inf {infinite}   zero {zeros}", shown.numbers))?;
    let Some((min, max)) = shown.range else { return Ok(()) };
    let (mean, deviation) = (number(shown.mean), number(shown.deviation));
    out.line(format!("min        {}   max {}", end(min), end(max)))?;
    out.line(format!("mean       {mean}   deviation {deviation}"))?;
    out.line("")?;
    histogram(shown).write(out)
}

fn end(end: Number) -> String {
    match end {
        Number::Integer(integer) => integer.to_string(),
        Number::Float(float) => number(float),
    }
}

fn histogram(shown: &Statistics) -> Grid {
    let mut grid = Grid::new([
        ("from", Column::Right),
        ("to", Column::Right),
        ("count", Column::Right),
        ("", Column::End(8)),
    ]);
    let most = shown.histogram.iter().map(|bin| bin.count).max().unwrap_or(0);
    for bin in &shown.histogram {
        let bar = "█".repeat(bar_chars(bin.count, most));
        grid.row([end(bin.from), end(bin.to), bin.count.to_string(), bar]);
    }
    grid
}

/// What is there is seen.
fn bar_chars(count: u64, most: u64) -> usize {
    let chars = u128::from(count) * u128::from(BAR_CHARS) / u128::from(most.max(1));
    usize::try_from(chars).unwrap_or(0).max(usize::from(count > 0))
}

fn as_json(shown: &Statistics) -> serde_json::Value {
    let end = |end: Number| match end {
        // Beyond what JSON holds exactly in most readers, but digit by digit.
        Number::Integer(integer) => i64::try_from(integer)
            .map(|n| json!(n))
            .or_else(|_| u64::try_from(integer).map(|n| json!(n)))
            .unwrap_or_else(|_| json!(integer.to_string())),
        Number::Float(float) => finite(float),
    };
    let bins = shown.histogram.iter();
    let bins = bins.map(|b| json!({ "from": end(b.from), "to": end(b.to), "count": b.count }));
    json!({
        "name": shown.name.as_str(), "dtype": shown.spec.dtype().as_str(),
        "shape": shown.spec.shape(), "bytes": shown.spec.size_bytes(), "numbers": shown.numbers,
        "nan": shown.nan, "infinite": shown.infinite, "zeros": shown.zeros,
        "min": shown.range.map(|(min, _)| end(min)), "max": shown.range.map(|(_, max)| end(max)),
        "mean": finite(shown.mean), "deviation": finite(shown.deviation),
        "histogram": bins.collect::<Vec<_>>(),
    })
}
