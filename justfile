# Shortcuts; `just` lists them.

# Lists the recipes.
default:
    @just --list

# Formats, lints and tests, as continuous integration does.
ci:
    bash .ci/run

# The README's first command.
run:
    cargo run --release -- run examples/library

# Checks licences, sources and who may depend on what.
deny:
    cargo deny check bans licenses sources

# Writes the generated protobuf code anew.
proto:
    PIPEDOC_REGENERATE=1 cargo test -p pipedoc-proto --test drift

# Chaos for so long (`90s`, `30m`, `2h`), on sqlite and kafka side by side or on one of them, under AT_LEAST_ONCE and
# EXACTLY_ONCE at once or one of them. Processes are killed, frozen and joined by others, brokers restarted; at the end
# a table. A seed repeats a run's choices.
chaos length="10m" seed="" on="" guarantee="":
    PIPEDOC_TEST_CHAOS={{length}} PIPEDOC_TEST_SEED={{seed}} PIPEDOC_TEST_ON={{on}} PIPEDOC_TEST_GUARANTEE={{guarantee}} cargo test -p pipedoc-tests --test system chaos::on_ -- --nocapture

# Kills writers and readers of one SQLite file at random, so often (CI: 25 times).
kills times="200":
    PIPEDOC_TEST_KILLS={{times}} cargo test -p pipedoc-tests --test system sqlite_kills -- --nocapture

# Ten processes on one SQLite file at full load, for so many minutes (CI: 5 seconds).
load minutes="10":
    PIPEDOC_TEST_MINUTES={{minutes}} cargo test -p pipedoc-tests --test system sqlite_load -- --nocapture

# Many more scenarios of the runtime against its model, in paused time; a seed is set by PIPEDOC_TEST_SEED.
model cases="3000":
    PIPEDOC_TEST_CASES={{cases}} cargo test -p pipedoc-sdk --test runtime_model whatever_happens -- --nocapture

# The same on SQLite, in real time: some seconds a scenario.
model-on-sqlite cases="200":
    PIPEDOC_TEST_CASES={{cases}} cargo test -p pipedoc-sdk --test runtime_model on_sqlite -- --nocapture

# What PipeDoc costs, side by side with raw clients and plain loops; bench/README.md says how. Below ten minutes.
bench what="all":
    cargo run --release -p pipedoc-bench -- {{what}}

# What brokers and networks do to pipelines on Kafka, many times, with figures.
faults rounds="10" away="60":
    PIPEDOC_TEST_ROUNDS={{rounds}} PIPEDOC_TEST_AWAY={{away}} cargo test -p pipedoc-tests --test system kafka_faults -- --nocapture --test-threads 1

# What becomes of engines, instances and Consul in a cluster under load, many times, with figures.
cluster-faults rounds="5" away="60":
    PIPEDOC_TEST_ROUNDS={{rounds}} PIPEDOC_TEST_AWAY={{away}} cargo test -p pipedoc-tests --test system cluster_faults -- --nocapture --test-threads 1

# So many changes of pipelines under load, with figures.
cluster-changes applies="100" changes="20":
    PIPEDOC_TEST_APPLIES={{applies}} PIPEDOC_TEST_CHANGES={{changes}} cargo test -p pipedoc-tests --test system cluster_changes -- --nocapture --test-threads 1
