//! Changes to the history as requests and answers: what the command line asks, and what the one writer does.
//!
//! Promises: the same request does the same through the daemon's status socket and, without a daemon, in the process of
//! the command line, which then holds the instance lock.
//! Refuses: requests it does not know.
//! Called by `observe::control` (in the daemon) and `history_command`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::backup_task::BackupRequests;
use super::json::{HeldJson, MessageJson, SessionJson};
use super::restore;
use super::search::SearchIndex;
use super::search::index::ALL;
use super::wipe;
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::protocol::{MacAddress, SessionId};
use crate::store::{Checked, ForgetError, ForgetWish, ImportError, RowId, Store, StoreError};

/// The rows one request may name.
pub const ROWS: usize = 1000;
/// The longest request, in bytes.
pub const REQUEST_BYTES: usize = 8 << 20;

/// A request. Not with its name in a field: serde would hold the others as values, and what is kept as text loses its digits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Rejected messages are to be sent again.
    Retry {
        /// Their rows.
        rows: Vec<i64>,
    },
    /// Rejected messages are to be deleted.
    Drop {
        /// Their rows.
        rows: Vec<i64>,
    },
    /// A history is to be forgotten.
    Forget {
        /// This device's.
        mac: Option<String>,
        /// This session's.
        session_id: Option<String>,
        /// What is undelivered, too.
        including_undelivered: bool,
    },
    /// Messages of an export are to be written.
    Import {
        /// Their session.
        session: Box<SessionJson>,
        /// The messages.
        messages: Vec<MessageJson>,
        /// What the session held.
        held: Vec<HeldJson>,
    },
    /// The whole store is to be read, and salvaged when it is damaged.
    Check,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it is the store that cannot do it now.
    #[serde(default)]
    pub not_now: bool,
    /// Messages it was done with.
    #[serde(default)]
    pub messages: u64,
    /// Sessions it was done with.
    #[serde(default)]
    pub sessions: u64,
    /// Of the messages, undelivered or pending ones.
    #[serde(default)]
    pub undelivered: u64,
    /// Stores that were damaged, set aside and salvaged: one or none.
    #[serde(default)]
    pub salvaged: u64,
    /// Messages that cannot be sent again: their rows are damaged; or that a salvage could not carry over.
    #[serde(default)]
    pub damaged: u64,
    /// Messages that were not there, or (importing) were there already.
    #[serde(default)]
    pub passed_over: u64,
    /// Backup files deleted.
    #[serde(default)]
    pub backups: u64,
    /// Whether the write-ahead logs of the store and of the index were emptied.
    #[serde(default)]
    pub log_truncated: bool,
}

impl Answer {
    /// It was not done.
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    fn done() -> Self {
        Self { ok: true, ..Self::default() }
    }
}

/// Where the backups of sessions are, and who writes them.
#[derive(Clone)]
pub enum Backups {
    /// Nobody writes them, and they are here.
    Resting(PathBuf),
    /// A daemon does, where its settings say by now: it must not write one while they are deleted.
    Written(BackupRequests, watch::Receiver<Arc<Settings>>),
}

/// Does what is requested.
#[derive(Clone)]
pub struct Changes {
    /// The store.
    pub store: Store,
    /// The index of words.
    pub index: SearchIndex,
    /// The backups.
    pub backups: Backups,
    /// Somebody may speak in an open session: it is not forgotten.
    pub serving: bool,
}

impl Changes {
    /// Does it.
    pub async fn run(&self, request: Request) -> Answer {
        match request {
            Request::Retry { rows } | Request::Drop { rows } if rows.len() > ROWS => {
                Answer::refused(format!("more than {ROWS} rows in one request"))
            }
            Request::Retry { rows } => match self.store.retry_rejected(rows.into_iter().map(RowId).collect()).await {
                Ok(done) => Answer { messages: done.retried, damaged: done.damaged, passed_over: done.missing, ..Answer::done() },
                Err(error) => self.not_now(&error),
            },
            Request::Drop { rows } => {
                let first = rows.iter().min().copied().unwrap_or_default();
                let last = rows.iter().max().copied().unwrap_or_default();
                match self.store.drop_rejected(rows.into_iter().map(RowId).collect()).await {
                    // Not all of the index for each of many requests.
                    Ok(messages) => match self.tidy_index(first..=last).await {
                        Ok(_) => Answer { messages, ..Answer::done() },
                        Err(error) => Answer::refused(format!("deleted, but not yet from the search index: {error}")),
                    },
                    Err(error) => self.not_now(&error),
                }
            }
            Request::Forget { mac, session_id, including_undelivered } => {
                match (parsed(mac, |text| text.parse::<MacAddress>().ok()), parsed(session_id, |text| SessionId::new(text).ok()))
                {
                    (Ok(None), Ok(None)) | (Err(()), _) | (_, Err(())) => Answer::refused("forget needs a device or a session"),
                    (Ok(mac), Ok(session_id)) => self.forget(mac, session_id, including_undelivered).await,
                }
            }
            Request::Check => match self.store.check(!self.serving).await {
                Ok(Checked::Whole) => Answer::done(),
                Ok(Checked::Salvaged { messages, left_behind }) => {
                    Answer { salvaged: 1, messages, damaged: left_behind, ..Answer::done() }
                }
                Err(error) => self.not_now(&error),
            },
            Request::Import { session, messages, held } => {
                let session = match restore::session(&session, messages, held, wall_clock()) {
                    Ok(session) => session,
                    Err(error) => return Answer::refused(error.to_string()),
                };
                match self.store.import(session).await {
                    Ok(done) => Answer {
                        messages: done.messages,
                        undelivered: done.pending,
                        passed_over: done.known,
                        sessions: 1,
                        ..Answer::done()
                    },
                    Err(ImportError::Store(error)) => self.not_now(&error),
                    Err(error @ (ImportError::Busy | ImportError::Full { .. })) => Answer::refused(error.to_string()),
                }
            }
        }
    }

    /// The store cannot do it now: why, where, and what then.
    fn not_now(&self, error: &StoreError) -> Answer {
        let cause = match (error, self.store.health().failing) {
            (StoreError::Unavailable, Some(failing)) => failing.what,
            _ => error.to_string(),
        };
        let path = self.store.path().display();
        let error = format!("{path} cannot be changed now: {cause} (chat-historyd doctor tells what to mend; then ask again)");
        Answer { not_now: true, ..Answer::refused(error) }
    }

    /// Takes out of the index which of these rows left the store; answers whether its log was emptied.
    async fn tidy_index(&self, rows: RangeInclusive<i64>) -> Result<bool, String> {
        let index = self.index.clone();
        let tidied = tokio::task::spawn_blocking(move || index.reconcile(rows)).await;
        tidied.map_err(|failure| failure.to_string())?.map_err(|error| error.to_string())
    }

    async fn forget(&self, mac: Option<MacAddress>, session_id: Option<SessionId>, including_undelivered: bool) -> Answer {
        let wish = ForgetWish { mac, session_id: session_id.clone(), including_undelivered, including_open: !self.serving };
        let forgotten = match self.store.forget(wish).await {
            Ok(forgotten) => forgotten,
            Err(ForgetError::Store(error)) => return self.not_now(&error),
            Err(error @ (ForgetError::Open(_) | ForgetError::Undelivered(_))) => return Answer::refused(error.to_string()),
        };
        let index_log_emptied = match self.tidy_index(ALL).await {
            Ok(emptied) => emptied,
            Err(error) => {
                return Answer::refused(format!(
                    "the store forgot it, the search index and the backups did not: {error} (try again)"
                ));
            }
        };
        let delete = move |directory: &Path| wipe::delete_backups(directory, mac, session_id.as_ref());
        let backups = match self.backups.clone() {
            Backups::Written(writer, settings) => {
                let delete_there = move || {
                    let directory = settings.borrow().backup.directory.clone();
                    delete(&directory)
                };
                writer.between_backups(delete_there).await
            }
            Backups::Resting(directory) => tokio::task::spawn_blocking(move || delete(&directory))
                .await
                .unwrap_or_else(|failure| Err(std::io::Error::other(failure))),
        };
        let answer = Answer {
            messages: forgotten.messages,
            sessions: forgotten.sessions,
            undelivered: forgotten.undelivered,
            log_truncated: forgotten.log_truncated && index_log_emptied,
            ..Answer::done()
        };
        match backups {
            Ok(backups) => Answer { backups, ..answer },
            Err(error) => Answer {
                ok: false,
                error: Some(format!("the store forgot it, but its backups cannot be deleted: {error}")),
                ..answer
            },
        }
    }
}

/// What may be left out, parsed.
fn parsed<T>(text: Option<String>, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, ()> {
    text.map_or(Ok(None), |text| parse(&text).map(Some).ok_or(()))
}
