//! What the tests of the SDK's surface share.

#![allow(dead_code, reason = "no test uses all of it")]

pub mod engine;
pub mod plans;

use std::time::{Duration, Instant};

/// Waits until something holds, for a minute at most.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
