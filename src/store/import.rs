//! Reads an exported session back into the store.
//!
//! Promises: reading the same export twice changes nothing (messages are known by their UUID); order, times, texts and
//! states are those of the export; what was undelivered is pending again.
//! Refuses: a session with undelivered messages here, for the cursor could not tell them from imported ones; and more than
//! there is room for, for at the limit of the store history leaves it and then nothing is taken in.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::changes::{Touched, insert};
use super::checksum::RowFields;
use super::error::StoreError;
use super::group::in_transaction;
use super::housekeeping::used_bytes;
use super::retention;
use super::rows::{self, cached};
use super::schema::flags;
use super::sessions;
use super::shared::Shared;
use super::types::{Cursor, NewMessage, RowId, SessionKey};
use super::writer::{NextIds, wall_clock};
use crate::protocol::{SessionIdentity, UnixMillis};

/// A session to be imported: its row, and some of its messages in order.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedSession {
    /// Whose it is.
    pub identity: SessionIdentity,
    /// The agent.
    pub agent_id: Option<String>,
    /// The producer's name and version.
    pub client: Option<String>,
    /// When it was first seen.
    pub started: UnixMillis,
    /// When it ended; now, when the export did not know an end.
    pub ended: Option<UnixMillis>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Lines that its producer dropped.
    pub producer_dropped: u64,
    /// The messages.
    pub messages: Vec<ImportedMessage>,
}

/// A message to be imported.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedMessage {
    /// The message.
    pub message: NewMessage,
    /// What became of it.
    pub state: ImportedState,
}

/// What became of an imported message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportedState {
    /// To be delivered from here.
    Pending,
    /// The server has it, or it is kept here only.
    Done,
    /// Never to be delivered: why, and the server's last word.
    Rejected(String, Option<String>),
}

/// What became of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Messages written.
    pub messages: u64,
    /// Of these, to be delivered.
    pub pending: u64,
    /// Messages that were there already.
    pub known: u64,
}

/// Why a session was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It has undelivered messages here.
    #[error("the session has undelivered messages here (import it when they are delivered)")]
    Busy,
    /// It would come too near to the limit of the store.
    #[error(
        "there is no room for it: {} of {} MiB (store.max_bytes) are used, and an import leaves a sixteenth to what is said (raise \
         store.max_bytes, or import less)", .used_bytes >> 20, .max_bytes >> 20
    )]
    Full {
        /// Bytes of the store by now.
        used_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
}

/// An import on its way to the writer.
pub(super) struct Import {
    pub(super) session: ImportedSession,
    pub(super) reply: oneshot::Sender<Result<Imported, ImportError>>,
}

impl Import {
    pub(super) fn refuse(self, error: StoreError) {
        drop(self.reply.send(Err(ImportError::Store(error))));
    }
}

/// Does it; on failure gives it back.
pub(super) fn import(
    shared: &Shared,
    connection: &Connection,
    next: &mut NextIds,
    import: Box<Import>,
) -> Result<(), (rusqlite::Error, Box<Import>)> {
    match write(shared, connection, next, &import.session) {
        Ok(imported) => {
            drop(import.reply.send(imported));
            Ok(())
        }
        Err(error) => Err((error, import)),
    }
}

fn write(
    shared: &Shared,
    connection: &Connection,
    next: &mut NextIds,
    session: &ImportedSession,
) -> rusqlite::Result<Result<Imported, ImportError>> {
    let mut done = Imported::default();
    let mut ids = *next;
    let mut touched = Touched::default();
    let mut refusal = None;
    let mut advanced = None;
    let outcome = in_transaction(connection, || {
        let stored = rows::session_by_identity(connection, &session.identity)?;
        let is_new = stored.is_none();
        let key = match stored {
            Some(row) => row.key,
            None => create(connection, sessions::new_handle(&shared.directory, &mut ids, &session.identity).key, session)?,
        };
        let known = uuids(connection, key)?;
        let (new, old): (Vec<_>, Vec<_>) = session.messages.iter().partition(|one| !known.contains(&one.message.uuid));
        done.known = old.len() as u64;
        let handle = touched.handle(shared, connection, key, &session.identity, true)?;
        if new.is_empty() {
            return Ok(());
        }
        // Rows behind the cursor can only be imported as delivered when nothing before them is undelivered.
        if handle.pending() > 0 && new.iter().any(|one| one.message.sendable && one.state != ImportedState::Pending) {
            refusal = Some(ImportError::Busy);
            return Ok(());
        }
        let (used_bytes, max_bytes) = (used_bytes(shared, connection)?, shared.limits.max_bytes());
        let more: u64 = new.iter().map(|one| weight(&one.message)).sum();
        if used_bytes + more > max_bytes - max_bytes / 16 {
            refusal = Some(ImportError::Full { used_bytes, max_bytes });
            // Made for nothing.
            return if is_new { super::forget::remove_session(connection, key) } else { Ok(()) };
        }
        let mut behind = handle.pending() == 0;
        let before = handle.cursor();
        let mut cursor = before;
        for one in new {
            let row = RowId(ids.row);
            ids.row += 1;
            behind &= one.state != ImportedState::Pending;
            // Behind something undelivered the cursor cannot say that a row is done: it is kept and not sent.
            let kept = !behind && one.state == ImportedState::Done;
            put(connection, key, row, &one.message, kept)?;
            if let (true, ImportedState::Rejected(reason, answer)) = (behind, &one.state) {
                let now = wall_clock();
                cached(
                    connection,
                    "INSERT INTO rejected (row, session, reason, answer, rejected_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![row.0, key.0, reason, answer, now.0])?;
            }
            if behind {
                // The report time is that of rows that were reported: a salvage believes no other.
                let reported = one.message.sendable && one.state == ImportedState::Done;
                let last_report = if reported { cursor.last_report.max(one.message.time) } else { cursor.last_report };
                cursor = Cursor { row, offset: 0, last_report };
            }
            let sendable = !behind && !kept && one.message.sendable;
            touched.wrote(key, row, sendable);
            done.messages += 1;
            done.pending += u64::from(sendable);
        }
        // Not the handle's: the uploader may have moved that meanwhile.
        if cursor != before {
            cached(
                connection,
                "INSERT INTO cursors (session, row, offset, last_report_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (session)
                 DO UPDATE SET row = excluded.row, offset = excluded.offset, last_report_ms = excluded.last_report_ms",
            )?
            .execute(params![key.0, cursor.row.0, 0, cursor.last_report.0])?;
            advanced = Some((handle, cursor));
        }
        ids.save(connection)?;
        retention::note_out_of_order(connection)?;
        touched.book(shared);
        Ok(())
    });
    // Also when it failed: a commit in doubt may have left rows with these ids.
    *next = ids;
    touched.committed(shared, outcome)?;
    if let Some((handle, cursor)) = &advanced {
        handle.advance(*cursor, 0);
    }
    if let Some(refusal) = refusal {
        return Ok(Err(refusal));
    }
    touched.announce(shared);
    Ok(Ok(done))
}

fn create(connection: &Connection, key: SessionKey, session: &ImportedSession) -> rusqlite::Result<SessionKey> {
    let (ended, reason) = match session.ended {
        Some(ended) => (ended, session.end_reason.as_deref()),
        None => (wall_clock(), Some("imported")),
    };
    cached(
        connection,
        "INSERT INTO sessions (id, mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        key.0,
        session.identity.mac.to_string(),
        session.identity.session_id.as_str(),
        session.agent_id,
        session.client,
        session.started.0,
        ended.0,
        reason,
        i64::try_from(session.producer_dropped).unwrap_or(i64::MAX),
    ])?;
    Ok(key)
}

/// The bytes that a message takes in the store, about: its row and its place in the index.
fn weight(message: &NewMessage) -> u64 {
    const ROW_BYTES: usize = 128;
    let extra = message.extra.as_ref().map_or(0, String::len);
    (ROW_BYTES + message.content.len() + extra + message.audio.as_ref().map_or(0, Vec::len)) as u64
}

fn put(connection: &Connection, key: SessionKey, row: RowId, message: &NewMessage, kept: bool) -> rusqlite::Result<()> {
    let bit = |set: bool, flag: i64| if set { flag } else { 0 };
    insert(
        connection,
        &RowFields {
            id: row.0,
            session: key.0,
            uuid: message.uuid.as_bytes(),
            chat_type: i64::from(message.chat_type.code()),
            flags: bit(message.interrupted, flags::INTERRUPTED)
                | bit(message.uncommitted, flags::UNCOMMITTED)
                | bit(kept || !message.sendable, flags::KEEP_ONLY),
            time_ms: message.time.0,
            recorded_ms: message.recorded.0,
            content: &message.content,
            event_id: message.event_id.as_deref(),
            extra: message.extra.as_deref(),
            audio: message.audio.as_deref(),
        },
    )
}

fn uuids(connection: &Connection, key: SessionKey) -> rusqlite::Result<HashSet<Uuid>> {
    let mut statement = cached(connection, "SELECT uuid FROM messages INDEXED BY messages_by_session WHERE session = ?1")?;
    let mut found = statement.query([key.0])?;
    let mut uuids = HashSet::new();
    while let Some(row) = found.next().optional()?.flatten() {
        uuids.extend(row.get_ref(0)?.as_blob().ok().and_then(|bytes| Uuid::from_slice(bytes).ok()));
    }
    Ok(uuids)
}
