//! Which ended sessions still lack their backup: remembered with the end itself, so that neither a kill nor a disk that
//! says no leaves a conversation without one.
//!
//! A session is due from its end until its backup is written with nothing left to deliver. One that was written while
//! messages still waited is due again when they are through: the uploader asks for it then, and after a kill the next start.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::cached;
use super::types::SessionKey;
use crate::protocol::UnixMillis;

/// A table beside those of the version: a daemon that does not know it does not miss it. `ended_ms` is the end that the
/// backup is to tell of; `written`, whether it tells of it, but of messages that still waited.
pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS backups_due (
  session INTEGER PRIMARY KEY,
  ended_ms INTEGER NOT NULL,
  written INTEGER NOT NULL
) STRICT";

/// Those to be written now. A backup whose messages have all left the store since has nothing to learn.
macro_rules! due {
    ($what:literal) => {
        concat!(
            "SELECT ",
            $what,
            " FROM backups_due d JOIN sessions s ON s.id = d.session LEFT JOIN cursors c ON c.session = d.session
              WHERE d.session > ?1 AND s.ended_ms IS NOT NULL AND (NOT d.written OR
                EXISTS (SELECT 1 FROM messages m INDEXED BY messages_by_session WHERE m.session = d.session)
                AND NOT EXISTS (SELECT 1 FROM messages m INDEXED BY messages_by_session
                  WHERE m.session = d.session AND m.id > coalesce(c.row, 0) AND m.flags & 4 = 0))"
        )
    };
}

/// What a backup tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backed {
    /// This end; `complete`: and that all messages are through.
    Up {
        /// The end.
        ended: UnixMillis,
        /// No message of it waits.
        complete: bool,
    },
    /// None is wanted.
    Unwanted,
}

/// A session has ended.
pub(super) fn note_end(connection: &Connection, session: SessionKey, ended: UnixMillis) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO backups_due (session, ended_ms, written) VALUES (?1, ?2, 0)
         ON CONFLICT (session) DO UPDATE SET ended_ms = excluded.ended_ms, written = 0",
    )?
    .execute(params![session.0, ended.0])?;
    Ok(())
}

/// A backup was written. What ended again since then stays due.
pub(super) fn note_backed(connection: &Connection, session: SessionKey, backed: Backed) -> rusqlite::Result<()> {
    match backed {
        Backed::Up { ended, complete: false } => {
            cached(connection, "UPDATE backups_due SET written = 1 WHERE session = ?1 AND ended_ms = ?2")?
                .execute(params![session.0, ended.0])?
        }
        Backed::Up { ended, complete: true } => {
            cached(connection, "DELETE FROM backups_due WHERE session = ?1 AND ended_ms = ?2")?
                .execute(params![session.0, ended.0])?
        }
        Backed::Unwanted => forget(connection, session)?,
    };
    Ok(())
}

/// A session leaves the store.
pub(super) fn forget(connection: &Connection, session: SessionKey) -> rusqlite::Result<usize> {
    cached(connection, "DELETE FROM backups_due WHERE session = ?1")?.execute([session.0])
}

/// The first of them after this one.
pub(super) fn next(connection: &Connection, after: SessionKey) -> rusqlite::Result<Option<SessionKey>> {
    let sql = concat!(due!("d.session"), " ORDER BY d.session LIMIT 1");
    cached(connection, sql)?.query_row([after.0], |row| row.get(0).map(SessionKey)).optional()
}

/// How many there are.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    let count: i64 = cached(connection, due!("count(*)"))?.query_row([i64::MIN], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}
