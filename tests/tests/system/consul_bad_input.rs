//! What people do wrong with configuration in Consul, and what they are told; what
//! two of them do at once; what was lost and is brought back.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use pipedoc_tests::bed::consul::{self, Consul};
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{free_ports, pipedoc, wait_for};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

const SHELF: &str = "pipeline: shelf
defaults: {partitions: 3}
steps:
  - {name: parse, type: PIPELINE, module: never-seen, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink}
";

/// A cluster in Consul with one engine, as a process of its own.
struct Place {
    folder: tempfile::TempDir,
    cluster: String,
    port: u16,
}

impl Place {
    fn new(cluster: &str) -> Self {
        pipedoc::binary();
        let [port] = free_ports();
        Self { folder: tempfile::tempdir().unwrap(), cluster: cluster.to_owned(), port }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn engine(&self, consul: &Consul, token: Option<&str>) -> Process {
        let listen = format!("127.0.0.1:{}", self.port);
        let address = consul.address();
        let mut arguments = vec!["engine", "--consul", &address, "--cluster", &self.cluster, "--listen", &listen];
        let file = self.path().join("token");
        if let Some(token) = token {
            fs::write(&file, token).unwrap();
            arguments.extend(["--consul-token-file", file.to_str().unwrap()]);
        }
        pipedoc::start("engine", self.path(), arguments)
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let engine = format!("http://127.0.0.1:{}", self.port);
        let mut command = pipedoc::command(arguments.iter().copied().chain(["--engine", &engine]));
        command.current_dir(self.path()).output().unwrap()
    }

    fn apply(&self, text: &str, more: &[&str]) -> Output {
        let file = self.path().join("given.yaml");
        fs::write(&file, text).unwrap();
        self.command(&[&["apply", file.to_str().unwrap()], more].concat())
    }

    /// Applies it as soon as the engine takes it.
    fn wait_until_applied(&self, text: &str) {
        wait_for("the engine takes it", LONG, || self.apply(text, &[]).status.success().then_some(()));
    }

    fn status(&self) -> Option<Value> {
        let output = self.command(&["status", "--output", "json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn wait_for_status<T>(&self, what: &str, fits: impl Fn(&Value) -> Option<T>) -> T {
        let mut seen = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(what, LONG, || {
                let status = self.status()?;
                seen = format!("{status:#}");
                fits(&status)
            })
        }));
        found.unwrap_or_else(|failure| {
            eprintln!("the last status: {seen}");
            std::panic::resume_unwind(failure)
        })
    }

    /// The problems, once one of them says this.
    fn wait_for_problem(&self, text: &str) -> Vec<Value> {
        self.wait_for_status(&format!("a problem with {text:?}"), |status| {
            let problems = status["problems"].as_array()?;
            let is_it = |problem: &Value| problem.to_string().contains(text);
            problems.iter().any(is_it).then(|| problems.clone())
        })
    }

    fn wait_for_revision(&self, pipeline: &str, revision: &str) {
        self.wait_for_status(&format!("{pipeline} is revision {revision}"), |status| {
            let pipelines = status["pipelines"].as_array()?;
            let found = pipelines.iter().find(|found| found["pipeline"] == pipeline)?;
            (found["revision"] == revision).then_some(())
        });
    }

    fn put(&self, consul: &Consul, key: &str, text: &str) {
        let file = self.path().join("put");
        fs::write(&file, text).unwrap();
        let key = format!("pipedoc/{}/{key}", self.cluster);
        consul.run(&["kv", "put", &key, &format!("@{}", file.display())]);
    }

    fn key(&self, key: &str) -> String {
        format!("pipedoc/{}/{key}", self.cluster)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_engine_without_consul_gives_up_after_wait_and_says_why_once() {
    let [port] = free_ports();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("http://127.0.0.1:{port}");
    let output = pipedoc::command(["engine", "--consul", &address, "--wait", "1s", "--listen", "127.0.0.1:0"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    let error = said.lines().find(|line| line.starts_with("error:")).unwrap();
    assert!(error.contains("--wait") && error.contains(&address) && error.contains("not started"), "{error}");
    assert_eq!(error.matches("refused").count(), 1, "{error}");
}

#[test]
fn an_engine_waits_for_a_consul_that_comes_later() {
    let Some(mut consul) = consul::own("an_engine_waits_for_a_consul_that_comes_later", Consul::start) else { return };
    consul.kill();
    let place = Place::new("later");
    let engine = place.engine(&consul, None);
    wait_for("it says for what it waits", LONG, || engine.output().contains(&consul.address()).then_some(()));
    consul.restart();
    place.wait_until_applied(SHELF);
    place.wait_for_revision("shelf", "1");
}

#[test]
fn bad_values_are_named_with_every_reason_and_the_last_good_one_runs() {
    let Some(consul) = consul::shared("bad_values_are_named") else { return };
    let place = Place::new("bad-values");
    let engine = place.engine(consul, None);
    place.put(consul, "pipelines/shelf", SHELF);
    place.wait_for_revision("shelf", "1");
    let state = place.status().unwrap()["pipelines"][0]["steps"][0]["state"].clone();
    assert_eq!(state, "STEP_STATE_WAITING_FOR_MODULE", "a module never seen is waited for");
    let warning = place.wait_for_status("the module is named", |status| Some(status["warnings"].get(0)?.clone()));
    let told = "module \"never-seen\" was never seen; step parse waits until one of that name is started";
    assert!(warning["message"].as_str().unwrap().starts_with(told), "{warning}");
    assert_eq!((&warning["file"], &warning["line"]), (&"consul:pipedoc/bad-values/pipelines/shelf".into(), &4.into()));
    wait_for("the leader tells of it", LONG, || engine.output().contains(told).then_some(()));

    place.put(consul, "pipelines/shelf", "pipeline: shelf\nsteps: [{{{");
    let problems = place.wait_for_problem("no YAML");
    assert_eq!(problems[0]["file"], "consul:pipedoc/bad-values/pipelines/shelf");
    assert!(problems[0]["line"].as_u64() > Some(0), "{problems:?}");

    let ten = "pipeline: shelf
colour: red
defaults: {partitions: many, delivery: TWICE}
steps:
  - {name: a b, type: PIPELIN, module: parser, outputs: [{to: nowhere}]}
  - {name: c, type: SINK, module: object-sink, concurrency: -1, timeout: soon, size: 3}
  - {name: c, type: SINK, module: object-sink}
";
    place.put(consul, "pipelines/shelf", ten);
    let problems = place.wait_for_problem("colour");
    assert_eq!(problems.len(), 10, "{problems:#?}");
    for problem in &problems {
        let placed = problem["line"].as_u64() > Some(0) && problem["column"].as_u64() > Some(0);
        assert!(placed && problem["file"] == problems[0]["file"] && problem["field"].is_string(), "{problem}");
    }

    // A value as long as Consul takes it leaves no room for what we write beside it.
    let limit = 512 * 1024;
    let mut long = SHELF.replace("shelf", "long");
    long += &"# y\n".repeat(limit / 4);
    long.truncate(limit);
    place.put(consul, "pipelines/long", &long);
    let problems = place.wait_for_problem("long");
    let problem =
        problems.iter().find(|problem| problem["file"] == "consul:pipedoc/bad-values/pipelines/long").unwrap();
    assert!(problem["message"].as_str().unwrap().contains("524288"), "{problem}");
    for more in [&["--dry-run"][..], &[]] {
        let applied = place.apply(&long, more);
        assert_eq!(applied.status.code(), Some(2), "{}", said(&applied));
        assert!(said(&applied).contains("524288"), "{}", said(&applied));
    }
    // An engine that does not lead shows it as well.
    let follower = Place::new("bad-values");
    let _follower = follower.engine(consul, None);
    let problems = follower.wait_for_problem("524288");
    assert_eq!(problems, place.wait_for_problem("524288"));
    let engines = follower.wait_for_status("both engines are named", |status| {
        let engines = status["engines"].as_array()?;
        (engines.len() == 2 && engines.iter().any(|engine| engine["leads"] == true)).then(|| engines.clone())
    });
    let leads = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        engines.iter().find(|engine| engine["address"] == *address).map(|engine| engine["leads"] == true)
    };
    assert_eq!((leads(place.port), leads(follower.port)), (Some(true), Some(false)), "{engines:?}");
    consul.run(&["kv", "delete", &place.key("pipelines/long")]);

    place.put(consul, "pipelines/my/shelf", SHELF);
    let problems = place.wait_for_problem("no name of a pipeline");
    assert!(problems.iter().any(|problem| problem["message"].as_str().unwrap().contains("my/shelf")), "{problems:?}");
    consul.run(&["kv", "delete", &place.key("pipelines/my/shelf")]);

    let status = place.status().unwrap();
    assert_eq!((status["pipelines"].as_array().unwrap().len(), &status["pipelines"][0]["revision"]), (1, &"1".into()));
    place.put(consul, "pipelines/shelf", &SHELF.replace("partitions: 3", "partitions: 4"));
    place.wait_for_revision("shelf", "2");
    place.wait_for_status("nothing is wrong", |status| {
        status["problems"].as_array().is_none_or(Vec::is_empty).then_some(())
    });
    let times = engine.output().matches(told).count();
    assert_eq!(times, 1, "{}", engine.output());
}

#[test]
fn what_is_so_already_and_what_cannot_be_is_said() {
    let Some(consul) = consul::shared("what_is_so_already_and_what_cannot_be_is_said") else { return };
    let place = Place::new("so-already");
    let _engine = place.engine(consul, None);
    place.wait_until_applied(SHELF);
    let edited = SHELF.replace("partitions: 3", "partitions: 4");
    assert!(place.apply(&edited, &["--expect", "1"]).status.success());
    assert!(place.command(&["rollback", "shelf"]).status.success());

    // That there is nothing to change does not make another revision the expected one.
    let late = place.apply(SHELF, &["--expect", "1"]);
    assert_eq!(late.status.code(), Some(2), "{late:?}");
    assert!(said(&late).contains("revision 1 of pipeline shelf was expected, but 3 is current"), "{}", said(&late));
    let printed = |output: Output| {
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let same = printed(place.apply(SHELF, &["--expect", "3"]));
    assert!(same.contains("is revision 3 already; nothing was changed"), "{same}");
    let same = printed(place.command(&["rollback", "shelf", "--to", "3"]));
    assert_eq!(same.trim(), "pipeline shelf is still revision 3, which has that text; nothing was changed");

    for refused in
        [&["rollback", "shelf", "--to", "0"][..], &["diff", "shelf", "0"], &["get", "shelf", "--revision", "0"]]
    {
        let output = place.command(refused);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said(&output).contains("has no revision 0; 1 to 3 are kept"), "{}", said(&output));
    }
    assert!(place.command(&["delete", "shelf"]).status.success());
    for gone in ["get", "status", "delete"] {
        let output = place.command(&[gone, "shelf"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said(&output).contains("`pipedoc rollback shelf` brings revision 3 back"), "{}", said(&output));
    }
}

#[test]
fn of_two_who_apply_at_once_one_is_told_what_the_other_changed() {
    let Some(consul) = consul::shared("of_two_who_apply_at_once") else { return };
    let (one, other) = (Place::new("at-once"), Place::new("at-once"));
    let _engines = (one.engine(consul, None), other.engine(consul, None));
    for place in [&one, &other] {
        wait_for("both engines answer", LONG, || place.status());
    }
    assert!(one.apply(SHELF, &["--by", "first"]).status.success());
    let texts = [4, 5].map(|n| SHELF.replace("partitions: 3", &format!("partitions: {n}")));
    let apply = |by: &'static str| ["--expect", "1", "--by", by];
    let outputs = std::thread::scope(|scope| {
        let a = scope.spawn(|| one.apply(&texts[0], &apply("ann")));
        let b = scope.spawn(|| other.apply(&texts[1], &apply("bob")));
        [a.join().unwrap(), b.join().unwrap()]
    });
    let codes = outputs.each_ref().map(|output| output.status.code());
    let (winner, loser) = if codes == [Some(0), Some(2)] { ("ann", &outputs[1]) } else { ("bob", &outputs[0]) };
    assert!(codes == [Some(0), Some(2)] || codes == [Some(2), Some(0)], "{codes:?}: {outputs:?}");
    let said = said(loser);
    for part in ["revision 1 of pipeline shelf was expected", &format!("by {winner}"), "-defaults: {partitions: 3}"] {
        assert!(said.contains(part), "{part:?} in {said}");
    }

    // Both engines tell the same history, and the inbox has the text that won.
    let rollback = other.command(&["rollback", "shelf", "--to", "1", "--output", "json"]);
    assert!(rollback.status.success(), "{rollback:?}");
    let rollback: Value = serde_json::from_slice(&rollback.stdout).unwrap();
    assert_eq!(rollback["rollback_of"], 1);
    let history: Value =
        serde_json::from_slice(&one.command(&["history", "shelf", "--output", "json"]).stdout).unwrap();
    let revisions = history["revisions"].as_array().unwrap();
    assert_eq!(revisions.len(), 3, "{history:#}");
    assert_eq!((&revisions[0]["road"], &revisions[1]["by"]), (&"ROAD_ROLLBACK".into(), &winner.into()));
    wait_for("the inbox follows", LONG, || {
        (consul.run(&["kv", "get", &one.key("pipelines/shelf")]).trim() == SHELF.trim()).then_some(())
    });
    let got = one.command(&["get", "shelf"]);
    assert_eq!(String::from_utf8_lossy(&got.stdout), SHELF);
}

#[test]
fn what_consul_lost_runs_on_and_comes_back_from_an_export() {
    let Some(mut consul) = consul::own("what_consul_lost_comes_back", Consul::start) else { return };
    let place = Place::new("lost");
    let _engine = place.engine(&consul, None);
    place.wait_until_applied(SHELF);
    place.wait_for_revision("shelf", "1");
    let head = consul.run(&["kv", "get", &place.key("head")]);
    wait_for("the inbox has it", LONG, || {
        let note = consul.command(&["kv", "get", &place.key("notes/shelf")]);
        String::from_utf8_lossy(&note.stdout).contains("\"taken\":true").then_some(())
    });

    // A head that is deleted by hand is made anew at once.
    consul.run(&["kv", "delete", &place.key("head")]);
    wait_for("there is a head again", LONG, || {
        let output = consul.command(&["kv", "get", &place.key("head")]);
        (output.status.success() && String::from_utf8_lossy(&output.stdout) != head).then_some(())
    });
    place.wait_for_revision("shelf", "1");

    // One of a newer version is not touched.
    let good = consul.run(&["kv", "get", &place.key("head")]);
    place.put(&consul, "head", "{\"format\": 9}");
    let problems = place.wait_for_problem("newer version");
    let message = problems[0]["message"].as_str().unwrap();
    assert!(message.contains("format 9") && message.contains("does not lead"), "{problems:?}");
    assert_eq!(place.apply(SHELF, &[]).status.code(), Some(2));
    // An engine that can read it shall lead.
    let leads = || {
        let leader = consul.run(&["kv", "get", "-detailed", &place.key("leader")]);
        let session = leader.lines().find_map(|line| line.strip_prefix("Session")).map(str::trim);
        session.is_some_and(|session| session.len() > 1)
    };
    wait_for("leadership is given away", LONG, || (!leads()).then_some(()));
    place.put(&consul, "head", good.trim());
    wait_for("it leads again", LONG, || leads().then_some(()));

    // All is lost, and restored as the documentation says.
    let backup = place.path().join("backup.json");
    fs::write(&backup, consul.run(&["kv", "export", &place.key("")])).unwrap();
    consul.restart();
    place.wait_for_problem("has no head");
    let asked = place.command(&["get", "shelf"]);
    assert_eq!(asked.status.code(), Some(2), "{asked:?}");
    assert!(said(&asked).contains("shelf still runs") && said(&asked).contains("restore"), "{}", said(&asked));
    consul.run(&["kv", "import", &format!("@{}", backup.display())]);
    place.wait_for_status("nothing is wrong", |status| {
        status["problems"].as_array().is_none_or(Vec::is_empty).then_some(())
    });
    place.wait_for_revision("shelf", "1");
    let history = place.command(&["history", "shelf"]);
    assert!(String::from_utf8_lossy(&history.stdout).contains("1 (current)"), "{history:?}");

    // A Consul that was away is told of once, not each second, and when it is back.
    let log = fs::read_to_string(place.path().join("engine.log")).unwrap();
    let told = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert!(told("has not answered") <= 3, "{log}");
    assert!(told("answers again") <= told("has not answered"), "{log}");
}

#[test]
fn a_token_without_rights_is_told_which_one_is_missing() {
    const MANAGEMENT: &str = "5fdbd1d9-0f4e-4f3b-a1cd-2d6c8ea3d8a1";
    let Some(consul) = consul::own("a_token_without_rights", || Consul::start_secured(MANAGEMENT)) else { return };
    let token = |name: &str, rules: &str| {
        consul.run(&["acl", "policy", "create", "-name", name, "-rules", rules]);
        let said = consul.run(&["acl", "token", "create", "-policy-name", name]);
        said.lines().find_map(|line| line.strip_prefix("SecretID:")).unwrap().trim().to_owned()
    };
    let place = Place::new("rights");
    let mut stranger = place.engine(&consul, Some("0b9bd0f5-6bd1-4ee3-9fd4-2b0f4bd0f5aa"));
    assert_eq!(stranger.wait(LONG).code(), Some(2), "{}", stranger.output());
    assert!(stranger.output().contains("one that Consul knows"), "{}", stranger.output());

    let reader = token("reader", r#"key_prefix "pipedoc/rights/" { policy = "read" }"#);
    let engine = place.engine(&consul, Some(&reader));
    let applied = wait_for("the engine answers", LONG, || {
        let output = place.apply(SHELF, &[]);
        said(&output).contains("not allowed").then_some(output)
    });
    assert_eq!(applied.status.code(), Some(2), "{}", said(&applied));
    assert!(said(&applied).contains("key:write on pipedoc/rights/"), "{}", said(&applied));
    let problems = place.wait_for_problem("session:write");
    assert!(problems[0]["message"].as_str().unwrap().contains("neither lead"), "{problems:?}");
    let registering = "service:write on pipedoc-engine-rights";
    wait_for("the log tells of it as well", LONG, || engine.output().contains(registering).then_some(()));
}
