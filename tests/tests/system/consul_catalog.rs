//! Engines in Consul's catalog: who looks for them there finds those that serve.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pipedoc_tests::bed::consul::{self, Consul};
use pipedoc_tests::bed::{free_ports, pipedoc, wait_for};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

/// What Consul's HTTP API answers.
fn ask(consul: &Consul, path: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", consul.port())).unwrap();
    // The older version of the protocol has no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: consul\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}

#[test]
fn an_engine_is_in_the_catalog_with_its_health_until_it_stops() {
    let Some(consul) = consul::shared("an_engine_is_in_the_catalog_with_its_health_until_it_stops") else { return };
    let (folder, [port]) = (tempfile::tempdir().unwrap(), free_ports());
    let (listen, address) = (format!("127.0.0.1:{port}"), consul.address());
    let arguments = ["engine", "--consul", &address, "--cluster", "catalog", "--listen", &listen];
    let mut engine = pipedoc::start("engine", folder.path(), arguments);
    let health = |status: &str| {
        // The catalog hears of a check's words only after minutes.
        let checks = ask(consul, "/v1/agent/checks");
        let found = checks.as_object()?.values().find(|check| check["ServiceName"] == "pipedoc-engine-catalog")?;
        // What the agent found, not what the engine said of itself when it registered.
        let has_asked = found["Output"].as_str().is_some_and(|output| !output.is_empty());
        (has_asked && found["Status"] == status).then_some(())
    };
    wait_for("the agent has found it well", LONG, || health("passing"));
    let services = wait_for("the catalog has it", LONG, || {
        Some(ask(consul, "/v1/catalog/service/pipedoc-engine-catalog")).filter(|services| !services[0].is_null())
    });
    assert_eq!(services[0]["ServiceAddress"], "127.0.0.1", "{services:#}");
    assert_eq!(services[0]["ServicePort"], port, "{services:#}");

    // One that hangs is not recommended, and neither is it forgotten.
    engine.stop();
    wait_for("the agent has found it ill", LONG, || health("critical"));
    engine.signal("CONT");
    wait_for("the agent has found it well again", LONG, || health("passing"));

    engine.signal("TERM");
    engine.wait(LONG);
    wait_for("it is gone", LONG, || {
        let services = ask(consul, "/v1/catalog/service/pipedoc-engine-catalog");
        services.as_array().is_some_and(Vec::is_empty).then_some(())
    });
}
