//! Writes lines to standard output and standard error, rows as a table that fits the
//! text, messages as JSON.

use std::io::Write;

/// Writes a line to standard output, as `println!` does, but without a panic when
/// nobody reads on (`pipedoc … | head`).
macro_rules! say {
    ($($text:tt)*) => {
        $crate::show::line(&format!($($text)*))
    };
}
pub(crate) use say;

/// Writes a line to standard error, as `eprintln!` does, but without a panic when
/// nobody reads on: a run must not die of a message that cannot be told.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::show::aside(&format!($($text)*))
    };
}
pub(crate) use tell;

/// Writes a line to standard output. A reader that has gone away is no error of ours.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Writes a line to standard error. A reader that has gone away is no error of ours.
pub fn aside(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A message as JSON, with its zeros and empty lists: machines find every field.
pub fn json(name: &str, message: &impl prost::Message) -> anyhow::Result<serde_json::Value> {
    Ok(pipedoc_proto::json::message_to_whole_json(name, &message.encode_to_vec())?)
}

/// Prints a table: columns as wide as their widest cell, the last one as it is.
pub fn table(heads: &[&str], rows: &[Vec<String>]) {
    line(table_text(heads, rows).trim_end());
}

/// A table as text, each row with its line feed.
pub fn table_text(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut table = String::new();
    let mut row = |cells: Vec<&str>| {
        let last = cells.len().saturating_sub(1);
        let mut text = String::new();
        for (n, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            text.push_str(cell);
            if n < last {
                text.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + 2));
            }
        }
        table.push_str(text.trim_end());
        table.push('\n');
    };
    row(heads.to_vec());
    for cells in rows {
        row(cells.iter().map(String::as_str).collect());
    }
    table
}

/// The first line of a text, cut to `width` characters.
pub fn first_line(text: &str, width: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}
