//! The status socket: whoever connects gets one JSON object and the end of the stream; who sends a request first gets
//! its answer (`control`).
//!
//! Promises: at most `AT_ONCE` clients, each for at most `PATIENCE`; a client that does not read delays nobody.
//! Lists the `LISTED` sessions with the latest events. Refuses: to show the secret, a whole MAC address (but for a session id that
//! carries it) or anything that was said.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::metrics::Value;
use super::rates::{self, Rates, Sample};
use super::{Conversation, Metrics, control};
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::history::change::Changes;
use crate::session::Registry;
use crate::store::{Store, StoreHealth};
use crate::upload::{Deliveries, UploadStatus};

/// The version of the status object: raised when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Clients served at once; more are closed at once.
const AT_ONCE: usize = 16;

/// Time a client gets to read.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sessions listed at most, those with the latest events.
const LISTED: usize = 100;

/// What the status tells of.
#[derive(Clone)]
pub struct Overview {
    /// The store.
    pub store: Store,
    /// The uploader.
    pub deliveries: Deliveries,
    /// The sessions.
    pub registry: Registry,
    /// The books.
    pub metrics: Arc<Metrics>,
    /// The settings.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// How much happens.
    pub rates: Arc<Mutex<Rates>>,
    /// When the daemon started.
    pub started: Instant,
}

impl Overview {
    /// Samples the rates until the task is dropped.
    pub async fn sample_rates(self) {
        let mut tick = tokio::time::interval(rates::EVERY);
        loop {
            tick.tick().await;
            let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            rates.take(Instant::now().into_std(), Sample::of(&self.metrics));
        }
    }

    /// The status object.
    pub async fn json(&self) -> Json {
        let upload = self.deliveries.status().await.unwrap_or_default();
        let settings = self.settings.borrow().clone();
        let directory = settings.store.directory.clone();
        // A file system that hangs must not hang the runtime.
        let disk_free = tokio::task::spawn_blocking(move || free_bytes(&directory)).await.ok().flatten();
        let metrics: Map<String, Json> =
            self.metrics.values().into_iter().map(|(name, value)| (name.to_owned(), measured(value))).collect();
        let uptime = self.started.elapsed();
        json!({
            "v": VERSION,
            "daemon": concat!("chat-historyd/", env!("CARGO_PKG_VERSION")),
            "pid": std::process::id(),
            "uptime_seconds": uptime.as_secs(),
            "start_time_seconds": wall_clock().0 / 1000 - i64::try_from(uptime.as_secs()).unwrap_or_default(),
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
            "store": store(&self.store.health(), settings.store.max_bytes, disk_free),
            "rates": self.rates(),
            "sessions_open": self.metrics.sessions_open.get(),
            "sessions": sessions(self.registry.conversations()),
            "connections": self.metrics.connections.get(),
            "pending": self.metrics.pending.get(),
            "held": self.metrics.held.get(),
            "metrics": metrics,
        })
    }

    fn rates(&self) -> Json {
        let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = rates.until(Instant::now().into_std(), Sample::of(&self.metrics));
        let happened = rate.happened;
        json!({
            "window_seconds": rate.window.as_secs(),
            "received_per_minute": rounded(rate.per_minute(happened.received)),
            "delivered_per_minute": rounded(rate.per_minute(happened.delivered)),
            "reports_per_minute": rounded(rate.per_minute(happened.attempts)),
            "failures_per_minute": rounded(rate.per_minute(happened.attempts.saturating_sub(happened.accepted))),
            "success_ratio": rate.success().map(rounded),
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

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// The free bytes of a file system for our user.
fn free_bytes(directory: &Path) -> Option<u64> {
    let statistics = nix::sys::statvfs::statvfs(directory).ok()?;
    Some(statistics.blocks_available() * statistics.fragment_size())
}

fn measured(value: Value) -> Json {
    match value {
        Value::One(number) => json!(number),
        Value::Each(numbers) => numbers.into_iter().map(|(label, number)| (label.to_owned(), json!(number))).collect(),
        Value::Sizes { buckets, sum } => {
            let count = buckets.last().map_or(0, |(_, count)| *count);
            json!({ "buckets": buckets, "sum": sum, "count": count })
        }
    }
}

fn store(health: &StoreHealth, max_bytes: u64, disk_free: Option<u64>) -> Json {
    json!({
        "failing": health.failing.as_ref().map(|failing| json!({
            "what": failing.what,
            "since_seconds": failing.since.elapsed().as_secs(),
        })),
                "full": health.full,
                "used_bytes": health.used_bytes,
        "max_bytes": max_bytes,
        "disk_free_bytes": disk_free,
        "shelf_bytes": health.shelf_bytes,
        "shelf_messages": health.shelf_messages,
    })
}

/// The sessions with the latest events; how many are left out, the reader sees from `sessions_open`.
fn sessions(mut conversations: Vec<Arc<Conversation>>) -> Json {
    conversations.sort_by_cached_key(|conversation| std::cmp::Reverse(conversation.last_event()));
    let listed = conversations.iter().take(LISTED).map(|conversation| {
        let identity = conversation.identity();
        json!({
            "mac": identity.mac.short(),
            "session": identity.session_id.as_str(),
            "messages": conversation.messages(),
            "pending": conversation.pending(),
            "open_seconds": conversation.opened().elapsed().as_secs(),
            "last_event_seconds": conversation.last_event().elapsed().as_secs(),
        })
    });
    listed.collect()
}

fn gate(upload: &UploadStatus) -> Json {
    match &upload.closed {
        Some((kind, reason, since)) => {
            json!({ "state": "closed", "open": false, "kind": kind, "reason": reason, "since_seconds": since.elapsed().as_secs() })
        }
        None if upload.configured => json!({ "state": "open", "open": true }),
        None => json!({ "state": "no_url", "open": false }),
    }
}

/// Serves the status until the task is dropped.
pub async fn serve(listener: UnixListener, overview: Overview, changes: Changes) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors: the next try may have better luck, a spin would not.
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (overview, changes) = (overview.clone(), changes.clone());
        tokio::spawn(async move {
            if control::attend(&mut stream, &changes).await {
                return;
            }
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
