//! A real Kafka broker: one process that is broker and controller, on free ports
//! of the loopback interface, with its data in a temporary folder.
//!
//! Its jars come from Maven Central, once, into `target/test-bed/`. Nothing is
//! installed. Where Java or Maven is missing, tests are skipped aloud.

mod jars;
pub mod setup;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use self::jars::jars;
use self::setup::{Ports, Setup};
use super::process::Process;
use super::proxy::Proxy;
use super::{free_ports, missing, wait_for};

/// Version of Kafka that the tests run against.
pub const VERSION: &str = "4.3.1";

/// Any id does: each broker is a cluster of its own.
const CLUSTER_ID: &str = "dGVzdC1iZWQtY2x1c3Rlcg";

/// Configuration of the broker, which is its own controller.
const PROPERTIES: &str = "server.properties";
/// Configuration of its controller alone.
const CONTROLLER: &str = "controller.properties";

/// What it prints when it is up, as a broker or as a controller alone.
const STARTED: &str = "Kafka Server started";

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    classpath: String,
    /// Configuration, log and data.
    folder: PathBuf,
    ports: Ports,
    proxy: Option<Proxy>,
    /// Options of its virtual machine.
    machine: &'static [&'static str],
    /// It was killed and is not back yet.
    was_killed: bool,
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

/// The classpath of Kafka and its tools, for those who start a broker themselves.
///
/// # Errors
/// Says what is missing on this machine.
pub fn classpath() -> Result<String, String> {
    Ok(format!("{}/*", jars()?.display()))
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
        Self::start_as(settings.iter().fold(Setup::new(), |setup, line| setup.setting(*line)))
    }

    /// Starts a broker as it is to be.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    ///
    /// # Panics
    /// When everything is there and it does not start all the same.
    pub fn start_as(setup: Setup) -> Result<Self, String> {
        let classpath = classpath()?;
        let folder = tempfile::Builder::new().prefix("pipedoc-kafka-").tempdir().expect("a temporary folder").keep();
        let [direct, controller, behind_proxy, secured, mutual] = free_ports();
        let proxy = setup.proxied.then(|| Proxy::start(SocketAddr::from(([127, 0, 0, 1], behind_proxy))));
        let there = proxy.as_ref().map_or(0, Proxy::port);
        let ports = Ports { direct, controller, behind_proxy, proxy: there, secured, mutual };
        let properties = folder.join(PROPERTIES);
        fs::write(&properties, setup.properties(&folder, ports)).expect("its configuration");
        fs::write(folder.join(CONTROLLER), Setup::controller(&folder, ports)).expect("its controller's configuration");
        let path = properties.to_string_lossy().into_owned();
        let mut format =
            ["kafka.tools.StorageTool", "format", "--standalone", "--config", &path, "--cluster-id", CLUSTER_ID]
                .map(str::to_owned)
                .to_vec();
        for user in &setup.users {
            let credentials = format!("SCRAM-SHA-512=[name={},password={}]", user.name, user.password);
            format.extend(["--add-scram".to_owned(), credentials]);
        }
        run_tool(&classpath, &format);
        let machine = setup.machine();
        let process = launch(&classpath, machine, &folder, PROPERTIES);
        let mut kafka = Self { process, classpath, folder, ports, proxy, machine, was_killed: false };
        kafka.wait_for_line("Kafka starts", STARTED, 1);
        Ok(kafka)
    }

    /// Where clients find it.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.direct)
    }

    /// Its process id, until it is started again.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The way in through the proxy; its clients stay on it.
    ///
    /// # Panics
    /// When it was not set up so.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a broker that is set up with a proxy")
    }

    /// Where clients log in with SCRAM, when it was set up secured.
    #[must_use]
    pub fn secured(&self) -> String {
        format!("127.0.0.1:{}", self.ports.secured)
    }

    /// Where clients show a certificate, when it was set up secured.
    #[must_use]
    pub fn mutual(&self) -> String {
        format!("127.0.0.1:{}", self.ports.mutual)
    }

    /// A file of its folder: `ca.pem`, `client.pem` and `client.key.pem` lie there
    /// when it was set up secured.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs one of Kafka's own tools against the broker, with further arguments;
    /// gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&self, class: &str, arguments: &[&str]) -> String {
        let bootstrap = self.bootstrap();
        let mut all = vec!["--bootstrap-server", &bootstrap];
        all.extend(arguments);
        self.tool(class, &all)
    }

    /// The classpath of Kafka's own tools, for commands that a test starts itself.
    #[must_use]
    pub fn classpath(&self) -> &str {
        &self.classpath
    }

    /// Runs one of Kafka's own tools by its class; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        let mut all = vec![class];
        all.extend(arguments);
        run_tool(&self.classpath, &all)
    }

    /// Stops the broker as an operator would, and waits for its end. Its data stays.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        self.process.signal("TERM");
        self.process.wait(Duration::from_secs(60));
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Kills the broker (`kill -9`). Its data stays.
    pub fn kill(&mut self) {
        self.process.kill();
        self.was_killed = true;
    }

    /// Starts the broker again after [`Kafka::stop`] or [`Kafka::kill`], at the same
    /// address with the same data; one that runs is killed first.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.kill();
        if std::mem::take(&mut self.was_killed) {
            self.fence();
        }
        self.launch_again(PROPERTIES, "Kafka starts", STARTED);
    }

    /// Has the controller notice that the broker is gone, as those of a cluster do.
    ///
    /// A broker that is back before that takes itself for the leader of its partitions,
    /// and loses them once its old session ends. Kafka 4.3.1 takes partitions without
    /// leader for deleted, and never ends there what was being committed: its log says
    /// "these partitions are likely deleted already and hence can be skipped".
    fn fence(&mut self) {
        self.launch_again(CONTROLLER, "the controller misses the broker", "Fencing broker 1 at epoch");
        self.process.signal("TERM");
        self.process.wait(Duration::from_secs(60));
    }

    /// Suspends the broker: its connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.process.stop();
    }

    /// Takes [`Kafka::freeze`] back.
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Starts it once more, and waits until this start has printed something.
    fn launch_again(&mut self, properties: &str, what: &str, line: &str) {
        let before = self.process.output().matches(line).count();
        self.process = launch(&self.classpath, self.machine, &self.folder, properties);
        self.wait_for_line(what, line, before + 1);
    }

    /// Waits until it has printed something so many times.
    fn wait_for_line(&mut self, what: &str, line: &str, times: usize) {
        wait_for(what, Duration::from_secs(90), || {
            let output = self.process.output();
            if output.matches(line).count() >= times {
                return Some(());
            }
            assert!(self.process.is_running(), "{what}: it ended instead; it printed:\n{output}");
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

fn launch(classpath: &str, machine: &[&str], folder: &Path, properties: &str) -> Process {
    let mut java = Command::new("java");
    java.args(machine).arg("-Dorg.apache.logging.log4j.level=INFO");
    java.args(["-cp", classpath, "kafka.Kafka"]).arg(folder.join(properties));
    Process::start("Kafka", &mut java, &folder.join("kafka.log"), Some(folder))
}

fn run_tool<S: AsRef<str>>(classpath: &str, arguments: &[S]) -> String {
    let output = tool(classpath, arguments);
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    assert!(output.status.success(), "{arguments:?} failed: {errors}\n{printed}");
    printed.into_owned()
}

fn tool<S: AsRef<str>>(classpath: &str, arguments: &[S]) -> Output {
    Command::new("java")
        .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classpath])
        .args(arguments.iter().map(AsRef::as_ref))
        .output()
        .expect("java runs")
}
