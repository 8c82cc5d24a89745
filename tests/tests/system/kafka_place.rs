//! An engine and modules as processes of their own, on Kafka.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{free_ports, pipedoc, wait_for};
use serde_json::Value;

/// An installation: a cluster of its own on a broker, and the folder of its processes.
pub struct Place {
    folder: tempfile::TempDir,
    port: u16,
    log: String,
    cluster: String,
}

impl Place {
    /// One whose processes find the broker there. `CLUSTER` in the pipelines is
    /// replaced by the cluster's name.
    pub fn new(bootstrap: &str, pipelines: &[&str]) -> Self {
        pipedoc::binary();
        let folder = tempfile::tempdir().unwrap();
        let [port] = free_ports();
        let cluster = format!("c{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        fs::create_dir(folder.path().join("pipelines")).unwrap();
        for (n, text) in pipelines.iter().enumerate() {
            let file = folder.path().join(format!("pipelines/p{n}.yaml"));
            fs::write(file, text.replace("CLUSTER", &cluster)).unwrap();
        }
        Self { folder, port, log: format!("kafka:{bootstrap}"), cluster }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A topic of its cluster: `<cluster><rest>`.
    pub fn topic(&self, rest: &str) -> Topic {
        Topic::new(&format!("{}{rest}", self.cluster)).unwrap()
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn engine(&self) -> Process {
        let listen = format!("127.0.0.1:{}", self.port);
        let arguments = ["engine", "--listen", &listen, "--log", &self.log, "--cluster", &self.cluster];
        pipedoc::start("engine", self.path(), arguments)
    }

    /// An instance of a module, with a name of its own.
    pub fn module(&self, module: &str, name: &str) -> Process {
        let address = self.address();
        let arguments =
            ["module", module, "--engines", &address, "--log", &self.log, "--cluster", &self.cluster, "--grace", "5s"];
        pipedoc::start(name, self.path(), arguments)
    }

    /// What the command says of a pipeline that would be applied; nothing is changed.
    pub fn dry_run(&self, text: &str) -> String {
        let file = self.path().join("applied.yaml");
        fs::write(&file, text.replace("CLUSTER", &self.cluster)).unwrap();
        let address = self.address();
        let output =
            pipedoc::command(["apply", "--dry-run", file.to_str().unwrap(), "--engine", &address]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    pub fn status(&self) -> Option<Value> {
        let output = pipedoc::command(["status", "--output", "json", "--engine", &self.address()]).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
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
