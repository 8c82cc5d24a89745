//! Partitions that stand still, of programs that are no plain modules.

mod connectors;
mod letters;
mod records;
