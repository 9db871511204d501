//! How the rest of the daemon speaks with the uploader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::manager_api::ManagerApi;
use crate::store::SessionHandle;

/// Requests that may wait for the uploader.
const QUEUE: usize = 256;

/// What can be asked of the uploader.
pub(super) enum Request {
    /// Send a session's messages now, and tell when they are through.
    Wait { handle: Arc<SessionHandle>, reply: oneshot::Sender<Delivered> },
    /// Settings have changed.
    Reload(Server),
    /// Send everything, backoff cut short, until all is sent, the gate is closed or the time is up. Then end.
    Stop { grace: Duration, done: oneshot::Sender<()> },
    /// How it is.
    Status(oneshot::Sender<UploadStatus>),
    /// Answered when the loop goes round.
    Heartbeat(oneshot::Sender<()>),
}

/// What a reload means for the way to the server.
pub enum Server {
    /// The same server, reached the same way.
    Unchanged,
    /// Another one; `None`: no URL is set any more.
    Changed(Option<ManagerApi>),
}

/// What came of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Messages of the session delivered or rejected since the wait began.
    pub delivered: u64,
    /// Messages of the session still pending.
    pub pending: u64,
    /// Why the wait ended early; `None`: everything is through.
    pub reason: Option<&'static str>,
}

/// How the uploader is, for the status.
#[derive(Clone, Debug, Default)]
pub struct UploadStatus {
    /// Why the gate is closed: kind, reason, since.
    pub closed: Option<(&'static str, String, Instant)>,
    /// Whether a server is configured.
    pub configured: bool,
    /// The server's time unit, once known.
    pub time_unit: Option<&'static str>,
    /// Sessions that have their turn now.
    pub sending: usize,
    /// Sessions with undelivered messages.
    pub sessions_pending: usize,
    /// Sessions in backoff.
    pub backing_off: usize,
    /// Devices the server does not know.
    pub devices_waiting: usize,
    /// The most strikes against a message at the head of a session.
    pub strikes: u32,
    /// Since when the oldest pending message waits.
    pub oldest: Option<Instant>,
    /// As `oldest`, of the messages whose device the server is not known not to know.
    pub oldest_sendable: Option<Instant>,
}

/// A way to the uploader. Cheap to clone.
#[derive(Clone)]
pub struct Deliveries {
    requests: mpsc::Sender<Request>,
}

impl Deliveries {
    pub(super) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, inbox) = mpsc::channel(QUEUE);
        (Self { requests }, inbox)
    }

    /// How the uploader is; `None` when it has ended.
    pub async fn status(&self) -> Option<UploadStatus> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Status(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Makes a session due and waits until what is pending now is delivered or rejected. Answers at once when that
    /// cannot happen soon: gate closed, device waiting, store failing.
    ///
    /// # Cancel safety
    /// The session stays due.
    pub async fn wait(&self, handle: Arc<SessionHandle>, deadline: Instant) -> Delivered {
        let began = handle.left();
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.requests.send(Request::Wait { handle: Arc::clone(&handle), reply }).await.ok()?;
            answer.await.ok()
        };
        let early = |reason| Delivered { delivered: handle.left() - began, pending: handle.pending(), reason: Some(reason) };
        match tokio::time::timeout_at(deadline, ask).await {
            Ok(Some(delivered)) => delivered,
            Ok(None) => early("the daemon is stopping"),
            Err(_) => early("the time is up"),
        }
    }

    /// Tells of changed settings.
    pub async fn reload(&self, server: Server) {
        let _ = self.requests.send(Request::Reload(server)).await;
    }

    /// Stops the uploader after it has used the grace.
    pub async fn stop(&self, grace: Duration) {
        let (done, ended) = oneshot::channel();
        if self.requests.send(Request::Stop { grace, done }).await.is_ok() {
            let _ = ended.await;
        }
    }

    /// Resolves when the uploader's loop has gone round: what the watchdog is fed with.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn heartbeat(&self) -> Result<(), ()> {
        let (answer, alive) = oneshot::channel();
        self.requests.send(Request::Heartbeat(answer)).await.map_err(|_| ())?;
        alive.await.map_err(|_| ())
    }
}
