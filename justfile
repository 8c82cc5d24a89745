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
