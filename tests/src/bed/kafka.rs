//! A real Kafka broker: one process that is broker and controller, on free ports
//! of the loopback interface, with its data in a temporary folder.
//!
//! Its jars come from Maven Central, once, into `target/test-bed/`. Nothing is
//! installed. Where Java or Maven is missing, tests are skipped aloud.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::process::Process;
use super::{free_ports, missing, target_folder, wait_for};

/// Version of Kafka that the tests run against.
pub const VERSION: &str = "4.3.1";

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    classpath: String,
    /// Configuration, log and data.
    folder: PathBuf,
    port: u16,
    /// How often the broker was started.
    starts: usize,
}

/// The broker that all tests of a binary share; `None` when the test is to be
/// skipped, which has been said aloud then.
///
/// # Panics
/// When it does not start, and when it is missing under `PIPEDOC_TEST_REQUIRE=all`.
pub fn shared(test: &str) -> Option<&'static Kafka> {
    // Statics are not dropped: the watchdog of the process ends it with the test binary.
    static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
    match SHARED.get_or_init(|| Kafka::start(&[])) {
        Ok(kafka) => Some(kafka),
        Err(reason) => {
            missing(test, reason);
            None
        }
    }
}

impl Kafka {
    /// Starts a broker of its own for a test, with further lines of
    /// `server.properties`; those that set the same name win.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    ///
    /// # Panics
    /// When everything is there and it does not start all the same.
    pub fn start(settings: &[&str]) -> Result<Self, String> {
        let classpath = format!("{}/*", jars()?.display());
        let folder = tempfile::Builder::new().prefix("pipedoc-kafka-").tempdir().expect("a temporary folder").keep();
        let [port, controller] = free_ports();
        let properties = folder.join("server.properties");
        fs::write(&properties, configuration(&folder, port, controller, settings)).expect("its configuration");
        let id = run_tool(&classpath, &["kafka.tools.StorageTool", "random-uuid"]);
        let path = properties.to_string_lossy().into_owned();
        let format =
            ["kafka.tools.StorageTool", "format", "--standalone", "--config", &path, "--cluster-id", id.trim()];
        run_tool(&classpath, &format);
        let process = launch(&classpath, &folder);
        let mut kafka = Self { process, classpath, folder, port, starts: 1 };
        kafka.wait_until_ready();
        Ok(kafka)
    }

    /// Where clients find it.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs one of Kafka's own tools by its class; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        let mut all = vec![class];
        all.extend(arguments);
        run_tool(&self.classpath, &all)
    }

    /// Kills the broker (`kill -9`). Its data stays.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the broker again after [`Kafka::kill`], at the same address.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.classpath, &self.folder);
        self.starts += 1;
        self.wait_until_ready();
    }

    /// Suspends the broker: its connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    /// Takes [`Kafka::freeze`] back.
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    fn wait_until_ready(&mut self) {
        let starts = self.starts;
        wait_for("Kafka starts", Duration::from_secs(90), || {
            let output = self.process.output();
            if output.matches("Kafka Server started").count() >= starts {
                return Some(());
            }
            assert!(self.process.is_running(), "Kafka ended while it started; it printed:\n{output}");
            None
        });
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.process.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn launch(classpath: &str, folder: &Path) -> Process {
    let mut java = Command::new("java");
    // The serial collector and the first compiler alone: tests start it often and keep it briefly.
    java.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.apache.logging.log4j.level=INFO"]);
    java.args(["-cp", classpath, "kafka.Kafka"]).arg(folder.join("server.properties"));
    Process::start("Kafka", &mut java, &folder.join("kafka.log"), Some(folder))
}

fn configuration(folder: &Path, port: u16, controller: u16, settings: &[&str]) -> String {
    let data = folder.join("data");
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.listener.names=CONTROLLER\n\
         controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         log.dirs={}\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n\
         log.retention.check.interval.ms=500\n\
         log.initial.task.delay.ms=500\n\
         log.segment.delete.delay.ms=0\n",
        data.display()
    );
    for line in settings {
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn run_tool(classpath: &str, arguments: &[&str]) -> String {
    let output = Command::new("java")
        .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classpath])
        .args(arguments)
        .output()
        .expect("java runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The folder with Kafka's jars, filled by the first test that needs it. Other
/// test processes wait at the lock meanwhile.
fn jars() -> Result<PathBuf, String> {
    runs("java", "-version", "a Java 17+ runtime (Debian: default-jre-headless)")?;
    let cache = target_folder().join("test-bed");
    let jars = cache.join(format!("kafka-{VERSION}"));
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let lock = fs::File::create(cache.join("lock")).map_err(|error| format!("{}: {error}", cache.display()))?;
    lock.lock().map_err(|error| format!("{}: {error}", cache.display()))?;
    if jars.exists() {
        return Ok(jars);
    }
    runs("mvn", "--version", "Maven (Debian: maven)")?;
    // Filled beside its place and renamed, so that a broken download is never taken for a whole one.
    let partial = tempfile::tempdir_in(&cache).map_err(|error| error.to_string())?;
    fs::write(partial.path().join("pom.xml"), pom()).map_err(|error| error.to_string())?;
    let maven = Command::new("mvn")
        .args(["-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"])
        .args(["-DincludeScope=runtime", "-DoutputDirectory=jars"])
        .current_dir(partial.path())
        .output()
        .map_err(|error| error.to_string())?;
    if !maven.status.success() {
        return Err(format!("Maven cannot fetch Kafka: {}", String::from_utf8_lossy(&maven.stdout)));
    }
    fs::rename(partial.path().join("jars"), &jars).map_err(|error| error.to_string())?;
    Ok(jars)
}

fn runs(program: &str, argument: &str, what: &str) -> Result<(), String> {
    match Command::new(program).arg(argument).output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err(format!("it needs {what}")),
    }
}

fn pom() -> String {
    let dependency = |group: &str, artifact: &str, version: &str, exclusions: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version>{exclusions}</dependency>"
        )
    };
    let connect: String = ["connect-runtime", "connect-api", "connect-json"]
        .map(|name| {
            format!("<exclusion><groupId>org.apache.kafka</groupId><artifactId>{name}</artifactId></exclusion>")
        })
        .concat();
    let dependencies = [
        dependency("org.apache.kafka", "kafka_2.13", VERSION, ""),
        dependency("org.apache.kafka", "kafka-tools", VERSION, &format!("<exclusions>{connect}</exclusions>")),
        dependency("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4", ""),
    ]
    .concat();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>pipedoc</groupId><artifactId>test-bed</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>"
    )
}
