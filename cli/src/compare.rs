//! Two texts of a pipeline side by side: which lines differ, and what that means for
//! variables, steps and topics.
//!
//! What it means is what the planner makes of both, so that a comment is no change
//! and a changed default is one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pipedoc_model::names::ClusterName;
use pipedoc_model::pipeline;
use pipedoc_model::plan::{Controls, Plan, plan};
use pipedoc_model::problem::Problems;
use pipedoc_model::registry::Modules;
use pipedoc_proto::v1::GetResponse;
use pipedoc_sdk::units;
use serde::Serialize;
use serde_json::Value;
use similar::TextDiff;

use crate::show::{self, say};

/// Longest value that is shown to people, in characters.
const SHOWN: usize = 60;

/// Head of the topics' column.
const TOPIC: &str = "TOPIC";

/// How one text of a pipeline differs from another.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pipeline: String,
    /// Revision of the one; 0: a text that is none yet.
    from: u64,
    /// Revision of the other.
    to: u64,
    /// The lines that differ, as a unified diff.
    text: String,
    /// What that means; none when a text cannot be read by this version.
    meaning: Option<Meaning>,
    /// Why it cannot.
    unreadable: Option<String>,
}

/// What a difference means for what runs.
#[derive(Debug, Default, Serialize)]
struct Meaning {
    variables: Vec<Change>,
    steps: Vec<Change>,
    topics: Vec<Change>,
}

/// A thing that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    name: String,
    change: Kind,
    /// What of it differs, when both have it.
    fields: Vec<Field>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Added,
    Removed,
    Changed,
}

/// A value that differs; null where there is none.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Field {
    field: String,
    from: Value,
    to: Value,
}

impl Comparison {
    /// Compares two texts of one pipeline.
    pub fn of(from: &GetResponse, to: &GetResponse) -> Self {
        let title = |side: &GetResponse| match side.revision {
            0 => format!("{} as given", side.pipeline),
            revision => format!("{} revision {revision}", side.pipeline),
        };
        let text = TextDiff::from_lines(&from.text, &to.text)
            .unified_diff()
            .context_radius(3)
            .header(&title(from), &title(to))
            .to_string();
        let (meaning, unreadable) = match Meaning::of(from, to) {
            Ok(meaning) => (Some(meaning), None),
            Err(reason) => (None, Some(reason)),
        };
        Self { pipeline: to.pipeline.clone(), from: from.revision, to: to.revision, text, meaning, unreadable }
    }

    /// Shows it on standard output.
    pub fn print(&self) {
        say!("{}", self.to_text().trim_end());
    }

    /// As people read it.
    pub fn to_text(&self) -> String {
        let mut text = if self.text.is_empty() { "the texts are the same\n".to_owned() } else { self.text.clone() };
        text.push('\n');
        match (&self.meaning, &self.unreadable) {
            (Some(meaning), _) => text += &meaning.to_text(),
            (None, reason) => {
                text += &format!("what it means is not known: {}\n", reason.as_deref().unwrap_or("it cannot be read"));
            }
        }
        text
    }
}

impl Meaning {
    fn of(from: &GetResponse, to: &GetResponse) -> Result<Self, String> {
        let (before, after) = (planned(from)?, planned(to)?);
        let variables = |side: &GetResponse| -> Named {
            side.variables.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
        };
        Ok(Self {
            variables: changes(&variables(from), &variables(to)),
            steps: changes(&steps(&before)?, &steps(&after)?),
            topics: changes(&topics(&before)?, &topics(&after)?),
        })
    }

    fn to_text(&self) -> String {
        let all = [("VARIABLE", &self.variables), ("STEP", &self.steps), (TOPIC, &self.topics)];
        let tables: Vec<_> = all
            .iter()
            .filter(|(_, changes)| !changes.is_empty())
            .map(|(head, changes)| {
                let rows: Vec<_> = changes.iter().map(|change| change.row(*head == TOPIC)).collect();
                show::table_text(&[head, "CHANGE", "WHAT"], &rows)
            })
            .collect();
        if tables.is_empty() {
            return "nothing that runs is changed by that\n".to_owned();
        }
        tables.join("\n")
    }
}

impl Change {
    fn row(&self, is_topic: bool) -> Vec<String> {
        let what = self.fields.iter().map(|field| {
            let shown = |value: &Value| match value {
                Value::Null => "none".to_owned(),
                Value::String(text) => show::first_line(text, SHOWN),
                other => show::first_line(&other.to_string(), SHOWN),
            };
            let name = if field.field.is_empty() { String::new() } else { format!("{} ", field.field) };
            let fewer = is_topic && field.field == "partitions" && field.to.as_i64() < field.from.as_i64();
            let keeps = if fewer { " (it keeps those it has)" } else { "" };
            format!("{name}{} → {}{keeps}", shown(&field.from), shown(&field.to))
        });
        let (change, what) = match self.change {
            Kind::Added => ("added", "-".to_owned()),
            Kind::Removed if is_topic => ("removed", "it stays, with its records; no step uses it any more".to_owned()),
            Kind::Removed => ("removed", "-".to_owned()),
            Kind::Changed => ("changed", what.collect::<Vec<_>>().join("; ")),
        };
        vec![self.name.clone(), change.to_owned(), what]
    }
}

/// Things by name.
type Named = BTreeMap<String, Value>;

fn planned(side: &GetResponse) -> Result<Plan, String> {
    let cluster = ClusterName::new(&side.cluster).map_err(|error| error.to_string())?;
    let variables = side.variables.clone().into_iter().collect();
    let name = format!("{} revision {}", side.pipeline, side.revision);
    let parsed = pipeline::parse(&side.text, &name, &variables, &Modules::new(), false)
        .map_err(|Problems(problems)| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    Ok(plan(&cluster, &[parsed.config], &Controls::default()))
}

fn steps(plan: &Plan) -> Result<Named, String> {
    let value = |step| serde_json::to_value(step).map_err(|error: serde_json::Error| error.to_string());
    plan.steps.iter().map(|step| Ok((step.id.step.to_string(), with_units(value(step)?)))).collect()
}

/// Fields of a step that are durations in milliseconds, and sizes in bytes.
const DURATIONS: [&str; 5] = ["/timeout", "/revoke_grace", "/retries/initial", "/retries/max", "/batch/wait"];
const SIZES: [&str; 3] = ["/claim_threshold", "/hydrate_max", "/batch/bytes"];

/// A step with its durations and sizes as people write them.
fn with_units(mut step: Value) -> Value {
    let mut write = |at: &str, as_text: fn(u64) -> String| {
        let Some(value) = step.pointer_mut(at) else { return };
        if let Some(number) = value.as_u64() {
            *value = as_text(number).into();
        }
    };
    for at in DURATIONS {
        write(at, |millis| units::Duration(Duration::from_millis(millis)).to_string());
    }
    for at in SIZES {
        write(at, |bytes| units::Size(bytes).to_string());
    }
    step
}

fn topics(plan: &Plan) -> Result<Named, String> {
    let value = |topic| serde_json::to_value(topic).map_err(|error: serde_json::Error| error.to_string());
    plan.topics.iter().map(|topic| Ok((topic.topic.to_string(), value(topic)?))).collect()
}

fn changes(before: &Named, after: &Named) -> Vec<Change> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let change = |name: &String| {
        let (change, fields) = match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => {
                let mut fields = Vec::new();
                differences("", before, after, &mut fields);
                (Kind::Changed, fields)
            }
            (None, _) => (Kind::Added, Vec::new()),
            (_, None) => (Kind::Removed, Vec::new()),
        };
        let is_change = change != Kind::Changed || !fields.is_empty();
        is_change.then(|| Change { name: name.clone(), change, fields })
    };
    names.into_iter().filter_map(change).collect()
}

/// The innermost values that differ, with their paths.
fn differences(path: &str, before: &Value, after: &Value, found: &mut Vec<Field>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let value = |side: &serde_json::Map<String, Value>| side.get(name).cloned().unwrap_or_default();
                differences(&path, &value(before), &value(after), found);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (n, (before, after)) in before.iter().zip(after).enumerate() {
                differences(&format!("{path}[{n}]"), before, after, found);
            }
        }
        _ if before == after => {}
        _ => found.push(Field { field: path.to_owned(), from: before.clone(), to: after.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pipeline: shelf
defaults: {partitions: 3}
steps:
  - {name: parse, type: PIPELINE, module: parser, config: {a: {b: 1}}, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink}
";

    fn side(revision: u64, text: &str) -> GetResponse {
        GetResponse {
            pipeline: "shelf".into(),
            revision,
            text: text.into(),
            cluster: "local".into(),
            ..GetResponse::default()
        }
    }

    #[test]
    fn what_a_change_means_is_what_the_planner_makes_of_it() {
        let after = TEXT
            .replace("{b: 1}", "{b: 2}")
            .replace("[{to: store}]", "[{to: keep}]")
            .replace("name: store", "name: keep")
            .replace("partitions: 3", "partitions: 4");
        let text = Comparison::of(&side(3, TEXT), &side(4, &after)).to_text();
        for line in [
            "--- shelf revision 3",
            "+++ shelf revision 4",
            "-defaults: {partitions: 3}",
            "+defaults: {partitions: 4}",
            "config.a.b 1 → 2",
            "local.shelf.store → local.shelf.keep",
            "partitions 3 → 4",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let row =
            |name: &str, change: &str| text.lines().any(|line| line.split_whitespace().take(2).eq([name, change]));
        assert!(row("keep", "added") && row("store", "removed") && row("parse", "changed"), "{text}");
        assert!(row("local.shelf.keep", "added") && row("local.shelf.store", "removed"), "{text}");
    }

    #[test]
    fn durations_and_sizes_are_shown_as_they_are_written() {
        let with = |settings: &str| TEXT.replace("name: store,", &format!("name: store, {settings},"));
        let before = with("timeout: 30s, batch: {records: 10, bytes: 1MiB, wait: 500ms}, config: {timeout: 7}");
        let after = with("timeout: 50s, batch: {records: 10, bytes: 8MiB, wait: 2s}, config: {timeout: 8}");
        let text = Comparison::of(&side(1, &before), &side(2, &after)).to_text();
        for change in ["timeout 30s → 50s", "batch.bytes 1MiB → 8MiB", "batch.wait 500ms → 2s", "config.timeout 7 → 8"]
        {
            assert!(text.contains(change), "{change} in\n{text}");
        }
    }

    #[test]
    fn a_comment_changes_nothing_that_runs() {
        let text = Comparison::of(&side(1, TEXT), &side(2, &format!("# why\n{TEXT}"))).to_text();
        assert!(text.contains("+# why") && text.contains("nothing that runs"), "{text}");
    }

    #[test]
    fn a_text_that_cannot_be_read_is_still_compared() {
        let comparison = Comparison::of(&side(1, "pipeline: shelf\nstep: []\n"), &side(2, TEXT));
        assert!(comparison.meaning.is_none());
        let text = comparison.to_text();
        assert!(
            text.contains("-step: []") && text.contains("not known") && text.contains("shelf revision 1"),
            "{text}"
        );
    }
}
