//! The status socket: whoever connects gets one JSON object and the end of the stream; who sends a request first gets
//! its answer (`control`).
//!
//! Promises: at most `AT_ONCE` clients, each for at most `PATIENCE` in all; a client that does not read delays nobody, and
//! neither does an uploader or a disk that does not answer: what they would tell is left out.
//! Lists the `LISTED` sessions with the latest events. Refuses: whom `socket.allowed_uids` leaves out, but for root and the
//! daemon's own user; to show the secret, a whole MAC address (but for a session id that
//! carries it) or anything that was said.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::logging::escape_controls;
use super::metrics::Value;
use super::rates::{self, Rates, Sample};
use super::sampled::Sampled;
use super::{Conversation, Metrics, control, process};
use crate::config::{Settings, StoreSettings};
use crate::history::change::Changes;
use crate::protocol::UnixMillis;
use crate::session::Registry;
use crate::store::{Store, StoreHealth};
use crate::upload::{Deliveries, UploadStatus};

/// The version of the status object: raised when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Clients served at once; more are closed at once.
const AT_ONCE: usize = 16;

/// Time a client gets in all.
const PATIENCE: Duration = Duration::from_millis(500);

/// Time the uploader gets to tell how it is.
const UPLOADER_PATIENCE: Duration = Duration::from_millis(200);

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
    /// What the disk tells.
    pub sampled: Sampled,
    /// When the daemon started.
    pub started: Instant,
    /// The wall clock of that: told as it was then, for a figure that moves looks like a restart.
    pub started_at: UnixMillis,
    /// The daemon is on its way out.
    pub stopping: CancellationToken,
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

    /// How the uploader is; `None` when it does not answer.
    pub async fn upload(&self) -> Option<UploadStatus> {
        timeout(UPLOADER_PATIENCE, self.deliveries.status()).await.ok().flatten()
    }

    /// The status object.
    pub async fn json(&self) -> Json {
        let upload = self.upload().await;
        let settings = self.settings.borrow().clone();
        let metrics: Map<String, Json> =
            self.metrics.values().into_iter().map(|(name, value)| (name.to_owned(), measured(value))).collect();
        json!({
            "v": VERSION,
            "daemon": concat!("chat-historyd/", env!("CARGO_PKG_VERSION")),
            "pid": std::process::id(),
            "state": if self.stopping.is_cancelled() { "stopping" } else { "serving" },
            "uptime_seconds": self.started.elapsed().as_secs(),
            "start_time_seconds": self.started_at.0 / 1000,
            "gate": gate(upload.as_ref()),
            "upload": upload.map(|upload| json!({
                "time_unit": upload.time_unit,
                "sending": upload.sending,
                "sessions_pending": upload.sessions_pending,
                "backing_off": upload.backing_off,
                "devices_waiting": upload.devices_waiting,
                "strikes": upload.strikes,
                "oldest_pending_seconds": upload.oldest.map(|since| since.elapsed().as_secs()),
                "oldest_sendable_seconds": upload.oldest_sendable.map(|since| since.elapsed().as_secs()),
            })),
            "store": store(&self.store.health(), &settings.store, &self.sampled),
            "process": process::figures(),
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

    /// One line for people: the `STATUS=` of `systemctl status`. What is wrong comes first.
    pub async fn line(&self) -> String {
        let mut words = Vec::new();
        let health = self.store.health();
        if let Some(failing) = &health.failing {
            words.push(format!("the store cannot be written ({})", failing.what));
            if failing.refused > 0 {
                words.push(format!("{} messages were refused", failing.refused));
            }
        }
        if self.metrics.socket_missing.get() > 0 {
            words.push("no producer can connect: the events socket is not at its path".to_owned());
        }
        if health.full {
            words.push("the store is full: nothing is taken in".to_owned());
        }
        let upload = self.upload().await;
        words.push(match &upload {
            None => "the uploader does not answer".to_owned(),
            Some(UploadStatus { closed: Some((kind, reason, _)), .. }) => format!("gate closed ({kind}: {reason})"),
            Some(UploadStatus { configured: false, .. }) => "no manager_api.url: history is only kept here".to_owned(),
            Some(_) => "delivering".to_owned(),
        });
        let metrics = &self.metrics;
        let oldest = upload.and_then(|upload| upload.oldest).map(|since| since.elapsed().as_secs()).filter(|age| *age >= 60);
        let oldest = oldest.map_or_else(String::new, |age| format!(" (oldest {} min)", age / 60));
        words.push(format!(
            "{} sessions, {} pending{oldest}, {} delivered, {} rejected",
            metrics.sessions_open.get(),
            metrics.pending.get(),
            metrics.delivered.get(),
            metrics.rejected.sum()
        ));
        // A line break would begin another assignment of the notification.
        escape_controls(&words.join("; ")).into_owned()
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
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

fn store(health: &StoreHealth, settings: &StoreSettings, sampled: &Sampled) -> Json {
    let disk = sampled.disk();
    json!({
        "failing": health.failing.as_ref().map(|failing| json!({
            "what": failing.what,
            "since_seconds": failing.since.elapsed().as_secs(),
            "refused_messages": failing.refused,
        })),
        "full": health.full,
        "used_bytes": health.used_bytes,
        "max_bytes": settings.max_bytes,
        "disk_free_bytes": disk.map(|disk| disk.free_bytes),
        "disk_size_bytes": disk.map(|disk| disk.size_bytes),
        "shelf_bytes": health.shelf_bytes,
        "shelf_max_bytes": settings.shelf_bytes,
        "shelf_messages": health.shelf_messages,
        "rejected": sampled.rejected(),
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

fn gate(upload: Option<&UploadStatus>) -> Json {
    let Some(upload) = upload else {
        return json!({ "state": "unknown", "open": null, "reason": "the uploader does not answer" });
    };
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
    let control = control::Desk::new(changes);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the next try may have better luck, a spin would not.
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (overview, control) = (overview.clone(), control.clone());
        tokio::spawn(async move {
            let asked = timeout(PATIENCE, attend(stream, &overview, &control)).await;
            // A change may take its time, and has a room of its own for it.
            drop(permit);
            if let Ok(Some(change)) = asked {
                control.serve(change).await;
            }
        });
    }
}

/// Gives the status; or answers with whoever asks for a change.
async fn attend(mut stream: UnixStream, overview: &Overview, control: &control::Desk) -> Option<control::Change> {
    if let Some(first) = control::first_byte(&mut stream).await {
        return control.admit(stream, first).await;
    }
    let answer = if may_see(&stream, &overview.settings.borrow().socket.allowed_uids) {
        overview.json().await
    } else {
        overview.metrics.peers_refused.increment();
        json!({ "refused": "this user is not in socket.allowed_uids" })
    };
    let mut text = answer.to_string();
    text.push('\n');
    if stream.write_all(text.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
    None
}

/// Session ids may hold a MAC address: the mode is no more the only door than it is for the events socket.
fn may_see(stream: &UnixStream, allowed: &[u32]) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    allowed.is_empty() || stream.peer_cred().is_ok_and(|peer| [0, own].contains(&peer.uid()) || allowed.contains(&peer.uid()))
}
