//! What a bench found, as tables for people or JSON for machines.
//!
//! Knows nothing of how it was measured.

use std::fmt::Write as _;

use serde::Serialize;

use crate::method::{Comparison, Spread, Summary};

/// What one bench found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its name, as on the command line.
    pub bench: &'static str,
    /// What was done, in one line: how many records of what size.
    pub what: String,
    /// Arms side by side, where there are any.
    pub comparison: Option<Comparison>,
    /// Figures that stand alone.
    pub figures: Vec<Figure>,
    /// What had to hold.
    pub targets: Vec<Target>,
}

/// A figure that stands alone.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What it tells.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

impl Figure {
    /// Names a figure.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit }
    }
}

/// What had to hold, and whether it did.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// What had to hold, with its bound.
    pub what: String,
    /// What was found.
    pub found: f64,
    /// Whether it held.
    pub met: bool,
}

impl Target {
    /// Must not be below a bound.
    pub fn at_least(what: &str, found: f64, bound: f64) -> Self {
        Self { what: format!("{what} ≥ {bound}"), found, met: found >= bound }
    }

    /// Must not be above a bound.
    pub fn at_most(what: &str, found: f64, bound: f64) -> Self {
        Self { what: format!("{what} ≤ {bound}"), found, met: found <= bound }
    }

    /// Must be below a bound.
    pub fn below(what: &str, found: f64, bound: f64) -> Self {
        Self { what: format!("{what} < {bound}"), found, met: found < bound }
    }
}

impl Report {
    /// The tables.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.bench, self.what);
        if let Some(comparison) = &self.comparison {
            text.push_str(&side_by_side(comparison));
        }
        if !self.figures.is_empty() {
            let rows =
                self.figures.iter().map(|figure| vec![figure.name.clone(), number(figure.value), figure.unit.into()]);
            text.push_str(&table(&["figure", "value", "unit"], rows.collect()));
        }
        for target in &self.targets {
            let verdict = if target.met { "met" } else { "MISSED" };
            let _ = writeln!(text, "target {}: found {}, {verdict}", target.what, number(target.found));
        }
        text
    }
}

fn side_by_side(comparison: &Comparison) -> String {
    let mut rows = vec![row(&comparison.baseline, true)];
    rows.extend(comparison.arms.iter().map(|arm| row(arm, false)));
    let header = ["arm", "records/s", "speed × baseline", "CPU µs/record", "CPU × baseline", "further"];
    let few = if comparison.pairs < 5 { "; fewer than 5 are a trial, not a measurement" } else { "" };
    format!(
        "{}{} pairs, medians (lowest to highest); the baseline's own ratios are the control{few}\n",
        table(&header, rows),
        comparison.pairs
    )
}

fn row(summary: &Summary, control: bool) -> Vec<String> {
    let further: Vec<String> =
        summary.figures.iter().map(|(name, spread)| format!("{name} {}", number(spread.median))).collect();
    let name = if control { format!("{} (A/A)", summary.arm) } else { summary.arm.clone() };
    vec![
        name,
        number(summary.per_second.median),
        with_ends(summary.speed),
        number(summary.cpu_per_record.median),
        with_ends(summary.cpu),
        further.join(", "),
    ]
}

fn with_ends(spread: Spread) -> String {
    format!("{} ({} to {})", number(spread.median), number(spread.min), number(spread.max))
}

/// A number with three digits that count, or all before the point.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// A table in Markdown, its columns aligned.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut all = vec![header.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for (n, row) in all.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell}{} ", " ".repeat(width - cell.chars().count()));
        }
        text.push_str("|\n");
        if n == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_is_said_loudly() {
        let report = Report {
            bench: "sqlite",
            what: "10 records".into(),
            comparison: None,
            figures: vec![Figure::new("median", 12.345, "ms")],
            targets: vec![Target::below("median in ms", 12.345, 5.0), Target::at_least("speed", 0.5, 0.5)],
        };
        let text = report.text();
        assert!(text.contains("| median | 12.3  | ms   |"), "{text}");
        assert!(text.contains("target median in ms < 5: found 12.3, MISSED"), "{text}");
        assert!(text.contains("target speed ≥ 0.5: found 0.500, met"), "{text}");
    }
}
