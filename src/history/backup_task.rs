//! Writes backups beside everything else: of a session that ended, and once more when its last message is through.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backup::{Backup, BackupError};
use crate::config::Settings;
use crate::observe::{Ended, Episode, Mention, Metrics};
use crate::store::{RowId, SessionKey, Store, StoreError};

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

/// Writes the backup of a session, page by page. A session that is gone by now needs none.
async fn back_up(store: &Store, key: SessionKey, directory: PathBuf) -> Result<(), Failure> {
    let Some(session) = store.snapshot(key).await? else { return Ok(()) };
    let mut backup = blocking(move || Backup::begin(&directory, &session)).await?;
    let mut after = RowId::default();
    loop {
        let page = store.transcript(key, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.row;
        backup = blocking(move || page.iter().try_for_each(|message| backup.message(message)).map(|()| backup)).await?;
    }
    blocking(move || backup.commit()).await?;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BackupError> + Send + 'static) -> Result<T, Failure> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Failure::Thread)??)
}

/// Writes backups until [`BackupRequests::finish`].
pub async fn run(requests: BackupRequests, store: Store, settings: watch::Receiver<Arc<Settings>>, metrics: Arc<Metrics>) {
    let root = settings.borrow().backup.directory.clone();
    let _ = tokio::task::spawn_blocking(move || super::backup::remove_leftovers(&root)).await;
    let mut trouble = Episode::new();
    loop {
        while let Some(session) = requests.take() {
            let backup = settings.borrow().backup.clone();
            if !backup.enabled {
                continue;
            }
            let _writing = requests.0.writing.lock().await;
            match back_up(&store, session, backup.directory).await {
                Ok(()) => {
                    metrics.backups_written.increment();
                    if let Some(Ended { occurrences, lasted }) = trouble.ends(Instant::now()) {
                        info!(failures = occurrences, after = ?lasted, "backups can be written again");
                    }
                }
                Err(failure) => {
                    metrics.backup_errors.increment();
                    match trouble.occurs(Instant::now()) {
                        Mention::Began => warn!(%failure, "a backup cannot be written (the store keeps the session)"),
                        Mention::GoesOn { repeats, lasting } => {
                            warn!(%failure, failures = repeats, lasting_seconds = lasting.as_secs(), "backups still cannot be written");
                        }
                        Mention::Silent => debug!(%failure, "a backup cannot be written"),
                    }
                }
            }
        }
        tokio::select! {
            () = requests.0.asked.notified() => {}
            () = requests.0.finishing.cancelled() => {
                if requests.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                    return;
                }
            }
        }
    }
}
