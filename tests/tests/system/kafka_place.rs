//! Engines and modules as processes of their own, on Kafka.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::consul::Consul;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{free_ports, pipedoc, wait_for};
use serde_json::Value;

/// An installation: a cluster of its own on a broker, and the folder of its processes.
pub struct Place {
    folder: tempfile::TempDir,
    /// Where its engines are to be.
    seats: Vec<Seat>,
    /// None: the embedded log of its folder.
    log: Option<String>,
    cluster: String,
}

/// Where an engine is to be.
struct Seat {
    port: u16,
    /// Its way to Consul; none: it reads the folder `pipelines`.
    consul: Option<String>,
}

impl Place {
    /// One whose processes find the broker there, with one engine. `CLUSTER` in the
    /// pipelines is replaced by the cluster's name.
    pub fn new(bootstrap: &str, pipelines: &[&str]) -> Self {
        let place = Self::on_folder(Some(bootstrap));
        for (n, text) in pipelines.iter().enumerate() {
            place.write(&format!("pipelines/p{n}.yaml"), text);
        }
        place
    }

    /// One with an engine that reads an empty folder, on a broker or the embedded log.
    pub fn on_folder(bootstrap: Option<&str>) -> Self {
        let place = Self::with_seats(bootstrap, &[None]);
        fs::create_dir(place.path().join("pipelines")).unwrap();
        place
    }

    /// One with an engine for each of these ways to Consul, and nothing in it yet.
    pub fn on_consul(bootstrap: &str, ways: &[String]) -> Self {
        let ways: Vec<_> = ways.iter().cloned().map(Some).collect();
        Self::with_seats(Some(bootstrap), &ways)
    }

    fn with_seats(bootstrap: Option<&str>, ways: &[Option<String>]) -> Self {
        pipedoc::binary();
        let folder = tempfile::tempdir().unwrap();
        let seat = |consul: &Option<String>| {
            let [port] = free_ports();
            Seat { port, consul: consul.clone() }
        };
        let cluster = format!("c{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        Self {
            folder,
            seats: ways.iter().map(seat).collect(),
            log: bootstrap.map(|bootstrap| format!("kafka:{bootstrap}")),
            cluster,
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into its folder, with the cluster's name where `CLUSTER` stands.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.path().join(name);
        fs::write(&file, text.replace("CLUSTER", &self.cluster)).unwrap();
        file
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// A topic of its cluster: `<cluster><rest>`.
    pub fn topic(&self, rest: &str) -> Topic {
        Topic::new(&format!("{}{rest}", self.cluster)).unwrap()
    }

    /// Where others reach an engine, as the leader's key names it.
    pub fn advertised(&self, engine: usize) -> String {
        format!("127.0.0.1:{}", self.seats[engine].port)
    }

    pub fn address(&self, engine: usize) -> String {
        format!("http://{}", self.advertised(engine))
    }

    pub fn engine(&self) -> Process {
        self.engine_at(0)
    }

    /// One of its engines.
    pub fn engine_at(&self, engine: usize) -> Process {
        let listen = self.advertised(engine);
        let mut arguments = vec!["engine", "--listen", &listen, "--cluster", &self.cluster];
        arguments.extend(self.log.iter().flat_map(|log| ["--log", log]));
        if let Some(consul) = &self.seats[engine].consul {
            arguments.extend(["--consul", consul]);
        }
        pipedoc::start(&format!("engine-{engine}"), self.path(), arguments)
    }

    /// An instance of a module, with a name of its own, that knows all engines.
    pub fn module(&self, module: &str, name: &str) -> Process {
        let engines: Vec<_> = (0..self.seats.len()).map(|engine| self.address(engine)).collect();
        let engines = engines.join(",");
        let mut arguments = vec!["module", module, "--engines", &engines, "--cluster", &self.cluster, "--grace", "5s"];
        arguments.extend(self.log.iter().flat_map(|log| ["--log", log]));
        pipedoc::start(name, self.path(), arguments)
    }

    /// Applies a pipeline through an engine, with values for its variables; the error
    /// is what the command says.
    pub fn apply(&self, engine: usize, text: &str, variables: &[(&str, &str)]) -> Result<(), String> {
        let file = self.write("applied.yaml", text);
        let variables: Vec<_> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let address = self.address(engine);
        let mut arguments = vec!["apply", file.to_str().unwrap(), "--engine", &address];
        arguments.extend(variables.iter().flat_map(|variable| ["--var", variable]));
        let output = pipedoc::command(arguments).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// Puts a pipeline into Consul's inbox, as people do.
    pub fn put(&self, consul: &Consul, pipeline: &str, text: &str) {
        let file = self.write("put.yaml", text);
        let key = format!("pipedoc/{}/pipelines/{pipeline}", self.cluster);
        consul.run(&["kv", "put", &key, &format!("@{}", file.display())]);
    }

    /// What the command says of a pipeline that would be applied; nothing is changed.
    pub fn dry_run(&self, text: &str) -> String {
        let file = self.write("applied.yaml", text);
        let address = self.address(0);
        let output =
            pipedoc::command(["apply", "--dry-run", file.to_str().unwrap(), "--engine", &address]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// What the first engine that answers says.
    pub fn status(&self) -> Option<Value> {
        (0..self.seats.len()).find_map(|engine| self.status_of(engine))
    }

    /// What an engine says; none while it does not answer.
    pub fn status_of(&self, engine: usize) -> Option<Value> {
        // The command gives an engine time to start.
        TcpStream::connect(self.advertised(engine)).ok()?;
        let address = self.address(engine);
        let output = pipedoc::command(["status", "--output", "json", "--engine", &address]).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Revision of a pipeline, as an engine tells.
    pub fn revision(&self, engine: usize, pipeline: &str) -> Option<u64> {
        let status = self.status_of(engine)?;
        let found = status["pipelines"].as_array()?.iter().find(|one| one["pipeline"] == pipeline)?.clone();
        found["revision"].as_str()?.parse().ok()
    }

    /// A step as `status` shows it.
    pub fn step(&self, pipeline: &str, step: &str) -> Option<Value> {
        let status = self.status()?;
        let find =
            |list: &Value, field: &str, name: &str| list.as_array()?.iter().find(|one| one[field] == name).cloned();
        find(&find(&status["pipelines"], "pipeline", pipeline)?["steps"], "step", step)
    }

    /// Waits until so many instances share the partitions of a step, all of them
    /// owned, none without one.
    pub fn wait_for_owners(&self, step: &str, instances: usize, partitions: usize, limit: Duration) {
        let what = format!("{instances} instances share {partitions} partitions of {step}");
        wait_for(&what, limit, || {
            let status = self.status()?;
            let owned: Vec<_> = status["instances"]
                .as_array()?
                .iter()
                .flat_map(|instance| instance["steps"].as_array().cloned().unwrap_or_default())
                .filter(|report| report["step"] == step)
                .map(|report| report["partitions"].as_array().map_or(0, Vec::len))
                .filter(|owned| *owned > 0)
                .collect();
            (owned.len() == instances && owned.iter().sum::<usize>() == partitions).then_some(())
        });
    }
}
