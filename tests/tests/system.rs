//! Whole-system tests: all that needs real servers or several processes, in one
//! binary, so that they share one broker.
//!
//! Each module is one theme. Where a server is missing, a test says aloud that it
//! is skipped; under `PIPEDOC_TEST_REQUIRE=all` that is a failure.

mod system {
    mod bed;
    mod chaos;
    mod cluster_changes;
    mod cluster_faults;
    mod cluster_library;
    mod cluster_page;
    mod cluster_users;
    mod conformance;
    mod connector_kills;
    mod consul_bad_input;
    mod consul_catalog;
    mod consul_store;
    mod doctor;
    mod kafka_clients;
    mod kafka_faults;
    mod kafka_log;
    mod kafka_metrics;
    mod kafka_place;
    mod kafka_security;
    mod kafka_stalls;
    mod kafka_tools;
    mod kafka_trouble;
    mod load;
    mod other_log;
    mod other_systems;
    mod paused;
    mod processes;
    mod run;
    mod sqlite_kills;
    mod sqlite_load;
    mod sqlite_sync;
    mod work;
    mod worker;
    mod zombies;
}
