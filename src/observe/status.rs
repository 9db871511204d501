//! The status socket: whoever connects gets one JSON object and the end of the stream.
//!
//! Promises: at most [`AT_ONCE`] clients, each for at most [`PATIENCE`]; a client that does not read delays nobody.
//! Refuses: to show the secret, a whole MAC address or anything that was said.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Metrics;
use super::metrics::Value;
use crate::store::Store;
use crate::upload::{Deliveries, UploadStatus};

/// The version of the status object: raised when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Clients served at once; more are closed at once.
const AT_ONCE: usize = 16;

/// Time a client gets to read.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the status tells of.
#[derive(Clone)]
pub struct Overview {
    /// The store.
    pub store: Store,
    /// The uploader.
    pub deliveries: Deliveries,
    /// The books.
    pub metrics: Arc<Metrics>,
    /// When the daemon started.
    pub started: Instant,
}

impl Overview {
    /// The status object.
    pub async fn json(&self) -> Json {
        let upload = self.deliveries.status().await.unwrap_or_default();
        let health = self.store.health();
        let metrics: Map<String, Json> = self
            .metrics
            .values()
            .into_iter()
            .map(|(name, value)| {
                let value = match value {
                    Value::One(number) => json!(number),
                    Value::Each(numbers) => {
                        numbers.into_iter().map(|(label, number)| (label.to_owned(), json!(number))).collect()
                    }
                };
                (name.to_owned(), value)
            })
            .collect();
        json!({
            "v": VERSION,
            "daemon": concat!("chat-historyd/", env!("CARGO_PKG_VERSION")),
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "gate": gate(&upload),
            "upload": {
                "time_unit": upload.time_unit,
                "sending": upload.sending,
                "sessions_pending": upload.sessions_pending,
                "backing_off": upload.backing_off,
                "devices_waiting": upload.devices_waiting,
                "strikes": upload.strikes,
                "oldest_pending_seconds": upload.oldest.map(|since| since.elapsed().as_secs()),
            },
            "store": {
                "failing": health.failing.as_ref().map(|failing| json!({
                    "what": failing.what,
                    "since_seconds": failing.since.elapsed().as_secs(),
                })),
                "full": health.full,
                "used_bytes": health.used_bytes,
                "shelf_bytes": health.shelf_bytes,
                "shelf_messages": health.shelf_messages,
            },
            "sessions_open": self.metrics.sessions_open.get(),
            "connections": self.metrics.connections.get(),
            "pending": self.metrics.pending.get(),
            "held": self.metrics.held.get(),
            "metrics": metrics,
        })
    }

    /// One line for people: the `STATUS=` of `systemctl status`.
    pub async fn line(&self) -> String {
        let upload = self.deliveries.status().await.unwrap_or_default();
        let gate = match &upload.closed {
            Some((kind, reason, _)) => format!("gate closed ({kind}: {reason})"),
            None if !upload.configured => "no manager_api.url: history is only kept here".to_owned(),
            None => "delivering".to_owned(),
        };
        let metrics = &self.metrics;
        format!(
            "{gate}; {} sessions, {} pending, {} delivered, {} rejected",
            metrics.sessions_open.get(),
            metrics.pending.get(),
            metrics.delivered.get(),
            metrics.rejected.sum()
        )
    }
}

fn gate(upload: &UploadStatus) -> Json {
    match &upload.closed {
        Some((kind, reason, since)) => {
            json!({ "state": "closed", "kind": kind, "reason": reason, "since_seconds": since.elapsed().as_secs() })
        }
        None if upload.configured => json!({ "state": "open" }),
        None => json!({ "state": "no_url" }),
    }
}

/// Serves the status until the task is dropped.
pub async fn serve(listener: UnixListener, overview: Overview) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the next try may have better luck, a spin would not.
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let overview = overview.clone();
        tokio::spawn(async move {
            let _ = timeout(PATIENCE, answer(stream, &overview)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: UnixStream, overview: &Overview) -> std::io::Result<()> {
    let mut text = overview.json().await.to_string();
    text.push('\n');
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}
