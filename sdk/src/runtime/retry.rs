//! How long to wait before trying again.

use std::time::Duration;

use pipedoc_model::step::Retries;
use rand::Rng;

/// Wait after `attempts` failed attempts (at least 1), with its random part.
pub(crate) fn backoff(retries: &Retries, attempts: u32) -> Duration {
    let wait = exact(retries, attempts);
    let jitter = retries.jitter.clamp(0.0, 1.0);
    // Only ever shorter: `max` is a promise.
    wait.mul_f64(1.0 - jitter * rand::rng().random::<f64>())
}

fn exact(retries: &Retries, attempts: u32) -> Duration {
    let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = retries.initial.as_secs_f64() * retries.factor.max(1.0).powi(exponent);
    let max = retries.max.as_secs_f64();
    Duration::from_secs_f64(if seconds.is_finite() { seconds.min(max) } else { max })
}

/// How the runtime itself tries again what is not a document's fault: opening a
/// step, making a client, sending.
pub(crate) fn patient() -> Retries {
    Retries {
        attempts: u32::MAX,
        initial: Duration::from_millis(200),
        max: Duration::from_secs(10),
        factor: 2.0,
        jitter: 0.2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_the_factor_up_to_the_longest() {
        let retries = Retries::default();
        let waits: Vec<u128> = [1, 2, 3, 9, u32::MAX].map(|attempts| exact(&retries, attempts).as_millis()).into();
        assert_eq!(waits, [200, 400, 800, 30_000, 30_000]);
        for attempts in 1..10 {
            let (wait, most) = (backoff(&retries, attempts), exact(&retries, attempts));
            assert!(wait <= most && wait >= most.mul_f64(0.79));
        }
    }
}
