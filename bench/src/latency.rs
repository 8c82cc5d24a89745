//! How long one document takes, alone: from the call that submits it to its file
//! in the sink's folder, through three steps in three processes beside an engine.
//!
//! Four times on the way something is surely on the disk before the next thing
//! begins (three records and the result), so the figure of one such write is told
//! beside it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Blob, blob};

use crate::installation::{Installation, wait_for_file};
use crate::options::Options;
use crate::program;
use crate::report::{Figure, Report, Target};

const PIPELINE: &str = r"
pipeline: shelf
steps:
  - {name: parse, type: PIPELINE, module: parser, outputs: [{to: chunk}]}
  - {name: chunk, type: PIPELINE, module: chunker, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink, config: {url: 'OUT'}}
";

/// Measures it.
///
/// # Errors
/// When a document does not arrive.
pub fn bench(options: &Options) -> anyhow::Result<Report> {
    let documents = options.size(300, 5);
    let mut installation = Installation::start(program::pipedoc()?, PIPELINE)?;
    for module in ["parser", "chunker", "object-sink"] {
        installation.module(module)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut took = runtime.block_on(async {
        let mut intake = installation.intake().await?;
        // Everybody finds everybody, and the parser starts its children.
        for n in 0..5 {
            intake.submit_first("shelf", "parse", file(n)).await?;
            wait_for_file(&installation.out().join(format!("{}.json", file(n).id)))?;
        }
        let mut took = Vec::new();
        for n in 5..documents + 5 {
            // Not in step with anybody's timers.
            tokio::time::sleep(Duration::from_millis((n as u64 * 7919) % 23)).await;
            let doc = file(n);
            let result = installation.out().join(format!("{}.json", doc.id));
            let start = Instant::now();
            intake.submit("shelf", "parse", doc).await?;
            wait_for_file(&result)?;
            took.push(start.elapsed());
        }
        anyhow::Ok(took)
    })?;
    took.sort();
    let synced = synced_write(&installation.out(), options.size(100, 5))?;
    let [median, p95, p99] = [0.5, 0.95, 0.99].map(|share| millis(at(&took, share)));
    Ok(Report {
        bench: "latency",
        what: format!("{documents} documents of 1 KiB, one after the other: submit, parse, chunk, stored file"),
        comparison: None,
        figures: vec![
            Figure::new("median", median, "ms"),
            Figure::new("95 %", p95, "ms"),
            Figure::new("99 %", p99, "ms"),
            Figure::new("one synced write of 1 KiB, median", millis(synced), "ms"),
        ],
        targets: vec![Target::below("median from submit to sink in ms", median, 50.0)],
    })
}

/// A document with a small text file in it.
fn file(n: usize) -> PipeDoc {
    let text = crate::documents::document(n, 1024).body.into_bytes();
    let name = format!("page-{n:05}.txt");
    let size = text.len() as u64;
    let blob = Blob { name: name.clone(), size, content: Some(blob::Content::Inline(text.into())), ..Blob::default() };
    PipeDoc { id: name, blobs: vec![blob], ..PipeDoc::default() }
}

/// Median time of appending 1 KiB to a file and having it on the disk.
fn synced_write(folder: &Path, times: usize) -> anyhow::Result<Duration> {
    let path = folder.join("synced");
    let mut file = File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        file.write_all(&[7; 1024])?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    fs::remove_file(path)?;
    took.sort();
    Ok(at(&took, 0.5))
}

/// The figure below which such a share lies.
fn at(sorted: &[Duration], share: f64) -> Duration {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in a list")]
    let position = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
    sorted.get(position).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_list_are_its_members() {
        let all: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|share| at(&all, share).as_millis()), [50, 95, 99, 100]);
        assert_eq!(at(&all[..1], 0.5).as_millis(), 1);
    }
}
