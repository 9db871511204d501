//! What stands in two places of the database says the same in both. SQLite compares nothing when it reads, and one wrong bit
//! in a cursor, in the row of a session or in an index would hide messages from delivery, or send them to another device,
//! without a word. What does not agree is damage, and a salvage decides what is to be believed.
//!
//! Looked at before a backlog is sent: one entry of an index for each session and for each cursor, never all messages.

use rusqlite::Connection;

use super::open::damage;
use super::rows;
use super::types::SessionKey;
use crate::protocol::SessionIdentity;

/// The first entry of each session in the index of messages: what stands under no session is shown to nobody.
const STRAYS: &str = "
WITH RECURSIVE speaking(key) AS (
  SELECT min(session) FROM messages INDEXED BY messages_by_session
  UNION ALL
  SELECT (SELECT min(m.session) FROM messages m INDEXED BY messages_by_session WHERE m.session > speaking.key)
  FROM speaking WHERE speaking.key IS NOT NULL)
SELECT EXISTS (SELECT 1 FROM speaking WHERE key IS NOT NULL AND key NOT IN (SELECT id FROM sessions))
";

/// A cursor names a row of its own session, or one that was there once; ids are given out once and in order.
const CURSORS: &str = "
SELECT EXISTS (
  SELECT 1 FROM cursors c
  WHERE c.row > max(coalesce((SELECT max(id) FROM messages), 0), coalesce((SELECT value FROM counters WHERE name = 'next_row'), 0))
  OR (NOT EXISTS (SELECT 1 FROM messages m INDEXED BY messages_by_session WHERE m.session = c.session AND m.id = c.row)
      AND EXISTS (SELECT 1 FROM messages m NOT INDEXED WHERE m.id = c.row)))
";

/// The whole of it but for identities.
///
/// # Errors
/// When something does not agree.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    for (sql, what) in [(STRAYS, "there are messages without a session"), (CURSORS, "a cursor names no message of its session")] {
        if connection.query_row(sql, [], |row| row.get(0))? {
            return Err(damage(what));
        }
    }
    Ok(())
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
