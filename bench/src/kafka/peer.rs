//! Peers in Java: fetched from Maven Central, compiled once a run with a compiler
//! that comes from there too, so that a Java runtime is enough.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, ensure};
use pipedoc_tests::bed::kafka::VERSION;
use pipedoc_tests::bed::maven::{self, Dependency};

/// A program in Java, ready to run.
pub struct Peer {
    class: &'static str,
    classpath: String,
    /// What was compiled; removed with it.
    _classes: tempfile::TempDir,
}

impl Peer {
    /// Kafka Streams, passing one topic on to another.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    pub fn streams() -> anyhow::Result<Self> {
        // It loads its store only when a topology has one; 70 MB need not be fetched.
        let streams =
            Dependency::new("org.apache.kafka", "kafka-streams", VERSION).without(&[("org.rocksdb", "rocksdbjni")]);
        Self::new(&format!("bench-streams-{VERSION}"), &[streams], "PassThrough")
    }

    /// Confluent's Parallel Consumer, passing one topic on slowly.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    pub fn parallel_consumer() -> anyhow::Result<Self> {
        const PARALLEL: &str = "0.5.3.3";
        let parallel = Dependency::new("io.confluent.parallelconsumer", "parallel-consumer-core", PARALLEL);
        Self::new(&format!("bench-parallel-{PARALLEL}"), &[parallel], "ParallelPass")
    }

    /// Fetches the jars in `folder` and compiles `bench/streams/CLASS.java`.
    fn new(folder: &str, dependencies: &[Dependency], class: &'static str) -> anyhow::Result<Self> {
        let jars = maven::jars(folder, dependencies).map_err(|reason| anyhow!(reason))?;
        let classes = tempfile::tempdir().context("a folder for classes")?;
        compile(class, &jars, classes.path())?;
        let classpath = format!("{}:{}/*", classes.path().display(), jars.display());
        Ok(Self { class, classpath, _classes: classes })
    }

    /// The command that runs it with a virtual machine of these options.
    pub fn command(&self, machine: &[&str]) -> Command {
        let mut java = Command::new("java");
        java.args(machine).args(["-cp", &self.classpath, self.class]);
        java
    }
}

fn compile(class: &str, jars: &Path, classes: &Path) -> anyhow::Result<()> {
    let compiler = Dependency::new("org.eclipse.jdt", "ecj", "3.40.0");
    let compiler = maven::jars("bench-ecj-3.40.0", &[compiler]).map_err(|reason| anyhow!(reason))?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("streams").join(format!("{class}.java"));
    let library: Vec<String> = files(jars)?.iter().map(|jar| jar.display().to_string()).collect();
    let output = Command::new("java")
        .arg("-jar")
        .args(files(&compiler)?)
        .args(["--release", "17", "-proc:none", "-nowarn", "-cp", &library.join(":")])
        .arg("-d")
        .args([classes, source.as_path()])
        .output()
        .context("running the compiler")?;
    ensure!(output.status.success(), "{class} does not compile: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let files: Result<_, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    Ok(files?)
}
