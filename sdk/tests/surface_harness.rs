//! The harness: a module on the memory log, through the real runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use pipedoc_sdk::harness::Harness;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::serde_json::json;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What to put before the title.
    prefix: String,
}

struct Greeter(String);

impl Module for Greeter {
    type Config = Config;
    const NAME: &'static str = "greeter";

    async fn open(config: Config, _: &Step) -> Result<Self> {
        Ok(Self(config.prefix))
    }

    async fn process(&self, mut doc: PipeDoc, _: &Step) -> Result<Output> {
        match doc.title.as_str() {
            "" => Err(Error::permanent("nobody to greet").with_kind("empty")),
            "panic" => panic!("cannot greet"),
            _ => {
                doc.title = format!("{} {}", self.0, doc.title);
                Ok(doc.into())
            }
        }
    }
}

fn doc(id: usize, title: &str) -> PipeDoc {
    PipeDoc { id: id.to_string(), title: title.into(), ..Default::default() }
}

#[tokio::test]
async fn surface_nothing_is_lost_when_the_log_stumbles() {
    let mut harness = Harness::new::<Greeter>(json!({"prefix": "Hello"})).await.unwrap();
    for id in 0..50 {
        harness.send(doc(id, "Ann")).await.unwrap();
    }
    harness.delete("7").await.unwrap();
    harness.faults().fail_acks(5, true);
    harness.faults().fail_commits(2, true);
    harness.settle().await.unwrap();

    let mut ids: Vec<usize> = Vec::new();
    for doc in harness.results().await.unwrap() {
        assert_eq!(doc.title, "Hello Ann");
        ids.push(doc.id.parse().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
    assert_eq!(harness.deletions().await.unwrap(), ["7"]);
    assert_eq!(harness.dead_letters().await.unwrap(), []);
    harness.stop().await;
}

#[tokio::test]
async fn surface_what_is_given_up_on_is_a_dead_letter_with_its_reason() {
    let mut harness = Harness::new::<Greeter>(json!({"prefix": "Hello"})).await.unwrap();
    for (id, title) in ["", "Bob", "panic"].into_iter().enumerate() {
        harness.send(doc(id, title)).await.unwrap();
    }
    harness.settle().await.unwrap();
    assert_eq!(harness.results().await.unwrap().len(), 1);
    let mut letters = harness.dead_letters().await.unwrap();
    letters.sort_by(|a, b| a.document.cmp(&b.document));
    let told: Vec<_> = letters.iter().map(|letter| (letter.document.as_str(), letter.kind.as_str())).collect();
    assert_eq!(told, [("0", "empty"), ("2", "panic")]);
    assert_eq!(letters[0].error, "nobody to greet");
    assert!(letters[1].error.contains("cannot greet"), "{}", letters[1].error);

    // It goes on where it stopped.
    harness.stop().await;
    harness.send(doc(9, "Eve")).await.unwrap();
    harness.settle().await.unwrap();
    assert_eq!(harness.results().await.unwrap().len(), 2);
    harness.stop().await;
}

#[tokio::test]
async fn surface_a_module_that_cannot_be_opened_is_told() {
    let mut harness = Harness::new::<Greeter>(json!({"prefix": 1})).await.unwrap();
    let error = harness.settle().await.unwrap_err();
    assert!(error.to_string().contains("prefix"), "{error}");
    harness.stop().await;
}
