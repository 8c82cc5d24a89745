//! What plans promise.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::registry::Modules;

fn cluster() -> ClusterName {
    ClusterName::new("local").unwrap()
}

fn pipeline(text: &str) -> PipelineConfig {
    crate::pipeline::parse(text, "", &BTreeMap::new(), &Modules::new(), false).unwrap_or_else(|e| panic!("{e}")).config
}

const LIBRARY: &str = r#"
pipeline: library
defaults: {partitions: 6}
steps:
  - {name: files, type: CONNECTOR, module: reader, config: {b: 1, a: {d: 2, c: 3}}, outputs: [{to: parse}]}
  - name: parse
    type: PIPELINE
    module: parser
    input_kafka_topic: [other, {pattern: 'in\..*'}, local.library.parse]
    output_kafka_topics: [everything]
    outputs: [{to: store, when: "doc.body != ''", key: doc.id}, {topic: empty, name: nothing, otherwise: true}]
    allowed_kafka_topics: [extra]
  - {name: store, type: SINK, module: writer, topics: VERIFY, input_kafka_topic: everything}
"#;

#[test]
fn steps_know_their_topics() {
    let plan = plan(&cluster(), &[pipeline(LIBRARY)], &Controls::default());
    let json = serde_json::to_value(&plan).unwrap();
    insta::assert_json_snapshot!(json);
}

#[test]
fn dead_letters_have_room_for_errors_and_stay() {
    let plan = plan(&cluster(), &[pipeline(LIBRARY)], &Controls::default());
    for step in &plan.steps {
        let topic = plan.topics.iter().find(|topic| topic.topic == step.dead_letters).unwrap();
        assert_eq!((topic.max_message_bytes, topic.retention_ms), (Some(1_048_588 + 65_536), Some(-1)));
    }
    let state = plan.topics.iter().find(|topic| topic.topic.as_str() == "local.library.files.state").unwrap();
    assert_eq!((state.partitions, state.compacted), (1, true));
}

#[test]
fn controls_reach_steps_and_the_stricter_one_wins() {
    let pipeline = pipeline(LIBRARY);
    let id = |n: usize| pipeline.step_id(&pipeline.steps[n]);
    let controls = Controls {
        pipelines: [(pipeline.name.clone(), ControlState::Paused)].into(),
        steps: [(id(0), ControlState::Running), (id(1), ControlState::Stopped)].into(),
    };
    let states: Vec<_> =
        plan(&cluster(), std::slice::from_ref(&pipeline), &controls).steps.iter().map(|s| s.control).collect();
    assert_eq!(states, [ControlState::Paused, ControlState::Stopped, ControlState::Paused]);
}

#[test]
fn a_planned_step_survives_its_json_and_the_hash_is_of_what_it_says() {
    let plan = plan(&cluster(), &[pipeline(LIBRARY)], &Controls::default());
    for step in &plan.steps {
        let json = step.to_json().unwrap();
        let back = StepPlan::from_json(&json).unwrap();
        assert_eq!((&back, back.to_json().unwrap(), back.hash().unwrap()), (step, json.clone(), hash_of(&json)));
    }
    // The order of names in a configuration is no difference; a value is.
    let reordered = LIBRARY.replace("{b: 1, a: {d: 2, c: 3}}", "{a: {c: 3, d: 2}, b: 1}");
    let changed = LIBRARY.replace("{b: 1,", "{b: 2,");
    let hash = |text: &str| super::plan(&cluster(), &[pipeline(text)], &Controls::default()).steps[0].hash().unwrap();
    assert_eq!(hash(LIBRARY), hash(&reordered));
    assert_ne!(hash(LIBRARY), hash(&changed));
    assert_eq!(hash(LIBRARY).len(), 64);
}

#[test]
fn a_topic_that_one_step_makes_is_made() {
    let text = "
pipeline: p
steps:
- {name: a, type: PIPELINE, module: m, topics: IGNORE, outputs: [{topic: shared}]}
- {name: b, type: SINK, module: m, topics: VERIFY, input_kafka_topic: shared}
- {name: c, type: SINK, module: m, input_kafka_topic: shared}
";
    let plan = plan(&cluster(), &[pipeline(text)], &Controls::default());
    let policy = |name: &str| plan.topics.iter().find(|topic| topic.topic.as_str() == name).unwrap().policy;
    assert_eq!(policy("shared"), TopicPolicy::Create);
    assert_eq!((policy("local.p.a"), policy("local.p.b.dlq")), (TopicPolicy::Ignore, TopicPolicy::Verify));
}

#[test]
fn the_latest_forms_topic_is_compacted_whoever_else_names_it() {
    let text = "
pipeline: p
steps:
- {name: a, type: PIPELINE, module: m, output_kafka_topics: [{topic: latest, compacted: true}, events]}
- {name: b, type: SINK, module: m, input_kafka_topic: [latest, events]}
";
    let plan = plan(&cluster(), &[pipeline(text)], &Controls::default());
    let compacted = |name: &str| plan.topics.iter().find(|topic| topic.topic.as_str() == name).unwrap().compacted;
    assert_eq!((compacted("latest"), compacted("events")), (true, false));
    assert_eq!(plan.steps[0].outputs.iter().map(|output| output.compacted).collect::<Vec<_>>(), [true, false]);
}

/// Type, concurrency, and which of the later steps it leads to.
type StepShape = (u8, usize, Vec<bool>);

/// Pipelines of a few steps, each with an output to the next ones.
fn pipelines() -> impl Strategy<Value = Vec<PipelineConfig>> {
    let step = (0..3_u8, 1..9_usize, proptest::collection::vec(any::<bool>(), 5));
    let steps = proptest::collection::vec(step, 1..6);
    proptest::collection::vec(steps, 1..4).prop_map(|pipelines| {
        let text = |(n, steps): (usize, &Vec<StepShape>)| {
            let mut text = format!("pipeline: p{n}\nsteps:\n");
            for (index, (kind, concurrency, to)) in steps.iter().enumerate() {
                let kind = if index == 0 && *kind == 0 { "CONNECTOR" } else { "PIPELINE" };
                let targets = (index + 1..steps.len()).filter(|to_index| to[*to_index % 5]);
                let outputs: Vec<_> = targets.map(|to_index| format!("{{to: s{to_index}}}")).collect();
                text.push_str(&format!(
                    "- {{name: s{index}, type: {kind}, module: m, concurrency: {concurrency}, outputs: [{}], output_kafka_topics: [t{kind}]}}\n",
                    outputs.join(", ")
                ));
            }
            pipeline(&text)
        };
        pipelines.iter().enumerate().map(text).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_pipelines_give_the_same_plan_in_any_order(pipelines in pipelines()) {
        let once = plan(&cluster(), &pipelines, &Controls::default());
        let reversed: Vec<_> = pipelines.iter().rev().cloned().collect();
        prop_assert_eq!(&once, &plan(&cluster(), &reversed, &Controls::default()));
        // Every topic is planned once, and every one that a step names is planned.
        let mut names: Vec<_> = once.topics.iter().map(|topic| topic.topic.clone()).collect();
        names.dedup();
        prop_assert_eq!(names.len(), once.topics.len());
        for step in &once.steps {
            prop_assert!(names.contains(&step.dead_letters));
            prop_assert!(step.outputs.iter().all(|output| names.contains(&output.topic)));
            prop_assert_eq!(&StepPlan::from_json(&step.to_json().unwrap()).unwrap(), step);
        }
    }
}
