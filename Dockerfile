# Two stages: a toolchain that builds, and an image that holds the program and nothing to build with.
#
#   docker build -t oshu-vault .
#   docker run --rm -v vault:/var/lib/oshu-vault oshu-vault \
#     ca generate --state-dir /var/lib/oshu-vault
#   docker run --rm -v vault:/var/lib/oshu-vault oshu-vault \
#     seal generate --state-dir /var/lib/oshu-vault
#   docker run --read-only -v vault:/var/lib/oshu-vault -v ./tls:/tls:ro -p 8443:8443 \
#     -e SECRETS_PROXY_API_KEY oshu-vault serve --state-dir /var/lib/oshu-vault \
#     --tls-listen 0.0.0.0:8443 --tls-cert /tls/tls.crt --tls-key /tls/tls.key \
#     --public-url https://vault.example.com:8443
#
# The plain listener stays on the container's loopback, where the health check asks. The server
# needs a root in its state folder, a sealing key, an API key and a public URL, and says so where one
# is missing. It writes to stdout, to stderr and to its state folder, where sessions are kept; the
# rest of the file system may be read-only. Nothing secret belongs
# in a layer: keys come in by the environment or by mounted files that user 10001 can read.

FROM rust:1.95-slim-bookworm AS build
# What the allocator is built with.
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin oshu-vault

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin vault \
    && install -d -o vault -g vault -m 0700 /var/lib/oshu-vault
COPY --from=build /build/target/release/oshu-vault /usr/local/bin/oshu-vault
USER 10001
VOLUME /var/lib/oshu-vault
EXPOSE 8080 8443
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["oshu-vault", "healthcheck"]
ENTRYPOINT ["oshu-vault"]
CMD ["serve", "--listen", "0.0.0.0:8080", "--state-dir", "/var/lib/oshu-vault"]
