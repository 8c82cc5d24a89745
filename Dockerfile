# The `pipedoc` command: engine and all modules, one binary.
#
#   docker build -t pipedoc .

FROM rust:1.91.0-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package pipedoc && cp target/release/pipedoc /usr/local/bin/

FROM debian:12.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates zlib1g && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/pipedoc /usr/local/bin/
# Volumes begin with these owners.
RUN useradd --uid 10001 --no-create-home pipedoc && install -d -o pipedoc -g pipedoc /data /out
USER pipedoc
ENV PIPEDOC_DATA=/data
VOLUME /data
ENTRYPOINT ["pipedoc"]
