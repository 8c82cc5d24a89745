//! Cases of a property from a seed that is printed and can be set. Knows nothing
//! of what is tested.
//!
//! `PIPEDOC_TEST_SEED` sets the seed, `PIPEDOC_TEST_CASES` the number of cases
//! (the long form).

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Tries a property on so many cases. A failure is shown with its seed, at once as
/// it was found and then as small as `shrinks` attempts make it.
pub fn explore<S: Strategy>(
    name: &str,
    cases: u32,
    shrinks: u32,
    strategy: &S,
    property: impl Fn(S::Value) -> Result<(), String>,
) where
    S::Value: std::fmt::Debug,
{
    let seed = number("PIPEDOC_TEST_SEED").unwrap_or_else(rand::random);
    let cases = number("PIPEDOC_TEST_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(cases);
    println!("{name}: PIPEDOC_TEST_SEED={seed} PIPEDOC_TEST_CASES={cases}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrinks, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let first = std::sync::Once::new();
    let judged = |case| {
        property(case).map_err(|reason| {
            first.call_once(|| eprintln!("{name}, seed {seed}: {reason}"));
            TestCaseError::fail(reason)
        })
    };
    match runner.run(strategy, judged) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{name}, seed {seed}: {reason}\nsmallest case found: {case:#?}")
        }
        Err(TestError::Abort(reason)) => panic!("{name}, seed {seed}: {reason}"),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}
