//! The test kit tells what differs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use pipedoc_sdk::check::{check, fails, retries};
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::serde_json::{Value, json};

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

    async fn open(config: Config, step: &Step) -> Result<Self> {
        // A folder of the step's own can be used.
        std::fs::create_dir_all(step.data())?;
        Ok(Self(config.prefix))
    }

    async fn process(&self, mut doc: PipeDoc, _: &Step) -> Result<Output> {
        match doc.title.as_str() {
            "" => Err(Error::permanent("nobody to greet")),
            "busy" => Err(Error::retryable("come back later")),
            "all" => Ok(Output::many([doc.clone(), doc]).to("everybody")),
            _ => {
                doc.title = format!("{} {}", self.0, doc.title);
                Ok(doc.into())
            }
        }
    }
}

fn config() -> Value {
    json!({"prefix": "Hello"})
}

fn doc(title: &str) -> PipeDoc {
    PipeDoc { id: "1".into(), title: title.into(), ..Default::default() }
}

/// What the kit says where the promise is not kept.
fn complaint(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("the check must fail");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn surface_what_is_expected_passes() {
    check::<Greeter>(config(), doc("Ann"), doc("Hello Ann"));
    check::<Greeter>(config(), doc("all"), [doc("all"), doc("all")]);
    check::<Greeter>(config(), doc("all"), Output::many([doc("all"), doc("all")]).to("everybody"));
    check::<Greeter>(config(), doc(""), fails("nobody"));
    check::<Greeter>(config(), doc("busy"), retries("later"));
    check::<Greeter>(json!({"prefix": 1}), doc("Ann"), fails("prefix"));
    check::<Greeter>(json!({"prefix": "x", "more": 1}), doc("Ann"), fails("more"));
    check::<Greeter>(config(), Deletion { id: "1".into(), version: 1 }, Output::delete("1"));
    check::<Greeter>(config(), doc("Ann"), |result: Result<Output>| assert_eq!(result.unwrap().items.len(), 1));
}

#[tokio::test]
async fn surface_the_kit_works_in_asynchronous_tests() {
    check::<Greeter>(config(), doc("Ann"), doc("Hello Ann"));
}

#[test]
fn surface_what_is_not_expected_is_shown() {
    let said = complaint(|| check::<Greeter>(config(), doc("Ann"), doc("Hello Bob")));
    let differs: Vec<_> = said.lines().filter(|line| line.starts_with(['-', '+'])).collect();
    assert_eq!(differs.len(), 2, "{said}");
    assert!(differs[0].contains("Hello Bob") && differs[1].contains("Hello Ann"), "{said}");

    let said = complaint(|| check::<Greeter>(config(), doc("Ann"), Vec::new()));
    assert!(said.contains("- nothing"), "{said}");
    let said = complaint(|| check::<Greeter>(config(), doc("all"), Output::many([doc("all"), doc("all")])));
    assert!(said.contains("+ to \"everybody\""), "{said}");
    let said = complaint(|| check::<Greeter>(config(), doc("busy"), fails("later")));
    assert!(said.contains("expected a permanent error") && said.contains("the error is retryable"), "{said}");
    let said = complaint(|| check::<Greeter>(config(), doc("Ann"), fails("x")));
    assert!(said.contains("the module succeeded with"), "{said}");
    let said = complaint(|| check::<Greeter>(config(), doc(""), doc("x")));
    assert!(said.contains("nobody to greet"), "{said}");
}
