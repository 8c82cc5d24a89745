//! What is asked of a run, by environment variables:
//!
//! - `PIPEDOC_TEST_CHAOS`: how long faults go on (`90s`, `30m`, `2h`). Without it a fixed
//!   number of faults is done, each kind once.
//! - `PIPEDOC_TEST_SEED`: repeats a run's choices (not its timing).
//! - `PIPEDOC_TEST_ON`: `sqlite` or `kafka`; both otherwise.
//! - `PIPEDOC_TEST_GUARANTEE`: `AT_LEAST_ONCE` or `EXACTLY_ONCE`; both otherwise.
//!
//! An empty variable is as good as none.

use std::time::Duration;

/// How many faults a short run has.
const FEW: usize = 4;

/// What is asked of a run.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub length: Length,
    pub seed: u64,
}

/// How long faults go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Until so many were done.
    Faults(usize),
    /// For so long.
    Time(Duration),
}

impl Order {
    /// What is asked of a run on a log; none: nothing.
    pub fn on(log: &str) -> Option<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        if let Some(only) = set("PIPEDOC_TEST_ON") {
            assert!(["sqlite", "kafka"].contains(&&*only), "PIPEDOC_TEST_ON={only}: expected sqlite or kafka");
            if only != log {
                return None;
            }
        }
        let length = set("PIPEDOC_TEST_CHAOS").map(|text| Length::Time(duration(&text)));
        let seed = set("PIPEDOC_TEST_SEED").map(|text| text.parse().expect("PIPEDOC_TEST_SEED is a number"));
        Some(Self { length: length.unwrap_or(Length::Faults(FEW)), seed: seed.unwrap_or_else(rand::random) })
    }

    /// Whether it goes on for as long as somebody wants.
    pub fn is_long(&self) -> bool {
        matches!(self.length, Length::Time(_))
    }
}

fn duration(text: &str) -> Duration {
    let seconds = ["s", "m", "h"].into_iter().zip([1, 60, 3600]).find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * seconds)
    });
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("PIPEDOC_TEST_CHAOS={text}: expected 90s, 30m or 2h")))
}
