//! The plain loop: what somebody would write who needs it once. Read, parse, cut,
//! write; as many at once as there are cores.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use pipedoc_chunker::split::{Shape, split};
use pipedoc_parser::Parser;
use pipedoc_proto::v1::Chunk;

use crate::cpu;

/// Does all of it; gives the CPU time that this process has used by then, the
/// parser's children included.
pub fn run(program: &Path, input: &Path, out: &Path) -> anyhow::Result<Duration> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let parser = Parser::with_program(&Default::default(), program.to_owned());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let temporary = out.join("tmp");
        fs::create_dir(&temporary)?;
        let files = super::walk(input)?;
        let parser = &std::sync::Arc::new(parser);
        let work = futures::stream::iter(files).map(|file| {
            let (parser, temporary, out) = (std::sync::Arc::clone(parser), temporary.clone(), out.to_owned());
            let name = file.strip_prefix(input).map(|name| name.to_string_lossy().into_owned());
            async move { tokio::spawn(async move { one(&parser, &file, &name?, &temporary, &out).await }).await? }
        });
        work.buffer_unordered(cores).try_collect::<()>().await?;
        // The children are still there, and counted.
        cpu::of_this_process()
    })
}

async fn one(parser: &Parser, file: &Path, name: &str, temporary: &Path, out: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(file)?;
    let mut doc = parser.pool().parse(name, &bytes).await?;
    name.clone_into(&mut doc.id);
    doc.source_uri = format!("file://{}", file.display());
    doc.chunks = chunks(&doc.body)?;
    let text = format!("{}\n", pipedoc_proto::json::to_json(&doc)?);
    let (temporary, place) = (temporary.join(name.replace('/', "-")), out.join(format!("{name}.json")));
    // As the sink does it: on a thread that may block, and on the disk.
    tokio::task::spawn_blocking(move || write(text.as_bytes(), &temporary, &place)).await?
}

/// The chunks that the example's pipeline makes.
pub fn chunks(body: &str) -> anyhow::Result<Vec<Chunk>> {
    Ok(split(body, &Shape::default(), &Default::default())?)
}

fn write(content: &[u8], temporary: &Path, place: &Path) -> anyhow::Result<()> {
    let mut file = File::create_new(temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    let folder = place.parent().context("no folder")?;
    if fs::rename(temporary, place).is_err() {
        fs::create_dir_all(folder)?;
        fs::rename(temporary, place)?;
    }
    Ok(File::open(folder)?.sync_all()?)
}
