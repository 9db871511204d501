//! What stands in two places of the database says the same in both. SQLite compares nothing when it reads, and one wrong bit
//! in a cursor, in the row of a session or in an index would hide messages from delivery, or send them to another device,
//! without a word. What does not agree is damage, and a salvage decides what is to be believed. Of a cursor no salvage knows
//! more: it is dropped at the start, and its session sent again.
//!
//! At a start and before a backlog is sent one entry of an index is looked at for each cursor and each session, never all
//! messages; everything is on request.

use rusqlite::{Connection, OptionalExtension};

use super::open::damage;
use super::rows::{self, cached};
use super::types::{RowId, SessionKey};
use crate::protocol::SessionIdentity;

/// The sessions that the index of messages knows and that have no row: what is said in them is shown to nobody.
const STRAYS: &str = "
WITH RECURSIVE speaking(key) AS (
  SELECT min(session) FROM messages INDEXED BY messages_by_session
  UNION ALL
  SELECT (SELECT min(m.session) FROM messages m INDEXED BY messages_by_session WHERE m.session > speaking.key)
  FROM speaking WHERE speaking.key IS NOT NULL)
SELECT key FROM speaking WHERE key IS NOT NULL AND key NOT IN (SELECT id FROM sessions)
";

/// A cursor names a row of its own session, or one that was there once; ids are given out once and in order. These do not.
const WRONG_CURSORS: &str = "
SELECT c.session FROM cursors c
WHERE c.row > max(coalesce((SELECT max(id) FROM messages), 0), coalesce((SELECT value FROM counters WHERE name = 'next_row'), 0))
OR (NOT EXISTS (SELECT 1 FROM messages m INDEXED BY messages_by_session WHERE m.session = c.session AND m.id = c.row)
    AND EXISTS (SELECT 1 FROM messages m NOT INDEXED WHERE m.id = c.row))
";

/// What must be known before anything of a backlog is sent.
///
/// # Errors
/// When something does not agree.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    // In one state of it.
    let _state = connection.unchecked_transaction()?;
    let strays: Vec<i64> = connection.prepare(STRAYS)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut without_session = 0;
    for key in strays {
        without_session += stray(connection, SessionKey(key))?;
    }
    if without_session > 0 {
        // No salvage could tell whose they are. An older daemon left such when a session was forgotten and read back.
        tracing::warn!(
            messages = without_session,
            "messages belong to no session: they are not delivered (chat-historyd doctor)"
        );
    }
    Ok(())
}

/// Drops the cursors that cannot be: what they pass may never have been sent. Answers how many.
pub(super) fn drop_wrong_cursors(connection: &Connection) -> rusqlite::Result<u64> {
    let wrong = wrong_cursors(connection)?;
    for session in &wrong {
        connection.execute("DELETE FROM cursors WHERE session = ?1", [session])?;
    }
    Ok(wrong.len() as u64)
}

fn wrong_cursors(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    connection.prepare(WRONG_CURSORS)?.query_map([], |row| row.get(0))?.collect()
}

/// The same, and all cursors, and of every session its identity and what it holds back.
///
/// # Errors
/// When something does not agree, or a checksum fails.
pub(super) fn check_all(connection: &Connection) -> rusqlite::Result<()> {
    check(connection)?;
    if !wrong_cursors(connection)?.is_empty() {
        return Err(damage("a cursor names no message of its session"));
    }
    let mut sessions = connection.prepare("SELECT id, mac, session_id FROM sessions NOT INDEXED")?;
    let mut sessions = sessions.query([])?;
    while let Some(row) = sessions.next()? {
        identity(connection, SessionKey(row.get(0)?), &row.get::<_, String>(1)?, &row.get::<_, String>(2)?)?;
    }
    let mut holding = connection.prepare("SELECT DISTINCT session FROM held NOT INDEXED")?;
    let mut holding = holding.query([])?;
    while let Some(row) = holding.next()? {
        rows::held(connection, SessionKey(row.get(0)?))?;
    }
    Ok(())
}

/// How many messages stand under a session without a row.
///
/// # Errors
/// When the session still stands in its index, or the messages stand elsewhere in their table: a salvage finds that.
fn stray(connection: &Connection, key: SessionKey) -> rusqlite::Result<u64> {
    let in_its_index: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sessions INDEXED BY sqlite_autoindex_sessions_1 WHERE id = ?1)",
        [key.0],
        |row| row.get(0),
    )?;
    let first = rows::first_after(connection, key, RowId(i64::MIN))?.unwrap_or_default();
    let in_the_table: Option<i64> = cached(connection, "SELECT session FROM messages NOT INDEXED WHERE id = ?1")?
        .query_row([first.0], |row| row.get(0))
        .optional()?;
    if in_its_index || in_the_table != Some(key.0) {
        return Err(damage("there are messages without a session"));
    }
    let count: i64 = cached(connection, "SELECT count(*) FROM messages INDEXED BY messages_by_session WHERE session = ?1")?
        .query_row([key.0], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// The identity in two columns of a session's row, of one whose messages go out by it.
///
/// # Errors
/// When it is none, or its other copy, in the index, is another session's: its messages would reach another child's history.
pub(super) fn identity(
    connection: &Connection,
    key: SessionKey,
    mac: &str,
    session_id: &str,
) -> rusqlite::Result<SessionIdentity> {
    let identity = rows::identity_of(mac, session_id)?;
    let indexed = rows::session_by_identity(connection, &identity)?;
    let agrees = indexed.is_some_and(|row| row.key == key);
    if agrees { Ok(identity) } else { Err(damage("the identity of a session is another one in its index")) }
}
