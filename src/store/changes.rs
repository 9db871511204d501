//! Changes that people ask for: rejected messages tried again or deleted, sessions forgotten, an export read back.
//!
//! Promises: the writer thread does them, between groups and in short steps, so intake never waits for a long one; each
//! step is one transaction.
//! Refuses: to change anything while the store fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::agreement;
use super::checksum::{self, RowFields};
use super::error::StoreError;
use super::forget::{ForgetError, Forgetting, forget_step};
use super::group::in_transaction;
use super::rows::{MESSAGE_COLUMNS, StoredMessage, cached};
use super::session_handle::SessionHandle;
use super::sessions;
use super::shared::Shared;
use super::types::{RowId, SessionKey};
use super::writer::{Mode, NextIds, Writer, wall_clock};
use crate::protocol::SessionIdentity;

/// What became of rejected messages that were to be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// Pending again.
    pub retried: u64,
    /// Their rows fail their checksum: they can never be sent.
    pub damaged: u64,
    /// Not rejected, or gone.
    pub missing: u64,
}

/// A change on its way to the writer.
pub(super) enum Change {
    Retry { rows: Vec<RowId>, reply: oneshot::Sender<Result<Retried, StoreError>> },
    Drop { rows: Vec<RowId>, reply: oneshot::Sender<Result<u64, StoreError>> },
    Forget(Box<Forgetting>),
    Import(Box<super::import::Import>),
}

impl Change {
    pub(super) fn refuse(self, error: StoreError) {
        match self {
            Self::Retry { reply, .. } => drop(reply.send(Err(error))),
            Self::Drop { reply, .. } => drop(reply.send(Err(error))),
            Self::Forget(forgetting) => drop(forgetting.reply.send(Err(ForgetError::Store(error)))),
            Self::Import(import) => import.refuse(error),
        }
    }

    fn not_before(&self) -> Option<Instant> {
        if let Self::Forget(forgetting) = self { Some(forgetting.not_before) } else { None }
    }
}

/// How far a change is after a step.
enum Step {
    Done,
    More(Change),
}

impl Writer {
    /// When the next step of a change is due; `None`: there is none.
    pub(super) fn change_due(&self) -> Option<Instant> {
        self.changes.front().map(|change| change.not_before().unwrap_or_else(Instant::now))
    }

    /// One step of the oldest change.
    pub(super) fn change_step(&mut self) {
        if self.change_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let Mode::Running(connection) = &self.mode else {
            self.changes.drain(..).for_each(|change| change.refuse(StoreError::Unavailable));
            return;
        };
        let Some(change) = self.changes.pop_front() else { return };
        match step(&self.shared, connection, &mut self.next, change) {
            Ok(Step::Done) => {}
            Ok(Step::More(change)) => self.changes.push_front(change),
            Err(Failed { change, error }) => {
                self.begin_episode("change", &error);
                if let Some(change) = change {
                    change.refuse(StoreError::database("change", &self.shared.files.database)(error));
                }
            }
        }
    }
}

/// A step failed; whoever waits for the change is to be told.
struct Failed {
    change: Option<Change>,
    error: rusqlite::Error,
}

fn step(shared: &Shared, connection: &Connection, next: &mut NextIds, change: Change) -> Result<Step, Failed> {
    match change {
        Change::Retry { rows, reply } => match retry(shared, connection, next, &rows) {
            Ok(retried) => drop(reply.send(Ok(retried))),
            Err(error) => return Err(Failed { change: Some(Change::Retry { rows, reply }), error }),
        },
        Change::Drop { rows, reply } => match drop_rejected(connection, *next, &rows) {
            Ok(dropped) => drop(reply.send(Ok(dropped))),
            Err(error) => return Err(Failed { change: Some(Change::Drop { rows, reply }), error }),
        },
        Change::Import(import) => {
            if let Err((error, import)) = super::import::import(shared, connection, next, import) {
                return Err(Failed { change: Some(Change::Import(import)), error });
            }
        }
        Change::Forget(mut forgetting) => {
            return match forget_step(shared, connection, *next, &mut forgetting) {
                Ok(None) => Ok(Step::More(Change::Forget(forgetting))),
                Ok(Some(outcome)) => {
                    drop(forgetting.reply.send(outcome));
                    Ok(Step::Done)
                }
                Err(error) => Err(Failed { change: Some(Change::Forget(forgetting)), error }),
            };
        }
    }
    Ok(Step::Done)
}

/// Handles that a change needs, and what it brings each: messages to be sent.
#[derive(Default)]
pub(super) struct Touched {
    sessions: HashMap<SessionKey, (Arc<SessionHandle>, u64, RowId, bool)>,
    is_booked: bool,
}

impl Touched {
    /// The handle of a session, made before its rows change.
    pub(super) fn handle(
        &mut self,
        shared: &Shared,
        connection: &Connection,
        key: SessionKey,
        identity: &SessionIdentity,
        ended: bool,
    ) -> rusqlite::Result<Arc<SessionHandle>> {
        if let Some((handle, ..)) = self.sessions.get(&key) {
            return Ok(Arc::clone(handle));
        }
        let handle = sessions::handle(&shared.directory, connection, key, identity)?;
        self.sessions.insert(key, (Arc::clone(&handle), 0, RowId(0), ended));
        Ok(handle)
    }

    /// A row of the session was written.
    pub(super) fn wrote(&mut self, key: SessionKey, row: RowId, sendable: bool) {
        if let Some((_, count, newest, _)) = self.sessions.get_mut(&key) {
            *count += u64::from(sendable);
            *newest = (*newest).max(row);
        }
    }

    /// Puts the new messages into the books; before the commit, for whoever sends one must find it there.
    pub(super) fn book(&mut self, shared: &Shared) {
        self.is_booked = true;
        for (handle, count, ..) in self.sessions.values() {
            handle.add_pending(*count);
            shared.metrics.pending.add(*count);
        }
    }

    /// Takes them out again when there was no commit; passes the outcome on.
    pub(super) fn committed<T>(&self, shared: &Shared, outcome: rusqlite::Result<T>) -> rusqlite::Result<T> {
        if outcome.is_err() && self.is_booked {
            for (handle, count, ..) in self.sessions.values() {
                handle.remove_pending(*count);
                shared.metrics.pending.subtract(*count);
            }
        }
        outcome
    }

    /// Tells the uploader; after the commit.
    pub(super) fn announce(self, shared: &Shared) {
        let news = self.sessions.into_values().filter(|(_, _, newest, _)| newest.0 > 0).map(|(handle, count, newest, ended)| {
            shared.metrics.received.add(count);
            handle.note_stored(newest);
            (handle, count, ended.then_some(true))
        });
        shared.arrivals.note(news.collect::<Vec<_>>(), false);
    }
}

/// A rejected message becomes a new row at the end of its session: the cursor has passed the old one.
fn retry(shared: &Shared, connection: &Connection, next: &mut NextIds, wished: &[RowId]) -> rusqlite::Result<Retried> {
    let mut done = Retried::default();
    let mut touched = Touched::default();
    let (now, mut ids) = (wall_clock(), *next);
    let outcome = in_transaction(connection, || {
        for row in wished {
            let Some((key, identity, ended)) = rejected_session(connection, *row)? else {
                done.missing += 1;
                continue;
            };
            let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ?1");
            let mut statement = cached(connection, &sql)?;
            let mut found = statement.query([row.0])?;
            let Some(found) = found.next()? else {
                done.missing += 1;
                continue;
            };
            let Some(fields) = StoredMessage::of(found)?.sound else {
                done.damaged += 1;
                continue;
            };
            touched.handle(shared, connection, key, &identity, ended)?;
            // Taken in anew: else a device's time to be registered would be over at once.
            let fields = RowFields { id: ids.row, recorded_ms: now.0, ..fields };
            insert(connection, &fields)?;
            touched.wrote(key, RowId(ids.row), true);
            ids.row += 1;
            done.retried += 1;
            cached(connection, "DELETE FROM messages WHERE id = ?1")?.execute([row.0])?;
            cached(connection, "DELETE FROM rejected WHERE row = ?1")?.execute([row.0])?;
        }
        ids.save(connection)?;
        touched.book(shared);
        Ok(())
    });
    // Also when it failed: a commit in doubt may have left rows with these ids.
    *next = ids;
    touched.committed(shared, outcome)?;
    touched.announce(shared);
    Ok(done)
}

/// Writes a message row with its checksum.
pub(super) fn insert(connection: &Connection, fields: &RowFields<'_>) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO messages (id, session, uuid, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        fields.id,
        fields.session,
        fields.uuid,
        fields.chat_type,
        fields.flags,
        fields.time_ms,
        fields.recorded_ms,
        fields.content,
        fields.event_id,
        fields.extra,
        fields.audio,
        checksum::of_message(fields),
    ])?;
    Ok(())
}

/// The session of a rejected message, and whether it has ended.
fn rejected_session(connection: &Connection, row: RowId) -> rusqlite::Result<Option<(SessionKey, SessionIdentity, bool)>> {
    let found: Option<(i64, String, String, bool)> = cached(
        connection,
        "SELECT s.id, s.mac, s.session_id, s.ended_ms IS NOT NULL FROM rejected r JOIN sessions s ON s.id = r.session WHERE r.row = ?1",
    )?
    .query_row([row.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
    .optional()?;
    let known = |(key, mac, id, ended): (i64, String, String, bool)| {
        let key = SessionKey(key);
        agreement::identity(connection, key, &mac, &id).map(|identity| (key, identity, ended))
    };
    found.map(known).transpose()
}

fn drop_rejected(connection: &Connection, next: NextIds, wished: &[RowId]) -> rusqlite::Result<u64> {
    let mut dropped = 0;
    in_transaction(connection, || {
        for row in wished {
            if cached(connection, "DELETE FROM rejected WHERE row = ?1")?.execute([row.0])? > 0 {
                cached(connection, "DELETE FROM messages WHERE id = ?1")?.execute([row.0])?;
                dropped += 1;
            }
        }
        next.save(connection)
    })?;
    Ok(dropped)
}
