//! Sizes of tensors as areas. Layout: "Squarified Treemaps", M. Bruls, K. Huizing, J. van Wijk,
//! 2000.

use super::html::{escaped, folded, note, short, table};
use super::svg::{Area, Figure, WIDTH};
use crate::cli::format::bytes;

/// So many tensors are drawn, the largest; the others are one area for each component.
const TENSORS_MAX: usize = 160;
/// So many are rows of the table.
const ROWS_MAX: usize = 50;
/// So many components are drawn; the others are one.
const COMPONENTS_MAX: usize = 8;
const HEIGHT: f64 = 420.0;
/// Above the tensors of a component.
const HEAD: f64 = 18.0;

/// A tensor.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) component: String,
    pub(super) name: String,
    pub(super) spec: String,
    pub(super) bytes: u64,
}

/// What is drawn as one area.
struct Tile {
    name: String,
    what: String,
    bytes: u64,
}

/// Tensors of the checkpoint of this name.
pub(super) fn treemap(of: &str, mut tensors: Vec<Tensor>) -> String {
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    if total == 0 {
        return note(format!("The tensors of <b>{}</b> hold no bytes.", escaped(of)));
    }
    tensors.sort_by(|a, b| (b.bytes, &a.name).cmp(&(a.bytes, &b.name)));
    let count = tensors.len();
    let groups = groups(&tensors);
    let mut figure = Figure::new(HEIGHT);
    let whole = Area { x: 0.0, y: 0.0, width: WIDTH, height: HEIGHT };
    let sizes: Vec<u64> = groups.iter().map(|(_, tiles)| tiles_bytes(tiles)).collect();
    for (index, ((component, tiles), area)) in groups.iter().zip(layout(&sizes, whole)).enumerate()
    {
        draw_group(&mut figure, index, component, tiles, area);
    }
    let title = format!("Tensors of {}", short(of, 80));
    let what = format!("{count} tensors, {} in all; areas are bytes", bytes(total));
    let mut html = note(format!("<b>{}</b>: {what}.", escaped(of)));
    html.push_str(&figure.finish("tensors-map", &title, &what));
    html + &folded(&format!("the largest of {count} tensors as a table"), rows(&tensors, total))
}

fn tiles_bytes(tiles: &[Tile]) -> u64 {
    tiles.iter().map(|tile| tile.bytes).sum()
}

/// By component, the largest first; of tensors in order of their size.
fn groups(tensors: &[Tensor]) -> Vec<(String, Vec<Tile>)> {
    let mut sizes = std::collections::BTreeMap::<&str, u64>::new();
    for tensor in tensors {
        *sizes.entry(&tensor.component).or_default() += tensor.bytes;
    }
    let mut names: Vec<(&str, u64)> = sizes.into_iter().collect();
    names.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), *name));
    let own =
        |name: &str| names.iter().position(|(n, _)| *n == name).unwrap_or(0).min(COMPONENTS_MAX);
    let mut groups: Vec<(String, Vec<Tile>, usize, u64)> = Vec::new();
    for (index, (name, _)) in names.iter().enumerate().take(COMPONENTS_MAX + 1) {
        let name = if index < COMPONENTS_MAX { *name } else { "other components" };
        groups.push((name.to_owned(), Vec::new(), 0, 0));
    }
    for (index, tensor) in tensors.iter().filter(|tensor| tensor.bytes > 0).enumerate() {
        let Some((_, tiles, rest, rest_bytes)) = groups.get_mut(own(&tensor.component)) else {
            continue;
        };
        if index < TENSORS_MAX {
            let (name, what) = (tensor.name.clone(), tensor.spec.clone());
            tiles.push(Tile { name, what, bytes: tensor.bytes });
        } else {
            (*rest, *rest_bytes) = (*rest + 1, *rest_bytes + tensor.bytes);
        }
    }
    let with_rest = |(name, mut tiles, rest, bytes): (String, Vec<Tile>, usize, u64)| {
        if rest > 0 {
            tiles.push(Tile {
                name: format!("{rest} smaller"),
                what: "together".to_owned(),
                bytes,
            });
        }
        (name, tiles)
    };
    let mut groups: Vec<_> = groups.into_iter().map(with_rest).collect();
    for (_, tiles) in &mut groups {
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile.bytes));
    }
    groups.retain(|(_, tiles)| !tiles.is_empty());
    groups.sort_by_key(|(_, tiles)| std::cmp::Reverse(tiles_bytes(tiles)));
    groups
}

fn draw_group(figure: &mut Figure, index: usize, component: &str, tiles: &[Tile], area: Area) {
    let size = bytes(tiles_bytes(tiles));
    let title = format!("{}: {size}", escaped(component));
    figure.rect("group", area, &title);
    let head = if area.height > 3.0 * HEAD && area.width > 40.0 { HEAD } else { 0.0 };
    if head > 0.0 {
        let text = short(&format!("{component}, {size}"), chars_in(area.width, 8.4));
        figure.text("head start", (area.x + 4.0, area.y + 13.0), &text);
    }
    let inner = Area { y: area.y + head, height: area.height - head, ..area };
    let sizes: Vec<u64> = tiles.iter().map(|tile| tile.bytes).collect();
    for (tile, area) in tiles.iter().zip(layout(&sizes, inner)) {
        let size = bytes(tile.bytes);
        let title = format!("{} {} {size}", escaped(&tile.name), escaped(&tile.what));
        figure.rect(&format!("tile t{}", index % 4), area, &title);
        if area.width > 46.0 && area.height > 17.0 {
            let text = short(&tile.name, chars_in(area.width, 7.6));
            figure.text("label start", (area.x + 4.0, area.y + 13.0), &text);
        }
        if area.width > 60.0 && area.height > 32.0 {
            figure.text("label small start", (area.x + 4.0, area.y + 27.0), &size);
        }
    }
}

/// How many letters of this width fit; fonts differ.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width")]
fn chars_in(width: f64, letter: f64) -> usize {
    ((width - 6.0) / letter).max(1.0) as usize
}

/// An area for each size, in their order; sizes come largest first.
fn layout(sizes: &[u64], mut free: Area) -> Vec<Area> {
    let total: u64 = sizes.iter().sum();
    let per_byte = free.width * free.height / (total.max(1) as f64);
    let mut sizes: &[u64] = sizes;
    let mut areas = Vec::with_capacity(sizes.len());
    while !sizes.is_empty() {
        let along = free.width.min(free.height).max(1e-6);
        let worst = |row: &[u64]| {
            let sum = row.iter().sum::<u64>() as f64 * per_byte;
            let thick = sum / along;
            let ratio = |size: &u64| {
                let long = *size as f64 * per_byte / thick.max(1e-9);
                (long / thick).max(thick / long.max(1e-9))
            };
            row.iter().map(ratio).fold(0.0, f64::max)
        };
        let mut count = 1;
        while count < sizes.len() && worst(&sizes[..count + 1]) <= worst(&sizes[..count]) {
            count += 1;
        }
        let (row, rest) = sizes.split_at(count);
        free = place(row, per_byte, free, &mut areas);
        sizes = rest;
    }
    areas
}

/// Along the shorter side; what is left.
fn place(row: &[u64], per_byte: f64, free: Area, areas: &mut Vec<Area>) -> Area {
    let sum = row.iter().sum::<u64>() as f64 * per_byte;
    let is_column = free.width >= free.height;
    let along = if is_column { free.height } else { free.width };
    let thick = sum / along.max(1e-6);
    let mut at = 0.0;
    for size in row {
        let long = *size as f64 * per_byte / thick.max(1e-9);
        areas.push(if is_column {
            Area { x: free.x, y: free.y + at, width: thick, height: long }
        } else {
            Area { x: free.x + at, y: free.y, width: long, height: thick }
        });
        at += long;
    }
    if is_column {
        Area { x: free.x + thick, width: (free.width - thick).max(0.0), ..free }
    } else {
        Area { y: free.y + thick, height: (free.height - thick).max(0.0), ..free }
    }
}

fn rows(tensors: &[Tensor], total: u64) -> String {
    let header = ["tensor", "component", "dtype and shape", "bytes", "share"];
    let shown = table(
        &header,
        tensors.iter().take(ROWS_MAX).map(|tensor| {
            vec![
                escaped(&tensor.name),
                escaped(&tensor.component),
                escaped(&tensor.spec),
                bytes(tensor.bytes),
                format!("{:.1} %", tensor.bytes as f64 * 100.0 / total.max(1) as f64),
            ]
        }),
    );
    let rest = tensors.iter().skip(ROWS_MAX);
    let (count, size) = rest.fold((0u64, 0u64), |(n, sum), tensor| (n + 1, sum + tensor.bytes));
    if count == 0 {
        shown
    } else {
        shown + &note(format!("And {count} others with {}.", bytes(size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_as_the_sizes_and_fill_the_whole() {
        let whole = Area { x: 0.0, y: 0.0, width: 600.0, height: 400.0 };
        let sizes = [600u64, 600, 400, 300, 200, 200, 100];
        let areas = layout(&sizes, whole);
        for (area, size) in areas.iter().zip(sizes) {
            assert!((area.width * area.height - size as f64 * 100.0).abs() < 1e-6, "{area:?}");
            assert!(area.x + area.width < 600.001 && area.y + area.height < 400.001, "{area:?}");
            let ratio = (area.width / area.height).max(area.height / area.width);
            assert!(ratio < 3.0, "{area:?}");
        }
    }

    #[test]
    fn of_many_tensors_the_largest_are_drawn_and_the_others_together() {
        let tensor = |index: u64| Tensor {
            component: format!("c{}", index % 12),
            name: format!("layers.{index}"),
            spec: "F32 [1]".to_owned(),
            bytes: 20_000 - index,
        };
        let html = treemap("a", (0..20_000).map(tensor).collect());
        assert_eq!(html.matches("class=\"tile").count(), TENSORS_MAX + COMPONENTS_MAX + 1);
        assert!(html.contains("other components") && html.contains("And 19950 others"));
        assert!(html.len() < 100_000, "{}", html.len());
    }

    #[test]
    fn a_checkpoint_of_nothing_has_no_figure() {
        assert!(treemap("a", Vec::new()).contains("hold no bytes"));
        let html = treemap("<b>", vec![]);
        assert!(!html.contains("<b><b>"), "{html}");
    }
}
