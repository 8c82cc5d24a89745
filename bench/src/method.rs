//! The method: arms that do the same work in turn, a control, and ratios.
//!
//! A machine is never equally fast twice, so figures of two arms are compared
//! only within one round, and rounds are what is summed up. The baseline runs
//! between the rounds (`A B C A B C A`), and an arm's ratio is that to the mean of
//! the two baselines around it, so that a machine that grows slower or faster
//! favours nobody. Those two baselines against each other are the control:
//! whatever they differ by is noise.
//!
//! Knows nothing of what arms do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

/// What one run of one arm cost.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// From the first to the last thing that counts, as the arm defines it.
    pub wall: Duration,
    /// User and system time of all processes of the arm, over the same span.
    pub cpu: Duration,
    /// How many records arrived; counted at the end, not sent at the beginning.
    pub records: u64,
    /// What else it measured, by name; the unit is part of the name.
    pub figures: BTreeMap<&'static str, f64>,
}

impl Run {
    /// Microseconds of wall time a record.
    #[must_use]
    pub fn wall_per_record(&self) -> f64 {
        self.wall.as_secs_f64() * 1e6 / self.records as f64
    }

    /// Microseconds of CPU a record.
    #[must_use]
    pub fn cpu_per_record(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.records as f64
    }
}

/// One way of doing the work.
pub trait Arm {
    /// Its name in the table.
    fn name(&self) -> &str;

    /// Does the work once, from the same beginning each time. What must be there
    /// before is made outside the measured span.
    ///
    /// # Errors
    /// When it could not, or when not all arrived: such a run has no figures.
    fn run(&mut self) -> anyhow::Result<Run>;
}

/// Median and ends of some figures.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> anyhow::Result<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { anyhow::bail!("nothing was measured") };
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Ok(Self { median, min, max })
    }
}

/// What an arm came to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The arm.
    pub arm: String,
    /// Records a second of wall time.
    pub per_second: Spread,
    /// Microseconds of CPU a record, all processes of the arm.
    pub cpu_per_record: Spread,
    /// Its speed in records a second, as a multiple of the baseline's of the same round.
    pub speed: Spread,
    /// Its CPU a record, as a multiple of the baseline's of the same round.
    pub cpu: Spread,
    /// What else it measured.
    pub figures: BTreeMap<&'static str, Spread>,
}

/// What came of some rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// How many rounds there were.
    pub pairs: usize,
    /// The baseline; its ratios are the control, each run of it against the one
    /// before.
    pub baseline: Summary,
    /// The other arms, as they were given.
    pub arms: Vec<Summary>,
}

impl Comparison {
    /// The summary of an arm by its name.
    #[must_use]
    pub fn arm(&self, name: &str) -> Option<&Summary> {
        self.arms.iter().find(|summary| summary.arm == name)
    }
}

/// Runs `A B A B … A` with so many `B` and sums up: medians of the rounds' ratios.
/// `progress` is told of each run as it ends. A measurement that is to be quoted
/// has 5 pairs or more.
///
/// # Errors
/// The first error of any arm, with its name.
pub fn compare(
    baseline: &mut dyn Arm,
    others: &mut [&mut dyn Arm],
    pairs: usize,
    progress: &mut dyn FnMut(&str, &Run),
) -> anyhow::Result<Comparison> {
    ensure!(pairs > 0, "at least one pair is needed");
    let mut baselines = vec![once(baseline, progress)?];
    let mut runs: Vec<Vec<Run>> = others.iter().map(|_| Vec::new()).collect();
    for _ in 0..pairs {
        for (arm, runs) in others.iter_mut().zip(&mut runs) {
            runs.push(once(*arm, progress)?);
        }
        baselines.push(once(baseline, progress)?);
    }
    let around: Vec<PerRecord> = baselines.windows(2).map(|pair| PerRecord::mean(&pair[0], &pair[1])).collect();
    let arms = others.iter().zip(&runs).map(|(arm, runs)| summary(arm.name(), runs, &around));
    let arms = arms.collect::<anyhow::Result<_>>()?;
    let before: Vec<PerRecord> = baselines.iter().map(|run| PerRecord::mean(run, run)).collect();
    Ok(Comparison { pairs, baseline: summary(baseline.name(), &baselines[1..], &before)?, arms })
}

fn once(arm: &mut dyn Arm, progress: &mut dyn FnMut(&str, &Run)) -> anyhow::Result<Run> {
    let run = arm.run().with_context(|| format!("arm {}", arm.name()))?;
    ensure!(run.records > 0, "arm {} moved no record", arm.name());
    progress(arm.name(), &run);
    Ok(run)
}

/// What runs are compared to, in microseconds.
struct PerRecord {
    wall: f64,
    cpu: f64,
}

impl PerRecord {
    fn mean(a: &Run, b: &Run) -> Self {
        let mean = |of: fn(&Run) -> f64| (of(a) + of(b)) / 2.0;
        Self { wall: mean(Run::wall_per_record), cpu: mean(Run::cpu_per_record) }
    }
}

/// Sums up runs, each with what it is compared to.
fn summary(arm: &str, runs: &[Run], to: &[PerRecord]) -> anyhow::Result<Summary> {
    let names: BTreeSet<_> = runs.iter().flat_map(|run| run.figures.keys().copied()).collect();
    let figures = names
        .into_iter()
        .map(|name| Ok((name, Spread::of(runs.iter().filter_map(|run| run.figures.get(name).copied()))?)));
    let pairs = || runs.iter().zip(to);
    Ok(Summary {
        arm: arm.to_owned(),
        per_second: Spread::of(runs.iter().map(|run| 1e6 / run.wall_per_record()))?,
        cpu_per_record: Spread::of(runs.iter().map(Run::cpu_per_record))?,
        speed: Spread::of(pairs().map(|(run, to)| to.wall / run.wall_per_record()))?,
        cpu: Spread::of(pairs().map(|(run, to)| run.cpu_per_record() / to.cpu))?,
        figures: figures.collect::<anyhow::Result<_>>()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may")]
mod tests {
    use super::*;

    /// Takes what its list says, in milliseconds, one entry a run.
    struct Fixed(&'static str, Vec<u64>);

    impl Arm for Fixed {
        fn name(&self) -> &str {
            self.0
        }
        fn run(&mut self) -> anyhow::Result<Run> {
            let wall = Duration::from_millis(self.1.remove(0));
            Ok(Run { wall, cpu: wall / 2, records: 1000, figures: BTreeMap::new() })
        }
    }

    #[test]
    fn drift_of_the_machine_cancels_out() {
        // The machine gets slower all the time; B always costs twice what A does.
        let mut a = Fixed("A", vec![100, 120, 140, 160]);
        let mut b = Fixed("B", vec![220, 260, 300]);
        let mut order = Vec::new();
        let compared = compare(&mut a, &mut [&mut b], 3, &mut |name, _| order.push(name.to_owned())).unwrap();
        assert_eq!(order.concat(), "ABABABA");
        let b = compared.arm("B").unwrap();
        assert!((b.speed.median - 0.5).abs() < 1e-9 && (b.cpu.median - 2.0).abs() < 1e-9, "{b:?}");
        // The control shows the drift within a round.
        assert!((compared.baseline.speed.max - 140.0 / 160.0).abs() < 1e-9, "{:?}", compared.baseline);
    }

    #[test]
    fn a_run_without_records_has_no_figures() {
        struct Empty;
        impl Arm for Empty {
            fn name(&self) -> &str {
                "empty"
            }
            fn run(&mut self) -> anyhow::Result<Run> {
                Ok(Run { wall: Duration::ZERO, cpu: Duration::ZERO, records: 0, figures: BTreeMap::new() })
            }
        }
        let error = compare(&mut Empty, &mut [], 1, &mut |_, _| {}).unwrap_err();
        assert_eq!(error.to_string(), "arm empty moved no record");
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert!((Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median - 2.5).abs() < 1e-9);
    }
}
