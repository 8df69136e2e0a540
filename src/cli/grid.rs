//! Columns of text that fit a width: a few of them may be shortened, none is wrapped.

use std::io::IsTerminal;

use super::output::{Output, Stop};

/// Between columns.
const GAP: &str = "  ";

/// How many columns there are to write in: those of the terminal, else `COLUMNS`, else any number.
pub(super) fn width() -> Option<usize> {
    if std::io::stdout().is_terminal() {
        return comfy_table::Table::new().width().map(usize::from);
    }
    let asked = std::env::var("COLUMNS").ok()?;
    asked.parse().ok().filter(|columns| *columns > 0)
}

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Left,
    Right,
    /// Left, and down to so many characters if space is short; the middle is left out.
    Middle(usize),
    /// Left, and down to so many characters if space is short; the end is left out.
    End(usize),
}

/// A table.
pub(super) struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A table with these columns.
    pub(super) fn new<const N: usize>(columns: [(&str, Column); N]) -> Self {
        let rows = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect()];
        Self { columns: columns.iter().map(|(_, column)| *column).collect(), rows }
    }

    /// One row; a cell for each column.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Writes it, as wide as there is space.
    pub(super) fn write(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        self.lines(width()).try_for_each(|line| out.line(line))
    }

    /// Its lines, no longer than `width` if it can be.
    pub(super) fn lines(&self, width: Option<usize>) -> impl Iterator<Item = String> {
        let widths = self.widths(width);
        self.rows.iter().map(move |row| {
            let cells = row.iter().zip(&self.columns).zip(&widths);
            let cells: Vec<_> = cells.map(|((text, column), n)| set(text, *column, *n)).collect();
            cells.join(GAP).trim_end().to_owned()
        })
    }

    fn widths(&self, width: Option<usize>) -> Vec<usize> {
        let of = |index: usize| self.rows.iter().filter_map(move |row| row.get(index));
        let widest = |index: usize| of(index).map(|text| text.chars().count()).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let all = widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
        let mut over = width.map_or(0, |width| all.saturating_sub(width));
        for (column, width) in self.columns.iter().zip(&mut widths).rev() {
            if let Column::Middle(least) | Column::End(least) = column {
                let less = over.min(width.saturating_sub(*least));
                (*width, over) = (*width - less, over - less);
            }
        }
        widths
    }
}

fn set(text: &str, column: Column, width: usize) -> String {
    match column {
        Column::Right => format!("{text:>width$}"),
        Column::Left => format!("{text:width$}"),
        Column::Middle(_) => format!("{:width$}", shortened(text, width, width / 2)),
        Column::End(_) => format!("{:width$}", shortened(text, width, 0)),
    }
}

/// At most `width` characters, of which so many are the last ones of a text that is longer.
fn shortened(text: &str, width: usize, end: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let begin = text.chars().take(width.saturating_sub(end + 1));
    begin.chain("…".chars()).chain(text.chars().skip(count - end)).collect()
}

/// An id as a table shows it.
pub(super) fn short_id(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let columns = [
            ("name", Column::Middle(8)),
            ("step", Column::Right),
            ("metrics", Column::End(9)),
            ("state", Column::Left),
        ];
        let mut grid = Grid::new(columns);
        let cells = ["epoch=03-val_loss=0.1235", "12", "val_loss=0.1235 accuracy=0.9", "committed"];
        grid.row(cells.map(str::to_owned));
        grid
    }

    fn lines(width: Option<usize>) -> Vec<String> {
        grid().lines(width).collect()
    }

    #[test]
    fn a_table_without_a_width_leaves_nothing_out() {
        let wide = "epoch=03-val_loss=0.1235    12  val_loss=0.1235 accuracy=0.9  committed";
        assert_eq!(lines(None)[1], wide);
        assert_eq!(lines(Some(200))[1], wide);
        assert_eq!(
            lines(None)[0],
            "name                      step  metrics                       state"
        );
    }

    #[test]
    fn columns_at_the_right_give_way_first_and_no_line_is_longer() {
        assert_eq!(lines(Some(56))[1], "epoch=03-val_loss=0.1235    12  val_loss=0.1…  committed");
        assert_eq!(lines(Some(36))[1], "epo…1235    12  val_loss…  committed");
        assert_eq!(lines(Some(1))[1], lines(Some(36))[1]);
        for width in 40..80 {
            assert!(lines(Some(width)).iter().all(|line| line.chars().count() <= width));
        }
    }
}
