# chat-historyd in a container beside a voice agent. The README shows the compose file.

FROM rust:1-bookworm AS builder
WORKDIR /build
# Cargo features besides the default, separated by commas: those of the packages (features in Cargo.toml).
ARG FEATURES="pdf"

# The dependencies alone: this layer is rebuilt only when the manifest or the lock changes. Every target that the manifest names has
# to be there, though nothing of it is used.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests benches/pipeline contrib/manual \
    && echo '//! Dependencies only.' > src/lib.rs \
    && printf '//! Dependencies only.\nfn main() {}\n' > src/main.rs \
    && touch tests/main.rs contrib/manual/main.rs benches/retention.rs benches/store.rs benches/micro.rs benches/pipeline/main.rs \
    && cargo build --release --locked --features "$FEATURES"

# The configuration and the recorded conversation are compiled in.
COPY chat-historyd.toml ./
COPY tests/fixtures tests/fixtures
COPY src src
# Copied files are older than the build above; cargo must see that they are new.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --features "$FEATURES" --bin chat-historyd

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="chat-historyd" \
      org.opencontainers.image.description="Durable spool and delivery of voice-agent conversations to the Manager API" \
      org.opencontainers.image.licenses="MIT"

# Made before VOLUME, so that named volumes start with this owner and these modes.
RUN install -d -m 0750 -o 10001 -g 10001 /run/chat-historyd \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/chat-historyd
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=builder /build/target/release/chat-historyd /usr/bin/chat-historyd

# A number, so that Kubernetes' runAsNonRoot can check it. Agents in other containers join group 10001.
USER 10001:10001
# The status socket stands beside the events socket, the backups under the store.
ENV CHAT_HISTORYD__SOCKET__PATH=/run/chat-historyd/events.sock \
    CHAT_HISTORYD__STORE__DIRECTORY=/var/lib/chat-historyd
VOLUME ["/run/chat-historyd", "/var/lib/chat-historyd"]

# Accepts what is queued, delivers for upload.shutdown_grace (5 s), exits 0. The time to kill must be twice that and 5 s at least.
STOPSIGNAL SIGTERM
# `status` exits 69 when no daemon answers.
HEALTHCHECK --interval=30s --timeout=5s --start-period=1m --retries=3 CMD ["/usr/bin/chat-historyd", "status"]
ENTRYPOINT ["/usr/bin/chat-historyd"]
