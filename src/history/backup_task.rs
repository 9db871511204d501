//! Writes backups beside everything else: of a session that ended, and once more when its last message is through.
//! The store remembers which are due, so that none is missing for long after a full disk, or at all after a kill.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backup::{Backup, BackupError};
use crate::config::Settings;
use crate::observe::{Ended, Episode, Mention, Metrics};
use crate::store::{Backed, MessageState, RowId, SessionKey, Store, StoreError};

/// Sessions whose backup is to be written. Asking twice before it is written writes once: bounded by the sessions.
#[derive(Clone, Default)]
pub struct BackupRequests(Arc<Inner>);

#[derive(Default)]
struct Inner {
    sessions: Mutex<BTreeSet<SessionKey>>,
    asked: Notify,
    finishing: CancellationToken,
    /// Held while a backup is written.
    writing: tokio::sync::Mutex<()>,
}

impl BackupRequests {
    /// Asks for a session's backup.
    pub fn request(&self, session: SessionKey) {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session);
        self.0.asked.notify_one();
    }

    /// What was asked for until now is still written; then [`run`] ends.
    pub fn finish(&self) {
        self.0.finishing.cancel();
    }

    /// Does something with the files while no backup is written.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn between_backups<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let _writing = self.0.writing.lock().await;
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|failure| Err(std::io::Error::other(failure)))
    }

    fn take(&self) -> Option<SessionKey> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }
}

/// Messages read per page.
const PAGE: usize = 200;

/// How long it waits after a failure, the first time and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a backup was not written.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("the thread that writes backups died")]
    Thread,
}

/// Writes the backup of a session, page by page, and answers what it tells. A session that is gone by now needs none, and one
/// that goes on needs another at its next end.
async fn back_up(store: &Store, key: SessionKey, directory: PathBuf) -> Result<Option<Backed>, Failure> {
    let Some(session) = store.snapshot(key).await? else { return Ok(Some(Backed::Unwanted)) };
    let ended = session.ended;
    let mut backup = blocking(move || Backup::begin(&directory, &session)).await?;
    let (mut after, mut complete) = (RowId::default(), true);
    loop {
        let page = store.transcript(key, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.row;
        complete &= page.iter().all(|message| message.state != MessageState::Pending);
        backup = blocking(move || page.iter().try_for_each(|message| backup.message(message)).map(|()| backup)).await?;
    }
    blocking(move || backup.commit()).await?;
    Ok(ended.map(|ended| Backed::Up { ended, complete }))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BackupError> + Send + 'static) -> Result<T, Failure> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Failure::Thread)??)
}

/// Writes backups until [`BackupRequests::finish`]: those asked for, and from the start on, and again after each failure,
/// those that the store knows to be due.
pub async fn run(requests: BackupRequests, store: Store, settings: watch::Receiver<Arc<Settings>>, metrics: Arc<Metrics>) {
    let root = settings.borrow().backup.directory.clone();
    let _ = tokio::task::spawn_blocking(move || super::backup::remove_leftovers(&root)).await;
    let mut writer = BackupWriter {
        requests: &requests,
        store,
        settings,
        metrics,
        trouble: Episode::new(),
        make_up_at: Some(Instant::now()),
        pause: FIRST_PAUSE,
        after: SessionKey(i64::MIN),
        incomplete: false,
    };
    loop {
        while let Some(session) = requests.take() {
            if !writer.write(session).await && writer.make_up_at.is_none() {
                writer.postpone().await;
            }
        }
        if requests.0.finishing.is_cancelled() {
            return;
        }
        let at = writer.make_up_at;
        tokio::select! {
            () = requests.0.asked.notified() => {}
            () = requests.0.finishing.cancelled() => {}
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => writer.make_up().await,
        }
    }
}

struct BackupWriter<'r> {
    requests: &'r BackupRequests,
    store: Store,
    settings: watch::Receiver<Arc<Settings>>,
    metrics: Arc<Metrics>,
    trouble: Episode,
    /// When to look for a backup that is due, if any may be.
    make_up_at: Option<Instant>,
    pause: Duration,
    /// This far the store was looked through.
    after: SessionKey,
    /// Something failed since the look through the store began: another one is to follow.
    incomplete: bool,
}

impl BackupWriter<'_> {
    /// Writes one. `false`: it could not be written.
    async fn write(&mut self, session: SessionKey) -> bool {
        let backup = self.settings.borrow().backup.clone();
        let written = if backup.enabled {
            let _writing = self.requests.0.writing.lock().await;
            back_up(&self.store, session, backup.directory).await
        } else {
            Ok(Some(Backed::Unwanted))
        };
        match written {
            Ok(backed) => {
                self.metrics.backups_written.add(u64::from(backup.enabled));
                if let Some(backed) = backed {
                    self.store.note_backed(session, backed).await;
                }
                true
            }
            Err(failure) => {
                self.failed(&failure);
                false
            }
        }
    }

    /// The next one that is due; one that fails keeps the others waiting for the pause, not for ever.
    async fn make_up(&mut self) {
        match self.store.next_without_backup(self.after).await {
            Ok(Some(session)) => {
                self.after = session;
                self.make_up_at = Some(Instant::now());
                if !self.write(session).await {
                    self.postpone().await;
                }
            }
            Ok(None) => {
                self.after = SessionKey(i64::MIN);
                if std::mem::take(&mut self.incomplete) {
                    return self.postpone().await;
                }
                self.make_up_at = None;
                self.pause = FIRST_PAUSE;
                self.metrics.backups_due.set(0);
                if let Some(Ended { occurrences, lasted }) = self.trouble.ends(now()) {
                    info!(failures = occurrences, after = ?lasted, "backups can be written again, and what was missing is");
                }
            }
            Err(failure) => {
                self.failed(&failure.into());
                self.postpone().await;
            }
        }
    }

    async fn postpone(&mut self) {
        self.make_up_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if let Ok(due) = self.store.count_without_backup().await {
            self.metrics.backups_due.set(due);
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.incomplete = true;
        self.metrics.backup_errors.increment();
        match self.trouble.occurs(now()) {
            Mention::Began => warn!(%failure, "a backup cannot be written (the store keeps the session, and it is tried again)"),
            Mention::GoesOn { repeats, lasting } => {
                warn!(%failure, failures = repeats, lasting_seconds = lasting.as_secs(), "backups still cannot be written");
            }
            Mention::Silent => debug!(%failure, "a backup cannot be written"),
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
