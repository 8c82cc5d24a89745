//! Writes lines to standard output and standard error, rows as a table that fits the
//! text, messages as JSON. Control characters that came in names and errors reach no
//! terminal: they are written as escapes.

use std::borrow::Cow;
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
    let _ = writeln!(std::io::stdout(), "{}", without_controls(text));
}

/// Writes a line to standard error. A reader that has gone away is no error of ours.
pub fn aside(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", without_controls(text));
}

/// Lines as a terminal may have them: control characters other than line feeds and tabs
/// become escapes. Those are JSON's own, so that JSON stays what it is: of control
/// characters, its texts hold none but those from U+007F on as they are.
fn without_controls(text: &str) -> Cow<'_, str> {
    escaped_but(text, &['\n', '\t'])
}

/// A text within a line, as a terminal may have it: all control characters become escapes.
pub fn word(text: &str) -> Cow<'_, str> {
    escaped_but(text, &[])
}

fn escaped_but<'a>(text: &'a str, plain: &[char]) -> Cow<'a, str> {
    let is_bad = |c: char| c.is_control() && !plain.contains(&c);
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if !is_bad(c) => escaped.push(c),
            // The end of a line, in files of some.
            '\r' if plain.contains(&'\n') && chars.peek() == Some(&'\n') => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(escaped)
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
    let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|cell| word(cell)).collect()).collect();
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in &rows {
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
        row(cells.iter().map(AsRef::as_ref).collect());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_reach_no_terminal() {
        let name = "a\u{1b}[31m\0b\nc\r\u{9b}2J\u{7f}ä…".to_owned();
        let shown = "a\\u001b[31m\\u0000b\\nc\\r\\u009b2J\\u007fä…";
        let table = table_text(&["DOCUMENT", "N"], &[vec![name.clone(), "1".into()]]);
        assert_eq!(table, format!("{:<width$}N\n{shown}  1\n", "DOCUMENT", width = shown.chars().count() + 2));
        assert_eq!(word(&name), shown);
        assert_eq!(without_controls("two\n\tlines\u{7}"), "two\n\tlines\\u0007");
        assert_eq!(without_controls("over\rwritten\r\n"), "over\\rwritten\r\n");
    }

    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({"name": "a\u{1b}\0\n\t\r\u{7f}\u{9b}\"\\ä"});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let written = without_controls(&text);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), value, "{written}");
        }
    }
}
