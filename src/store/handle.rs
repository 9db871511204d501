//! The store's public face: what may be asked of it. All writing goes through the writer's inbox, all reading through the
//! readers; nothing here touches a file.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::arrivals::Arrivals;
use super::backups_due::Backed;
use super::changes::{Change, Retried};
use super::error::{BindError, StoreError};
use super::forget::{ForgetError, ForgetWish, Forgetting, Forgotten};
use super::health::{CloseReport, StoreHealth};
use super::import::{Import, ImportError, Imported, ImportedSession};
use super::inbox::Job;
use super::record::{SessionSnapshot, TranscriptMessage};
use super::session_handle::SessionHandle;
use super::shared::Shared;
use super::types::{
    BacklogSession, Cursor, OpenedSession, PendingMessage, Rejection, RowId, SessionKey, SessionWrite, StreamStand, WaitingDevice,
};
use super::writer::Writer;
use super::{backups_due, group, reads, record, rows, start};
use crate::config::StoreSettings;
use crate::observe::Metrics;
use crate::protocol::{MacAddress, SessionIdentity, UnixMillis};

/// What a session's cursor has passed since the last [`Store::advance`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Messages the server accepted completely.
    pub delivered: u64,
    /// Messages that will never be delivered.
    pub rejected: Vec<(RowId, Rejection)>,
}

impl Passed {
    /// `count` messages were accepted.
    #[must_use]
    pub fn delivered(count: u64) -> Self {
        Self { delivered: count, rejected: Vec::new() }
    }

    /// One message was rejected.
    #[must_use]
    pub fn rejected(row: RowId, rejection: Rejection) -> Self {
        Self { delivered: 0, rejected: vec![(row, rejection)] }
    }
}

/// The store. Cheap to clone; the writer ends when it is closed or the last clone is gone.
#[derive(Clone)]
pub struct Store {
    owner: Arc<Owner>,
}

/// Ends the writer when nobody can ask it for anything any more.
struct Owner {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<CloseReport>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.inbox.close();
    }
}

impl Store {
    pub(super) fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// The database.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.shared().files.database
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared().metrics
    }

    /// A short read of the database.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared().readers.spawn(read).await
    }

    /// Opens the store: takes the instance lock, creates what is missing, sets a damaged database aside and salvages it
    /// (this can take long: extend the start timeout meanwhile), and starts the writer thread. Blocks.
    ///
    /// # Errors
    /// [`StoreError::AlreadyRunning`] when another daemon holds the lock; [`StoreError::NewerSchema`]; otherwise when
    /// directory or database cannot be created or opened. A damaged database is no error.
    pub fn open(settings: &StoreSettings, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let (shared, connection, next) = start::start(settings, metrics)?;
        let shared = Arc::new(shared);
        let writer = Writer::new(Arc::clone(&shared), connection, next);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(StoreError::file("start the writer of", &shared.files.database))?;
        Ok(Self { owner: Arc::new(Owner { shared, writer: Mutex::new(Some(thread)) }) })
    }

    /// Opens a session for writing, creating it when it is new. The handle is shared: everybody gets the same one.
    ///
    /// # Errors
    /// When the store cannot tell whether the session exists, or has no room for a new one.
    ///
    /// # Cancel safety
    /// The session may have been created.
    pub async fn open_session(&self, identity: &SessionIdentity, now: UnixMillis) -> Result<OpenedSession, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared().inbox.push(Job::Open { identity: identity.clone(), now, reply }).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Binds a stream to a session and answers how far its lines are known.
    ///
    /// # Errors
    /// When the stream belongs to another session, or the store cannot say.
    ///
    /// # Cancel safety
    /// The stream may have been bound.
    pub async fn bind_stream(
        &self,
        session: &Arc<SessionHandle>,
        stream: &str,
        now: UnixMillis,
    ) -> Result<StreamStand, BindError> {
        let (reply, answer) = oneshot::channel();
        let session = Arc::clone(session);
        self.shared().inbox.push(Job::Bind { session, stream: stream.into(), now, reply }).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Queues a write; waits while the queue is full. Its outcome is told through `write.on_settled`.
    ///
    /// # Cancel safety
    /// Cancelled while waiting, nothing of the write is taken and `on_settled` is never called. Writes of one task keep
    /// their order.
    pub async fn append(&self, write: SessionWrite) {
        self.shared().inbox.push(Job::Write(Box::new(write))).await;
    }

    /// The messages of a session after its cursor, in order: at most `limit`, and no more than `max_bytes` of text and
    /// audio (but at least one). Rows to pass over ([`super::Disposition`]) are among them.
    ///
    /// # Errors
    /// When rows that may be there cannot be read: the session is held.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn pending(
        &self,
        session: &Arc<SessionHandle>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<PendingMessage>, StoreError> {
        let (key, after) = (session.key, session.cursor().row);
        let shared = self.shared();
        // The shelf first: what is written from it meanwhile is then seen twice, never not at all.
        let shelved = shared.shelf().pending(key, after, limit);
        let recent = if session.may_have_stored(after) {
            session.recent().after(after, limit, max_bytes)
        } else {
            Some((Vec::new(), false))
        };
        let (mut messages, more) = match recent {
            Some(found) => found,
            None => shared.readers.spawn(move |connection| reads::pending(connection, key, after, limit, max_bytes)).await?,
        };
        if more {
            return Ok(messages);
        }
        let stored_to = messages.last().map_or(after, |message| message.row);
        let mut bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        for message in shelved.into_iter().filter(|message| message.row > stored_to) {
            bytes += message.content.len();
            if messages.len() >= limit || (bytes > max_bytes && !messages.is_empty()) {
                break;
            }
            messages.push(message);
        }
        Ok(messages)
    }

    /// The audio of a pending message, which may be megabytes; `None`: there is none, or it is damaged.
    ///
    /// # Errors
    /// When it cannot be read: the session is held.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn audio(&self, row: RowId) -> Result<Option<Vec<u8>>, StoreError> {
        let shared = self.shared();
        // The shelf first: what is written from it meanwhile is then in the database.
        let shelved = shared.shelf().audio(row);
        match shelved {
            Some(audio) => Ok(Some(audio)),
            None => shared.readers.spawn(move |connection| reads::audio(connection, row)).await,
        }
    }

    /// Sets the cursor of a session at once and queues its writing. Never blocks. Counts `delivered` and `rejected`.
    /// One caller a session: the uploader, which then awaits [`Self::cursor_follows`].
    pub fn advance(&self, session: &Arc<SessionHandle>, cursor: Cursor, passed: Passed) {
        let metrics = &self.shared().metrics;
        let count = passed.delivered + passed.rejected.len() as u64;
        if !passed.rejected.is_empty() {
            self.shared().shelf().give_up(&passed.rejected);
        }
        if !session.advance(cursor, count) {
            // It left the books when it was forgotten.
            return self.shared().inbox.advance(session, cursor, Vec::new());
        }
        metrics.pending.subtract(count);
        metrics.delivered.add(passed.delivered);
        for (_, rejection) in &passed.rejected {
            metrics.rejected.increment(rejection.reason);
        }
        self.shared().inbox.advance(session, cursor, passed.rejected);
    }

    /// Waits until the durable cursor of a session is at most so many advances behind; not at all while the store fails or
    /// when it is closed. One caller a session: the one who advances.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn cursor_follows(&self, session: &SessionHandle, behind: u32) {
        while session.unwritten() > behind {
            self.shared().inbox.hurry(session);
            session.written().await;
        }
    }

    /// Somebody waits until cursors are durable ([`SessionHandle::is_settled`]), which they would be soon, but not by a sync
    /// of their own. The mailbox ([`Self::arrivals`]) tells when some are.
    pub fn hurry_cursors(&self) {
        self.shared().inbox.hurry_all();
    }

    /// The uploader's mailbox.
    #[must_use]
    pub fn arrivals(&self) -> &Arrivals {
        &self.shared().arrivals
    }

    /// Tells the uploader once more of what stands in memory while the store cannot be written: for one that begins only
    /// now. [`Self::backlog`] has the rest.
    pub fn announce_shelved(&self) {
        let news = |write: &SessionWrite| (Arc::clone(&write.session), group::sendable(write), group::ended(write));
        let news: Vec<_> = self.shared().shelf().writes().map(news).collect();
        self.shared().arrivals.note(news, false);
    }

    /// The sessions with undelivered messages, by key, at most `limit` after `after`; empty at the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn backlog(&self, after: Option<SessionKey>, limit: usize) -> Result<Vec<BacklogSession>, StoreError> {
        let found = self.shared().readers.spawn(move |connection| reads::backlog(connection, after, limit)).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        self.shared().inbox.push(Job::Adopt { found, reply }).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The sessions that have not ended, by key, at most `limit` after `after`; empty at the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn open_sessions(
        &self,
        after: Option<SessionKey>,
        limit: usize,
    ) -> Result<Vec<(SessionKey, SessionIdentity)>, StoreError> {
        let after = after.unwrap_or(SessionKey(i64::MIN));
        self.shared().readers.spawn(move |connection| reads::open_sessions(connection, after, limit)).await
    }

    /// How many transcripts are held, in all sessions.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn held_count(&self) -> Result<u64, StoreError> {
        self.shared().readers.spawn(reads::held_count).await
    }

    /// The rejected messages that stand in the store, by reason: they leave only when a person says so.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn rejected_counts(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.shared().readers.spawn(reads::rejected_counts).await
    }

    /// Notes the agent of a session whose producer named none. Returns when it is queued.
    ///
    /// # Cancel safety
    /// Cancelled while waiting for room in the queue, nothing is noted.
    pub async fn suggest_agent(&self, session: &Arc<SessionHandle>, agent_id: String) {
        self.shared().inbox.push(Job::Agent { session: Arc::clone(session), agent_id }).await;
    }

    /// Notes what the backup of a session tells. Returns when it is queued.
    ///
    /// # Cancel safety
    /// Cancelled while waiting for room in the queue, nothing is noted.
    pub async fn note_backed(&self, session: SessionKey, backed: Backed) {
        self.shared().inbox.push(Job::Backed { session, backed }).await;
    }

    /// The first session after this one that ended and lacks its backup.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next_without_backup(&self, after: SessionKey) -> Result<Option<SessionKey>, StoreError> {
        self.shared().readers.spawn(move |connection| backups_due::next(connection, after)).await
    }

    /// How many sessions ended and lack their backup.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn count_without_backup(&self) -> Result<u64, StoreError> {
        self.shared().readers.spawn(backups_due::count).await
    }

    /// The devices that the server does not know.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn waiting_devices(&self) -> Result<Vec<WaitingDevice>, StoreError> {
        self.shared().readers.spawn(reads::waiting_devices).await
    }

    /// Notes a device that waits, or its new number of tries. Never blocks; written with the next group.
    pub fn note_waiting(&self, device: WaitingDevice) {
        self.shared().inbox.device(device.mac, Some(device));
    }

    /// Forgets a device that no longer waits. Never blocks; written with the next group.
    pub fn clear_waiting(&self, mac: MacAddress) {
        self.shared().inbox.device(mac, None);
    }

    /// A session's row and what is held of it; `None` when there is no such session.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn snapshot(&self, key: SessionKey) -> Result<Option<SessionSnapshot>, StoreError> {
        let overlay = self.shared().shelf().overlay(key);
        let stored = self.shared().readers.spawn(move |connection| reads::snapshot(connection, key)).await;
        match stored {
            // A session of the shelf alone needs no database to be shown.
            Err(_) if overlay.created.is_some() => Ok(record::lay_over(None, overlay)),
            stored => Ok(record::lay_over(stored?, overlay)),
        }
    }

    /// A page of a session's messages with their states: at most `limit` after the row `after`, fewer where they are long;
    /// empty at the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn transcript(&self, key: SessionKey, after: RowId, limit: usize) -> Result<Vec<TranscriptMessage>, StoreError> {
        let shared = self.shared();
        let living = shared.directory.get(key).map(|handle| handle.cursor().row);
        let shelved = shared.shelf().all_messages(key, after, limit);
        let read = move |connection: &Connection| {
            let delivered_to = living.map_or_else(|| rows::cursor(connection, key).map(|cursor| cursor.row), Ok)?;
            Ok((reads::transcript(connection, key, delivered_to, after, limit)?, delivered_to))
        };
        let ((mut messages, more), delivered_to) = shared.readers.spawn(read).await?;
        if !more {
            let stored_to = messages.last().map_or(after, |message| message.row);
            let shelved = shelved.into_iter().filter(|(row, _)| *row > stored_to);
            let room = limit - messages.len();
            messages.extend(shelved.take(room).map(|(row, message)| record::of_shelf(row, message, row <= delivered_to)));
        }
        Ok(messages)
    }

    /// How many messages of a session the database holds, by its index alone.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn message_count(&self, key: SessionKey) -> Result<u64, StoreError> {
        self.shared().readers.spawn(move |connection| reads::message_count(connection, key)).await
    }

    /// Makes rejected messages pending again, each as a new row at the end of its session with its old UUID.
    ///
    /// # Errors
    /// When the store cannot be written now.
    ///
    /// # Cancel safety
    /// It may have been done.
    pub async fn retry_rejected(&self, rows: Vec<RowId>) -> Result<Retried, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared().inbox.push(Job::Change(Change::Retry { rows, reply })).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Deletes rejected messages; answers how many there were.
    ///
    /// # Errors
    /// When the store cannot be written now.
    ///
    /// # Cancel safety
    /// It may have been done.
    pub async fn drop_rejected(&self, rows: Vec<RowId>) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared().inbox.push(Job::Change(Change::Drop { rows, reply })).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Deletes sessions with everything in them, in short steps, and empties the log.
    ///
    /// # Errors
    /// When sessions are open or undelivered and that was not asked for (nothing is deleted then), or when the store
    /// cannot be written now (some may be deleted: it can be asked for again).
    ///
    /// # Cancel safety
    /// It goes on.
    pub async fn forget(&self, wish: ForgetWish) -> Result<Forgotten, ForgetError> {
        let (reply, answer) = oneshot::channel();
        self.shared().inbox.push(Job::Change(Change::Forget(Box::new(Forgetting::new(wish, reply))))).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes messages of an export that are not there yet.
    ///
    /// # Errors
    /// When the session has undelivered messages here, or the store cannot be written now.
    ///
    /// # Cancel safety
    /// It may have been done.
    pub async fn import(&self, session: ImportedSession) -> Result<Imported, ImportError> {
        let (reply, answer) = oneshot::channel();
        self.shared().inbox.push(Job::Change(Change::Import(Box::new(Import { session, reply })))).await;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// How the store is.
    #[must_use]
    pub fn health(&self) -> StoreHealth {
        self.shared().health().clone()
    }

    /// Takes over what can change while running (retention, limits, shelf); answers the keys that cannot.
    #[must_use]
    pub fn reconfigure(&self, settings: &StoreSettings) -> Vec<&'static str> {
        let shared = self.shared();
        let mut fixed = Vec::new();
        if settings.directory.canonicalize().ok().as_ref() != Some(&shared.files.directory) {
            fixed.push("store.directory");
        }
        if settings.durability != shared.durability {
            fixed.push("store.durability");
        }
        shared.limits.set(settings);
        shared.inbox.poke();
        fixed
    }

    /// Without `manager_api.url`: retention treats every message as delivered.
    pub fn treat_all_as_delivered(&self, yes: bool) {
        self.shared().limits.set_all_delivered(yes);
    }

    /// Resolves when the writer has gone round its loop, `false` when it is gone: food for the watchdog.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn heartbeat(&self) -> bool {
        self.shared().inbox.heartbeat().await.is_ok()
    }

    /// Resolves when everything that was handed over before stands in the database or on the shelf, and the mailbox
    /// ([`Self::arrivals`]) tells of it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn caught_up(&self) {
        let (reply, answer) = oneshot::channel();
        // Jobs keep their order: one that asks for nothing is answered when those before it are done.
        self.shared().inbox.push(Job::Adopt { found: Vec::new(), reply }).await;
        let _ = answer.await;
    }

    /// Writes what is queued, tries the shelf once more, checkpoints and ends the writer. Later writes are refused.
    pub async fn close(self) -> CloseReport {
        self.shared().inbox.close();
        let writer = self.owner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return CloseReport::default() };
        let joined = tokio::task::spawn_blocking(move || writer.join().unwrap_or_default()).await;
        joined.unwrap_or_default()
    }
}
