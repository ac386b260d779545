//! Tables for people: aligned columns, shortened CIDs, readable times.
//!
//! Invariants:
//! - text of others cannot move the cursor, start a line, turn the direction of writing or hide: what does so is shown
//!   as an escape;
//! - columns are as wide as a terminal shows them.

use unicode_width::UnicodeWidthStr;

use crate::visible;

/// How many characters of a shortened CID are shown. They are the last ones, because all CIDs begin alike.
const CID_TAIL: usize = 12;
/// The largest number of characters of free text in a cell.
const TEXT_MAX: usize = 60;
const GAP: &str = "  ";

/// Rows under a header. The last column is not padded.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row; it must have as many cells as the header.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// Returns the table as text, one line for each row.
    pub fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let padded: Vec<String> = cells.map(|(cell, width)| padded(cell, *width)).collect();
            padded.join(GAP).trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Returns a CID as a table shows it: its last characters, or all of it.
pub fn short(cid: &str, wide: bool) -> String {
    let skipped = cid.chars().count().saturating_sub(CID_TAIL);
    match wide || skipped == 0 {
        true => cid.to_owned(),
        false => format!("\u{2026}{}", cid.chars().skip(skipped).collect::<String>()),
    }
}

/// Returns the first line of a text, cut to [`TEXT_MAX`].
pub fn brief(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    match line.chars().count() > TEXT_MAX {
        true => line.chars().take(TEXT_MAX - 1).chain(['\u{2026}']).collect(),
        false => line.to_owned(),
    }
}

/// Formats microseconds since the Unix epoch as RFC 3339 with milliseconds.
pub fn moment(micros: u64) -> String {
    let moment = i64::try_from(micros).ok();
    let moment = moment.and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
    moment.map_or_else(|| micros.to_string(), |moment| format!("{moment:.3}"))
}

/// Returns a text with blanks behind it, as wide on a terminal as `width` says or wider.
pub fn padded(cell: &str, width: usize) -> String {
    format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width())))
}

/// Returns a text as a cell or line of it can be printed.
pub fn printable(cell: &str) -> String {
    visible::line(cell).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new(&["name", "n"]);
        table.row(vec!["a\nb".to_owned(), "1".to_owned()]);
        table.row(vec!["längerer".to_owned(), String::new()]);
        assert_eq!(table.render(), "name      n\na\\nb      1\nlängerer");
        let mut wide = Table::new(&["name", "n"]);
        wide.row(vec!["日本".to_owned(), "1".to_owned()]);
        wide.row(vec!["a\u{301}b".to_owned(), "2".to_owned()]);
        assert_eq!(wide.render(), "name  n\n日本  1\na\u{301}b    2");
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        for (text, shown) in [
            ("a\u{1b}[31mb\u{7}", "a\\u{1b}[31mb\\u{7}"),
            ("\u{9b}2J\u{7f}\u{0}", "\\u{9b}2J\\u{7f}\\u{0}"),
            ("a\tb\r\n", "a\\tb\\r\\n"),
            ("\u{202e}txt.exe\u{2066}\u{200b}", "\\u{202e}txt.exe\\u{2066}\\u{200b}"),
            ("\u{e0041}\u{feff}", "\\u{e0041}\\u{feff}"),
            ("grün 日本 \\ \u{1f469}\u{200d}\u{1f680}", "grün 日本 \\ \u{1f469}\u{200d}\u{1f680}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn times_have_milliseconds() {
        assert_eq!(moment(1_700_000_000_123_999), "2023-11-14T22:13:20.123Z");
        assert_eq!(moment(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(moment(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn cids_keep_their_end() {
        let text = "bafyreigd5574isnriyjfykehmwmup74chj4tvmank42ixq6yiwhkoqvs24";
        assert_eq!(short(text, true), text);
        assert_eq!(short(text, false), "\u{2026}6yiwhkoqvs24");
    }
}
