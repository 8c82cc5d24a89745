//! What every bench can be told.

/// How much is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Only tries it out: little work, one pair, figures that mean nothing.
    #[arg(long, global = true)]
    pub quick: bool,

    /// How many rounds a comparison makes; 5 or more for a measurement that is to
    /// be quoted. Default: 5, and 1 with --quick.
    #[arg(long, global = true, value_name = "N")]
    pairs: Option<usize>,
}

impl Options {
    /// How many rounds a comparison makes.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// One number for the measurement, another for trying it out.
    #[must_use]
    pub fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
