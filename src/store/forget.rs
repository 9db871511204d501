//! Forgets sessions: in short steps, overwritten in the file (`secure_delete`), and out of the log.
//!
//! Promises: nothing undelivered and nothing still going on is deleted by the way; who speaks in a forgotten session
//! again gets it anew. A kill in the middle leaves a part, and the same wish does the rest.

use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::error::StoreError;
use super::group::in_transaction;
use super::open;
use super::rows::{self, cached};
use super::schema::flags;
use super::shared::Shared;
use super::types::{RowId, SessionKey};
use super::writer::NextIds;
use crate::observe::Skip;
use crate::protocol::{MacAddress, SessionId};

/// Rows deleted in one step.
const STEP_ROWS: usize = 500;
/// How often the log is tried to be truncated while somebody reads, and how long between two tries.
const TRUNCATE_TRIES: u32 = 100;
const TRUNCATE_PAUSE: Duration = Duration::from_millis(50);

/// Whose history is to be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForgetWish {
    /// This device's.
    pub mac: Option<MacAddress>,
    /// This session's.
    pub session_id: Option<SessionId>,
    /// What the Manager API does not have yet, too.
    pub including_undelivered: bool,
    /// Sessions that have not ended, too: only right when nobody can speak in them.
    pub including_open: bool,
}

/// What was forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Sessions.
    pub sessions: u64,
    /// Their messages.
    pub messages: u64,
    /// How many of these were undelivered, held transcripts included.
    pub undelivered: u64,
    /// Whether the write-ahead log was emptied, too.
    pub log_truncated: bool,
}

/// Why nothing was forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Sessions are still open.
    #[error(
        "{0} of these sessions are still open (they end with session_end or after session.idle_timeout): nothing was deleted"
    )]
    Open(u64),
    /// The Manager API does not have everything yet.
    #[error("{0} of these messages are undelivered: nothing was deleted (--including-undelivered deletes them, too)")]
    Undelivered(u64),
}

/// A history being forgotten.
pub(super) struct Forgetting {
    wish: ForgetWish,
    pub(super) reply: oneshot::Sender<Result<Forgotten, ForgetError>>,
    /// Sessions still to go; `None` before the first step.
    left: Option<Vec<SessionKey>>,
    up_to: RowId,
    done: Forgotten,
    truncate_tries: u32,
    pub(super) not_before: Instant,
}

impl Forgetting {
    pub(super) fn new(wish: ForgetWish, reply: oneshot::Sender<Result<Forgotten, ForgetError>>) -> Self {
        Self {
            wish,
            reply,
            left: None,
            up_to: RowId(0),
            done: Forgotten::default(),
            truncate_tries: 0,
            not_before: Instant::now(),
        }
    }
}

pub(super) type Ended = Option<Result<Forgotten, ForgetError>>;

/// The next step; its outcome when that was the last.
pub(super) fn forget_step(
    shared: &Shared,
    connection: &Connection,
    next: NextIds,
    work: &mut Forgetting,
) -> rusqlite::Result<Ended> {
    let Some(left) = &mut work.left else { return begin_to_forget(shared, connection, next, work) };
    if let Some(key) = left.last().copied() {
        let (mut rows, mut cursor, mut held) = (Vec::new(), RowId(0), 0);
        in_transaction(connection, || {
            cursor = rows::cursor(connection, key)?.row;
            rows = oldest_rows(connection, key, work.up_to)?;
            if let Some((last, _)) = rows.last() {
                cached(connection, "DELETE FROM messages INDEXED BY messages_by_session WHERE session = ?1 AND id <= ?2")?
                    .execute(params![key.0, last.0])?;
            }
            if rows.len() < STEP_ROWS {
                held = delete_session(connection, key, work.up_to)?;
            }
            next.save(connection)
        })?;
        // Only now: what a step that failed could not delete stays in the books, and is still to be delivered.
        let gone = rows.len() < STEP_ROWS;
        let up_to = rows.last().filter(|_| !gone).map_or(work.up_to, |(last, _)| *last);
        let sendable: Vec<RowId> = rows.iter().filter(|(_, sendable)| *sendable).map(|(row, _)| *row).collect();
        let undelivered = match shared.directory.get(key) {
            Some(handle) => {
                if gone {
                    shared.directory.note_forgotten(&handle);
                }
                let undelivered = handle.forget(up_to, &sendable);
                shared.arrivals.note_forgotten(&handle);
                undelivered
            }
            None => sendable.iter().filter(|row| **row > cursor).count() as u64,
        };
        shared.metrics.pending.subtract(undelivered);
        shared.metrics.held.subtract(held);
        shared.metrics.skipped.add(Skip::Forgotten, undelivered + held);
        shared.metrics.messages_pruned.add(rows.len() as u64);
        work.done.undelivered += undelivered + held;
        work.done.messages += rows.len() as u64;
        if gone {
            left.pop();
            work.done.sessions += 1;
        }
        return Ok(None);
    }
    // Intake must not wait for whoever reads: when the log cannot be emptied at once, it is tried again later.
    connection.busy_timeout(Duration::ZERO)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    connection.busy_timeout(open::BUSY)?;
    let busy = busy?;
    work.truncate_tries += 1;
    work.done.log_truncated = busy == 0;
    if busy != 0 && work.truncate_tries < TRUNCATE_TRIES {
        work.not_before = Instant::now() + TRUNCATE_PAUSE;
        return Ok(None);
    }
    Ok(Some(Ok(work.done.clone())))
}

fn begin_to_forget(shared: &Shared, connection: &Connection, next: NextIds, work: &mut Forgetting) -> rusqlite::Result<Ended> {
    let (mac, id) = (work.wish.mac.map(|mac| mac.to_string()), work.wish.session_id.as_ref().map(SessionId::as_str));
    let found: Vec<(SessionKey, bool)> = cached(
        connection,
        "SELECT id, ended_ms IS NULL FROM sessions WHERE (?1 IS NULL OR mac = ?1) AND (?2 IS NULL OR session_id = ?2)",
    )?
    .query_map(params![mac, id], |row| Ok((SessionKey(row.get(0)?), row.get(1)?)))?
    .collect::<rusqlite::Result<_>>()?;
    let open = found.iter().filter(|(_, open)| *open).count() as u64;
    if open > 0 && !work.wish.including_open {
        return Ok(Some(Err(ForgetError::Open(open))));
    }
    let mut undelivered = 0;
    for (key, _) in &found {
        let held: i64 = cached(connection, "SELECT count(*) FROM held INDEXED BY held_by_session WHERE session = ?1")?
            .query_row([key.0], |row| row.get(0))?;
        let pending = match shared.directory.get(*key) {
            Some(handle) => handle.pending(),
            None => rows::count_after(connection, *key, rows::cursor(connection, *key)?.row)?,
        };
        undelivered += pending + u64::try_from(held).unwrap_or(0);
    }
    if undelivered > 0 && !work.wish.including_undelivered {
        return Ok(Some(Err(ForgetError::Undelivered(undelivered))));
    }
    work.up_to = RowId(next.row - 1);
    if let (Some(mac), None) = (mac, id) {
        cached(connection, "DELETE FROM waiting_devices WHERE mac = ?1")?.execute([mac])?;
    }
    work.left = Some(found.into_iter().map(|(key, _)| key).collect());
    Ok(None)
}

/// The oldest rows of a session, as many as one step takes, and whether each is to be sent.
fn oldest_rows(connection: &Connection, key: SessionKey, up_to: RowId) -> rusqlite::Result<Vec<(RowId, bool)>> {
    cached(
        connection,
        "SELECT id, flags FROM messages INDEXED BY messages_by_session WHERE session = ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
    )?
    .query_map(params![key.0, up_to.0, i64::try_from(STEP_ROWS).unwrap_or(i64::MAX)], |row| {
        Ok((RowId(row.get(0)?), row.get::<_, i64>(1)? & flags::KEEP_ONLY == 0))
    })?
    .collect()
}

/// A session that should not be there, with everything in it.
pub(super) fn remove_session(connection: &Connection, key: SessionKey) -> rusqlite::Result<()> {
    cached(connection, "DELETE FROM messages INDEXED BY messages_by_session WHERE session = ?1")?.execute([key.0])?;
    delete_session(connection, key, RowId(i64::MAX)).map(|_| ())
}

/// Everything of a session but its messages; the session itself unless something new was said in it. Answers how many
/// transcripts it held.
fn delete_session(connection: &Connection, key: SessionKey, up_to: RowId) -> rusqlite::Result<u64> {
    cached(connection, "DELETE FROM rejected WHERE session = ?1 AND row <= ?2")?.execute([key.0, up_to.0])?;
    let held = cached(connection, "DELETE FROM held WHERE session = ?1 AND id <= ?2")?.execute([key.0, up_to.0])?;
    if rows::newest(connection, key)? > up_to {
        // How much of a message had been sent was of one that is gone.
        cached(connection, "UPDATE cursors SET offset = 0 WHERE session = ?1 AND row < ?2")?.execute([key.0, up_to.0])?;
        return Ok(held as u64);
    }
    cached(connection, "DELETE FROM streams WHERE session = ?1")?.execute([key.0])?;
    super::backups_due::forget(connection, key)?;
    cached(connection, "DELETE FROM cursors WHERE session = ?1")?.execute([key.0])?;
    cached(connection, "DELETE FROM sessions WHERE id = ?1")?.execute([key.0])?;
    Ok(held as u64)
}
