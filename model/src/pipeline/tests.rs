//! What the pipeline file promises: every mistake at once, each at its place.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::names::ModuleName;
use crate::registry::ModuleInfo;
use crate::step::StepType;

fn modules() -> Modules {
    let module = |name: &str, step_types: &[StepType], config_schema: serde_json::Value| {
        let module = ModuleName::new(name).unwrap();
        let info = ModuleInfo {
            module: module.clone(),
            version: "1.0.0".to_owned(),
            step_types: step_types.to_vec(),
            config_schema,
            description: String::new(),
        };
        (module, info)
    };
    let object = |properties: serde_json::Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    BTreeMap::from([
        module(
            "reader",
            &[StepType::Connector],
            object(json!({"folder": {"type": "string", "minLength": 1}}), &["folder"]),
        ),
        module("parser", &[StepType::Pipeline], json!({"type": "object"})),
        module(
            "chunker",
            &[StepType::Pipeline],
            object(
                json!({
                    "size": {"type": "integer", "minimum": 1},
                    "unit": {"oneOf": [{"const": "CHARACTERS"}, {"const": "TOKENS"}]},
                    "every": {"type": "string", "pattern": "^[0-9]+s$"}
                }),
                &[],
            ),
        ),
        module("writer", &[StepType::Sink, StepType::Pipeline], json!({"type": "object"})),
    ])
}

fn variables(given: &[(&str, &str)]) -> BTreeMap<String, String> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(text: &str) -> Result<Parsed, Problems> {
    parse(text, "p.yaml", &BTreeMap::new(), &modules(), true)
}

/// All errors, one a line.
fn errors(text: &str) -> String {
    read(text).map(|parsed| panic!("taken: {parsed:#?}")).unwrap_err().to_string()
}

/// A pipeline around one step's fields, given as flow mapping entries.
fn with_step(fields: &str) -> String {
    format!(
        "pipeline: p\nsteps:\n- {{name: a, type: PIPELINE, module: parser, outputs: [{{to: z}}], {fields}}}\n- {{name: z, type: SINK, module: writer}}\n"
    )
}

const GOOD: &str = r#"
pipeline: library
defaults: {partitions: 6, retries: {attempts: 3, initial: 100ms}, timeout: 10s}
steps:
  - {name: files, type: CONNECTOR, module: reader, config: {folder: "${in}"}, outputs: [{to: parse}]}
  - {name: parse, type: PIPELINE, module: parser, concurrency: 4, timeout: 60s, outputs: [{to: chunk, when: "doc.body != ''"}]}
  - {name: chunk, type: PIPELINE, module: chunker, config: {size: 1000}, outputs: [{to: store, transport: TOPIC}]}
  - {name: store, type: SINK, module: writer, config: {url: "file://${out}/$${x}"}}
"#;

#[test]
fn a_good_file_is_taken_with_defaults_filled_in() {
    let given = variables(&[("in", "/docs"), ("out", "/tmp")]);
    let parsed = parse(GOOD, "p.yaml", &given, &modules(), true).unwrap();
    assert_eq!(parsed.warnings, []);
    let config = parsed.config;
    assert_eq!((config.name.as_str(), config.partitions, config.steps.len()), ("library", 6, 4));
    let parse = config.step("parse").unwrap();
    assert_eq!(parse.timeout, Duration::from_secs(60));
    assert_eq!((parse.concurrency, parse.retries.attempts, parse.retries.max), (4, 3, Duration::from_secs(30)));
    assert_eq!(parse.outputs[0].when.as_deref(), Some("doc.body != ''"));
    assert_eq!(config.step("chunk").unwrap().timeout, Duration::from_secs(10));
    assert_eq!(config.steps[0].config, json!({"folder": "/docs"}));
    assert_eq!(config.steps[3].config, json!({"url": "file:///tmp/${x}"}));
}

#[test]
fn the_example_is_taken() {
    let text = include_str!("../../../examples/library/pipeline.yaml");
    let parsed = parse(text, "", &variables(&[("in", "in"), ("out", "out")]), &Modules::new(), false).unwrap();
    assert_eq!(parsed.config.steps.len(), 4);
}

#[test]
fn json_is_read_like_yaml() {
    let given = variables(&[("in", "/docs"), ("out", "/tmp")]);
    let yaml = parse(GOOD, "", &given, &modules(), true).unwrap();
    let text = r#"{"pipeline": "library",
	"defaults": {"partitions": 6, "retries": {"attempts": 3, "initial": "100ms"}, "timeout": "10s"},
	"steps": [
	  {"name": "files", "type": "CONNECTOR", "module": "reader", "config": {"folder": "${in}"}, "outputs": [{"to": "parse"}]},
	  {"name": "parse", "type": "PIPELINE", "module": "parser", "concurrency": 4, "timeout": "60s",
	   "outputs": [{"to": "chunk", "when": "doc.body != ''"}]},
	  {"name": "chunk", "type": "PIPELINE", "module": "chunker", "config": {"size": 1000}, "outputs": [{"to": "store"}]},
	  {"name": "store", "type": "SINK", "module": "writer", "config": {"url": "file://${out}/$${x}"}}]}"#;
    assert_eq!(parse(text, "", &given, &modules(), true).unwrap(), yaml);
}

#[test]
fn a_file_with_five_mistakes_names_all_five() {
    let text = "\
pipeline: library
steps:
  - name: files
    type: CONNECTOR
    module: reader
    config: {folder: /docs}
    outputs: [{to: prase}]
  - name: parse
    type: PIPELINE
    module: parsr
    concurency: 4
    timeout: sixty seconds
    outputs:
      - to: store
        when: doc.bdy != ''
  - name: store
    type: SINK
    module: writer
";
    insta::assert_snapshot!(errors(text));
}

#[test]
fn mistakes_of_shape_and_of_meaning_are_told_together() {
    let text = "\
pipeline: Library
defaults: {partitions: 0, hydration: LAZY, retries: {factor: 0.5}}
steps:
  - {name: a, type: pipeline, module: parser, concurrency: many}
  - {name: a, type: SINK, module: writer, outputs: [{to: a}]}
  - {type: PIPELINE, module: chunker, config: {size: big, unit: WORDS, sise: 1}, outputs: {to: a}}
  - just a text
  - {name: b, type: CONNECTOR, module: chunker, name: c, input_kafka_topic: in, outputs: [{}, {to: b, topic: t}, 5]}
";
    insta::assert_snapshot!(errors(text));
}

#[test]
fn texts_that_are_no_pipelines_are_refused() {
    let all: Vec<_> = [
        "",
        "# nothing\n",
        "just text",
        "- a\n- b\n",
        "pipeline: p\nsteps: []\n",
        "pipeline: p\n",
        "pipeline: p\nsteps:\n\t- x\n",
        "pipeline: [p\nsteps: 5",
        "pipeline: p\nsteps: [{name: a, type: SINK, module: writer}]\n---\npipeline: q\n",
        "pipeline: *nowhere\nsteps: []\n",
        "{pipeline: p, steps: null}",
        "? [a]\n: b\n",
        "pipeline: !secret p\nsteps: [{name: a, type: SINK, module: writer}]\n",
    ]
    .into_iter()
    .map(|text| format!("{text:?}\n{}\n", errors(text)))
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn what_comes_later_is_refused_and_never_ignored() {
    let rate = "stop_at_failure_rate: 20% of the last 500";
    insta::assert_snapshot!(errors(&with_step(&format!("delivery: AT_MOST_ONCE, on_exhausted: PAUSE, {rate}"))));
    let grpc = "{pipeline: p, steps: [{name: a, type: PIPELINE, module: parser, outputs: [{to: z, transport: GRPC}]}, {name: z, type: SINK, module: writer}]}";
    insta::assert_snapshot!(errors(grpc));
    let connector = |delivery: &str| {
        format!(
            "{{pipeline: p, defaults: {{delivery: {delivery}}}, steps: [{{name: a, type: CONNECTOR, module: reader, config: {{folder: x}}, outputs: [{{to: z}}]}}, {{name: z, type: SINK, module: writer}}]}}"
        )
    };
    let refused = errors(&connector("AT_MOST_ONCE"));
    assert!(
        refused.contains("steps[0].delivery: delivery AT_MOST_ONCE is not supported yet for a CONNECTOR"),
        "{refused}"
    );
    assert!(read(&connector("EXACTLY_ONCE")).is_ok());
    for taken in [
        "delivery: EXACTLY_ONCE",
        "delivery: AT_MOST_ONCE",
        "delivery: AT_MOST_ONCE, kafka: {producer: {acks: 1}}",
        "ordering: NONE",
        "ordering: PARTITION",
        "on_exhausted: SKIP",
        "on_exhausted: PAUSE",
        "stop_at_failure_rate: 20% of the last 500",
        "batch: {records: 5, bytes: 1MiB}",
        "hydration: LAZY",
        "hydration: NEVER",
        "input_kafka_topic: {topic: t, format: JSON}",
        "output_kafka_topics: [{topic: t, format: RAW}, {topic: latest, compacted: true}]",
    ] {
        assert!(read(&with_step(taken)).is_ok(), "{taken}");
    }
}

#[test]
fn a_topic_is_read_as_what_it_is_written_as() {
    let text = "
pipeline: p
steps:
- {name: a, type: PIPELINE, module: parser, outputs: [
    {topic: json, format: JSON}, {topic: raw, format: RAW}, {topic: docs},
    {to: b, format: JSON, compacted: true}, {topic: c.p.c, format: RAW}]}
- {name: b, type: SINK, module: writer, input_kafka_topic: [json, {topic: docs, format: JSON}, {topic: raw, format: JSON}]}
- {name: c, type: SINK, module: writer, input_kafka_topic: [{topic: c.p.c, format: JSON}, {pattern: 'do.*', format: RAW}]}
";
    let errors = errors(text);
    for expected in [
        "steps[0].outputs[3].format: a step reads PIPEDOC from the steps before it",
        "steps[0].outputs[3].compacted: a step gets every record",
        "steps[1].input_kafka_topic: json is read as PIPEDOC, but step a writes JSON to it",
        "steps[1].input_kafka_topic: docs is read as JSON, but step a writes PIPEDOC to it",
        "steps[2].input_kafka_topic: c.p.c is the step's own input topic, which is PIPEDOC; found JSON",
        "steps[2].input_kafka_topic: c.p.c is read as PIPEDOC, but step a writes RAW to it",
    ] {
        assert!(errors.contains(expected), "{expected:?} is not in\n{errors}");
    }
    assert_eq!(errors.lines().filter(|line| line.contains("p.yaml:")).count(), 6, "{errors}");
}

#[test]
fn a_failure_rate_is_a_share_of_the_last_deliveries() {
    let rate: crate::step::FailureRate = "20% of the last 500".parse().unwrap();
    assert_eq!((rate.percent, rate.last, rate.to_string().as_str()), (20.0, 500, "20% of the last 500"));
    for wrong in [
        "0.5",
        "20%",
        "0% of the last 5",
        "101% of the last 5",
        "NaN% of the last 5",
        "5% of the last 0",
        "5% of the last 9 x",
    ] {
        assert!(wrong.parse::<crate::step::FailureRate>().is_err(), "{wrong}");
        let errors = errors(&with_step(&format!("stop_at_failure_rate: '{wrong}'")));
        assert!(errors.contains("written like `20% of the last 500`") && errors.contains(wrong), "{errors}");
    }
}

#[test]
fn settings_say_what_is_wrong_with_them() {
    let all: Vec<_> = [
        "timeout: 0s",
        "timeout: 60",
        "retries: {initial: 1, max: 30}",
        "batch: {wait: [1]}",
        "stop_at_failure_rate: 20",
        "claim_threshold: 8 mib",
        "claim_threshold: -1",
        "concurrency: 0",
        "concurrency: 99999999999",
        "batch: {records: 0}",
        "retries: {initial: 1m, max: 1s}",
        "retries: {jitter: 2, attempt: 1}",
        "kafka: {producer: {acks: 1, linger.ms: 5}}",
        "kafka: {producer: {linger.ms: -5, lingr.ms: 5, partitioner: random}, consumer: {group.id: x, fetch.min.bytes: many, session.timeout.ms: 6000, group.protocol: consumer}}",
        "kafka: {consumer: [a]}",
        "max_hops: 0",
        "topics: MAKE",
        "input_kafka_topic: 5",
        "input_kafka_topic: [{pattern: '(a'}, {topic: 'a b'}, {}, {pattern: a, topic: b}]",
        "output_kafka_topics: [{key: 'doc.nothing'}, {topic: t, key: 'doc.id +'}]",
        "allowed_kafka_topics: ['', 7]",
    ]
    .into_iter()
    .map(|fields| errors(&with_step(fields)))
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn settings_of_clients_are_looked_at_with_their_defaults() {
    let text = "pipeline: p
defaults: {kafka: {consumer: {group.protocol: consumer}, producer: {max.in.flight: 3, linger.ms: 10}}}
steps:
- {name: a, type: SINK, module: writer, kafka: {consumer: {session.timeout.ms: 6000}}}
- {name: b, type: SINK, module: writer, kafka: {producer: {delivery.timeout.ms: 10}}}
- {name: c, type: SINK, module: writer, kafka: {producer: {linger.ms: 1, delivery.timeout.ms: 10}}}
";
    insta::assert_snapshot!(errors(text));
}

/// Whoever lacks the secret names the setting as it stands in the file.
#[test]
fn settings_with_secrets_keep_their_names_as_written() {
    let parsed = read(&with_step(
        "kafka: {producer: {linger.ms: '${env:LINGER}', acks: all}, consumer: {max.partition.fetch.bytes: '${file:/x}'}}",
    ));
    let step = &parsed.unwrap().config.steps[0];
    let names = |settings: &BTreeMap<String, String>| settings.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&step.producer_settings), ["linger.ms", "request.required.acks"]);
    assert_eq!(names(&step.consumer_settings), ["max.partition.fetch.bytes"]);
}

#[test]
fn rules_of_outputs_are_kept() {
    let with_outputs = |outputs: &str| {
        format!(
            "pipeline: p\nsteps:\n- {{name: a, type: PIPELINE, module: parser, outputs: {outputs}}}\n- {{name: y, type: SINK, module: writer}}\n- {{name: z, type: SINK, module: writer}}\n"
        )
    };
    let all: Vec<_> = [
        "[{to: z, otherwise: true}]",
        "[{to: z, when: 'true'}, {to: y, otherwise: true, when: 'true', weight: 1}]",
        "[{to: z, weight: 0}]",
        "[{to: z}, {to: z, when: 'true'}]",
        "[{to: z, name: ''}, {topic: 'bad topic'}]",
        "[{to: z, when: 'doc.title.matches(\"(\")'}, {to: y, when: 'nothing > 1 && doc.blobs[0].inline == b\"\"'}]",
    ]
    .into_iter()
    .map(|outputs| errors(&with_outputs(outputs)))
    .collect();
    insta::assert_snapshot!(all.join("\n"));
    for taken in [
        "[{to: z, weight: 1}, {to: y, weight: 3, when: 'has(doc.title)'}]",
        "[{to: z, when: \"doc.mime_type == 'text/plain'\"}, {to: y, otherwise: true}]",
        "[{to: z}, {to: z, name: again}, {topic: Foreign_topic.1}]",
    ] {
        assert!(read(&with_outputs(taken)).is_ok(), "{taken}");
    }
}

#[test]
fn a_cycle_needs_max_hops_and_is_named() {
    let text = |hops: &str| {
        format!(
            "pipeline: p
steps:
- {{name: in, type: CONNECTOR, module: reader, config: {{folder: x}}, outputs: [{{to: a}}]}}
- {{name: a, type: PIPELINE, module: parser, outputs: [{{to: b}}, {{to: out}}]}}
- {{name: b, type: PIPELINE, module: parser, outputs: [{{topic: ring}}] {hops}}}
- {{name: c, type: PIPELINE, module: parser, input_kafka_topic: {{pattern: 'ri.g'}}, output_kafka_topics: [any.p.a]}}
- {{name: out, type: SINK, module: writer}}
"
        )
    };
    insta::assert_snapshot!(errors(&text("")));
    assert!(read(&text(", max_hops: 10")).is_ok());
    for (output, at) in [
        ("outputs: [{to: out}, {topic: any.p.a}]", "steps[0].outputs[1].topic: "),
        ("output_kafka_topics: [t, {topic: any.p.a}]", "steps[0].output_kafka_topics[1].topic: "),
        ("output_kafka_topics: [t, any.p.a]", "steps[0].output_kafka_topics[1]: "),
    ] {
        let text = format!(
            "pipeline: p
steps:
- {{name: a, type: PIPELINE, module: parser, input_kafka_topic: any.p.a, {output}}}
- {{name: out, type: SINK, module: writer}}
"
        );
        let errors = errors(&text);
        assert!(errors.contains("for ever: a → a") && errors.contains(at), "{errors}");
    }
}

#[test]
fn dead_letters_go_round_no_circle() {
    let text = |a: &str, b: &str| {
        format!(
            "pipeline: p
steps:
- {{name: in, type: CONNECTOR, module: reader, config: {{folder: x}}, outputs: [{{to: a}}]}}
- {{name: a, type: PIPELINE, module: parser, max_hops: 5, input_kafka_topic: {a}, outputs: [{{to: out}}]}}
- {{name: b, type: PIPELINE, module: parser, input_kafka_topic: {b}, outputs: [{{to: out}}]}}
- {{name: out, type: SINK, module: writer}}
"
        )
    };
    let all = [
        text("{topic: local.p.a.dlq}", "other"),
        text("[one, any.p.a.dlq]", "other"),
        text("[{pattern: '.*dlq'}, local.p.b.dlq]", "[{topic: local.p.a.dlq, format: RAW}]"),
    ]
    .map(|text| errors(&text));
    insta::assert_snapshot!(all.join("\n"));
    assert!(read(&text("{pattern: '.*'}", "local.p.a.dlq")).is_ok(), "others' dead letters may be read");
    assert!(read(&text("local.other.a.dlq", "local.p.in.dlq")).is_ok(), "other pipelines' as well");
}

#[test]
fn variables_are_filled_in_or_named() {
    let text = "\
pipeline: p
steps:
- name: a
  type: CONNECTOR
  module: reader
  config: {folder: \"${in}/${sub}\"}
  concurrency: ${n}
  outputs: [{to: z}]
- name: z
  type: SINK
  module: writer
  config:
    url: 'x${'
    token: '${env:TOKEN} $${env:TOKEN}'
    at: ${in}
";
    let parse = |given: &[(&str, &str)]| parse(text, "p.yaml", &variables(given), &modules(), true);
    insta::assert_snapshot!(parse(&[("subb", "x")]).unwrap_err());
    let fixed = text.replace("'x${'", "'x'");
    let given = variables(&[("in", "12"), ("sub", "b"), ("n", "3"), ("unused", "")]);
    let parsed = super::parse(&fixed, "p.yaml", &given, &modules(), true).unwrap();
    assert_eq!(parsed.config.steps[0].config, json!({"folder": "12/b"}));
    assert_eq!(parsed.config.steps[0].concurrency, 3);
    assert_eq!(parsed.config.steps[1].config, json!({"url": "x", "token": "${env:TOKEN} $${env:TOKEN}", "at": 12}));
    let warnings: Vec<_> = parsed.warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"));
}

#[test]
fn secrets_fit_where_a_text_is_wanted() {
    let fields = |config: &str| {
        format!("pipeline: p\nsteps:\n- {{name: a, type: PIPELINE, module: chunker, config: {config}}}\n")
    };
    assert!(read(&fields("{every: \"${env:EVERY}\", unit: \"${file:/run/unit}\"}")).is_ok());
    insta::assert_snapshot!(errors(&fields("{size: \"${env:SIZE}\", every: \"$${env:EVERY}\"}")));
}

#[test]
fn modules_are_known_or_waited_for() {
    let text = "pipeline: p\nsteps:\n- {name: a, type: CONNECTOR, module: raeder, outputs: [{to: z}]}\n- {name: z, type: PIPELINE, module: reader}\n";
    let lenient = |text: &str| parse(text, "p.yaml", &BTreeMap::new(), &modules(), false);
    insta::assert_snapshot!(errors(text));
    insta::assert_snapshot!(lenient(text).unwrap_err());
    let waiting = lenient(&text.replace("type: PIPELINE, module: reader", "type: SINK, module: zebra")).unwrap();
    let warnings: Vec<_> = waiting.warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"));
}

#[test]
fn keys_that_deletions_cannot_have_are_warned_of() {
    let text = with_step("output_kafka_topics: [{topic: t, key: doc.title}, {topic: u, key: key}]");
    let warnings: Vec<_> = read(&text).unwrap().warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"));
}

#[test]
fn steps_that_nothing_reaches_are_warned_of() {
    let text = "\
pipeline: p
steps:
- {name: in, type: CONNECTOR, module: reader, config: {folder: x}, outputs: [{to: out}]}
- {name: lost, type: PIPELINE, module: parser}
- {name: out, type: SINK, module: writer}
";
    let warnings: Vec<_> = read(text).unwrap().warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"));
}

#[test]
fn anchors_are_followed_and_bounded() {
    let text = "\
pipeline: p
steps:
- &first {name: a, type: PIPELINE, module: parser, retries: &r {attempts: 2}, outputs: [{to: z}]}
- {name: z, type: SINK, module: writer, retries: *r}
";
    assert_eq!(read(text).unwrap().config.steps[1].retries.attempts, 2);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", ")));
    }
    assert!(errors(&bomb).contains("more than 100000 values"));
    insta::assert_snapshot!(errors(&format!("pipeline: {}", "[".repeat(5000))));
    let deep: String = (0..100).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    insta::assert_snapshot!(errors(&deep));
}

#[test]
fn modules_configurations_can_be_checked_alone() {
    let schema = json!({"type": "object", "properties": {"to": {"type": "array", "items": {"type": "integer"}}}});
    let problems = check_module_config(&schema, &json!({"to": [1, "x"]}));
    assert_eq!(problems[0].to_string(), "to[1]: found the text \"x\", expected a whole number");
    assert_eq!(check_module_config(&schema, &json!({"to": []})), []);
    assert!(check_module_config(&json!({"type": 5}), &json!({}))[0].message.contains("schema cannot be used"));
}

#[test]
fn the_schema_is_one_and_describes_every_field() {
    let schema = schema();
    assert!(jsonschema::meta::is_valid(&schema));
    fn undescribed(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            if field["description"].as_str().is_none_or(str::is_empty) {
                found.push(format!("{path}/{name}"));
            }
        }
        match schema {
            serde_json::Value::Object(fields) => {
                fields.iter().for_each(|(name, inner)| undescribed(inner, &format!("{path}/{name}"), found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| undescribed(item, path, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    undescribed(&schema, "", &mut found);
    assert_eq!(found, Vec::<String>::new());
    assert!(!schema.to_string().contains("\"null\""));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_whatever_makes_it_panic(text in "(?s).{0,200}") {
            let _ = read(&text);
        }

        #[test]
        fn no_text_of_yaml_makes_it_panic(text in "[-a-c:\\[\\]{},\"'&*!|>#%@ \n\t${}0-9.]{0,120}") {
            let _ = read(&text);
        }

        #[test]
        fn no_edit_of_a_good_file_makes_it_panic(at in 0..GOOD.len(), remove in 0..12_usize, insert in "[-a-z:\\[\\]{},\"' \n$.]{0,6}") {
            let mut text = GOOD.to_owned();
            text.replace_range(at..(at + remove).min(text.len()), &insert);
            if let Err(problems) = parse(&text, "p.yaml", &variables(&[("in", "x"), ("out", "y")]), &modules(), true) {
                prop_assert!(!problems.0.is_empty());
                prop_assert!(problems.0.iter().all(|problem| problem.line > 0 && problem.column > 0 && !problem.message.is_empty()), "{problems}");
            }
        }

        #[test]
        fn no_expression_makes_it_panic(text in "[a-z.()\\[\\]{}'\"?:!&|<>=+* 0-9\\\\,]{0,60}") {
            let _ = crate::condition::Condition::compile(&text);
        }

        #[test]
        fn no_expression_of_any_characters_makes_it_panic(text in "(?s).{0,60}") {
            let _ = crate::condition::Condition::compile(&text);
        }
    }
}
