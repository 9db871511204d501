//! Reads of single tables that writer and readers share. They take whatever connection they are given.

use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::checksum::{self, RowFields};
use super::open::damage;
use super::types::{Cursor, HeldTranscript, RowId, SessionKey};
use crate::protocol::{MacAddress, SessionId, SessionIdentity, UnixMillis};

/// The columns of a message, in the order [`StoredMessage::of`] reads them.
pub(super) const MESSAGE_COLUMNS: &str =
    "id, session, uuid, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc";

/// A message as its row has it, borrowed; `None` when a value has another type than its column or the checksum fails.
pub(super) struct StoredMessage<'r> {
    pub(super) id: RowId,
    pub(super) sound: Option<RowFields<'r>>,
}

impl<'r> StoredMessage<'r> {
    pub(super) fn of(row: &'r Row<'_>) -> rusqlite::Result<Self> {
        let id: i64 = row.get(0)?;
        let sound = fields(row)?.filter(|(fields, crc)| checksum::of_message(fields) == *crc).map(|(fields, _)| fields);
        Ok(Self { id: RowId(id), sound })
    }

    /// The same of a row that an index showed, which comes after the one before in its order. Of columns that stand in the
    /// index SQLite takes them from there, so that a wrong entry looks like a damaged message, and hides the one it was of.
    ///
    /// # Errors
    /// When the index is damaged.
    pub(super) fn by_index(connection: &Connection, row: &'r Row<'_>, before: RowId) -> rusqlite::Result<Self> {
        let stored = Self::of(row)?;
        if stored.id <= before || (stored.sound.is_none() && is_sound_in_its_table(connection, stored.id)?) {
            return Err(damage("the index of messages shows other rows than there are"));
        }
        Ok(stored)
    }
}

fn fields<'r>(row: &'r Row<'_>) -> rusqlite::Result<Option<(RowFields<'r>, u32)>> {
    let whole = || -> Option<(RowFields<'r>, u32)> {
        let integer = |index| row.get_ref(index).ok()?.as_i64().ok();
        let text = |index| row.get_ref(index).ok()?.as_str_or_null().ok();
        let blob = |index| row.get_ref(index).ok()?.as_blob_or_null().ok();
        let fields = RowFields {
            id: integer(0)?,
            session: integer(1)?,
            uuid: blob(2)?.filter(|uuid| uuid.len() == 16)?,
            chat_type: integer(3)?,
            flags: integer(4)?,
            time_ms: integer(5)?,
            recorded_ms: integer(6)?,
            content: text(7)??,
            event_id: text(8)?,
            extra: text(9)?,
            audio: blob(10)?,
        };
        Some((fields, u32::try_from(integer(11)?).ok()?))
    };
    // An IO error while a value is fetched must not look like a bad row.
    if row.get_ref(0)? == ValueRef::Null {
        return Ok(None);
    }
    Ok(whole())
}

fn is_sound_in_its_table(connection: &Connection, row: RowId) -> rusqlite::Result<bool> {
    let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages NOT INDEXED WHERE id = ?1");
    let found = cached(connection, &sql)?.query_row([row.0], |row| Ok(StoredMessage::of(row)?.sound.is_some()));
    Ok(found.optional()?.unwrap_or(false))
}

/// The UUID of a checked row.
pub(super) fn uuid_of(bytes: &[u8]) -> Uuid {
    Uuid::from_slice(bytes).unwrap_or_default()
}

/// Runs a cached statement.
pub(super) fn cached<'c>(connection: &'c Connection, sql: &str) -> rusqlite::Result<CachedStatement<'c>> {
    connection.prepare_cached(sql)
}

/// A session's row.
pub(super) struct SessionRow {
    pub(super) key: SessionKey,
    pub(super) agent_id: Option<String>,
    pub(super) ended: bool,
}

/// The session of an identity.
///
/// # Errors
/// When its row, which the index shows, is another session's, among other things.
pub(super) fn session_by_identity(connection: &Connection, identity: &SessionIdentity) -> rusqlite::Result<Option<SessionRow>> {
    let mac = identity.mac.to_string();
    let key: Option<i64> = cached(connection, "SELECT id FROM sessions WHERE mac = ?1 AND session_id = ?2")?
        .query_row(params![mac, identity.session_id.as_str()], |row| row.get(0))
        .optional()?;
    let Some(key) = key else { return Ok(None) };
    // SQLite would take the identity from the index here, too. What is said would go into another child's history.
    let sql = "SELECT agent_id, ended_ms IS NOT NULL FROM sessions NOT INDEXED WHERE id = ?1 AND +mac = ?2 AND +session_id = ?3";
    let found = cached(connection, sql)?
        .query_row(params![key, mac, identity.session_id.as_str()], |row| {
            Ok(SessionRow { key: SessionKey(key), agent_id: row.get(0)?, ended: row.get(1)? })
        })
        .optional()?;
    found.map(Some).ok_or_else(|| damage("the row of a session is another one than its index says"))
}

/// The identity in two columns of a session's row.
///
/// # Errors
/// When it is none as the store writes them: the row is damaged.
pub(super) fn identity_of(mac: &str, session_id: &str) -> rusqlite::Result<SessionIdentity> {
    let canonical = mac.parse::<MacAddress>().ok().filter(|parsed| parsed.to_string() == mac);
    let identity = canonical.zip(SessionId::new(session_id).ok()).map(|(mac, session_id)| SessionIdentity { mac, session_id });
    identity.ok_or_else(|| damage("a session's identity is none"))
}

pub(super) fn cursor(connection: &Connection, key: SessionKey) -> rusqlite::Result<Cursor> {
    let found = cached(connection, "SELECT row, offset, last_report_ms FROM cursors WHERE session = ?1")?
        .query_row([key.0], |row| {
            Ok(Cursor {
                row: RowId(row.get(0)?),
                offset: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                last_report: UnixMillis(row.get(2)?),
            })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Sendable messages of a session after a row, counted in the indexes alone.
pub(super) fn count_after(connection: &Connection, key: SessionKey, after: RowId) -> rusqlite::Result<u64> {
    let all: i64 =
        cached(connection, "SELECT count(*) FROM messages INDEXED BY messages_by_session WHERE session = ?1 AND id > ?2")?
            .query_row([key.0, after.0], |row| row.get(0))?;
    let kept: i64 = cached(
        connection,
        "SELECT count(*) FROM messages INDEXED BY messages_kept WHERE session = ?1 AND id > ?2 AND flags & 4",
    )?
    .query_row([key.0, after.0], |row| row.get(0))?;
    Ok(u64::try_from(all - kept).unwrap_or(0))
}

/// The first row of a session after another one.
pub(super) fn first_after(connection: &Connection, key: SessionKey, after: RowId) -> rusqlite::Result<Option<RowId>> {
    let first: Option<i64> =
        cached(connection, "SELECT min(id) FROM messages INDEXED BY messages_by_session WHERE session = ?1 AND id > ?2")?
            .query_row([key.0, after.0], |row| row.get(0))?;
    Ok(first.map(RowId))
}

/// The youngest row of a session; 0 when it has none.
pub(super) fn newest(connection: &Connection, key: SessionKey) -> rusqlite::Result<RowId> {
    let newest: Option<i64> =
        cached(connection, "SELECT max(id) FROM messages INDEXED BY messages_by_session WHERE session = ?1")?
            .query_row([key.0], |row| row.get(0))?;
    Ok(RowId(newest.unwrap_or(0)))
}

/// What a session holds back, in order.
pub(super) fn held(connection: &Connection, key: SessionKey) -> rusqlite::Result<Vec<HeldTranscript>> {
    let mut statement = cached(
        connection,
        "SELECT uuid, text, time_ms, recorded_ms, item_id, crc FROM held INDEXED BY held_by_session WHERE session = ?1 ORDER BY id",
    )?;
    let mut rows = statement.query([key.0])?;
    let mut held = Vec::new();
    while let Some(row) = rows.next()? {
        let (uuid, text): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
        let (time, recorded, item_id): (i64, i64, Option<String>) = (row.get(2)?, row.get(3)?, row.get(4)?);
        let crc = checksum::of_held(key.0, &uuid, &text, time, recorded, item_id.as_deref());
        // Passed over, it would be held for ever and told by nobody.
        if i64::from(crc) != row.get::<_, i64>(5)? {
            return Err(damage("the checksum of a held transcript fails"));
        }
        let (time, recorded) = (UnixMillis(time), UnixMillis(recorded));
        held.push(HeldTranscript { uuid: uuid_of(&uuid), text, time, recorded, item_id });
    }
    Ok(held)
}

/// The producers' ids that a session has used since `since`, oldest first: at most the youngest `limit`.
pub(super) fn event_ids(
    connection: &Connection,
    key: SessionKey,
    since: UnixMillis,
    limit: usize,
) -> rusqlite::Result<Vec<String>> {
    let mut statement = cached(
        connection,
        "SELECT event_id FROM messages INDEXED BY messages_by_session
         WHERE session = ?1 AND recorded_ms >= ?2 AND event_id IS NOT NULL ORDER BY id DESC LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut ids: Vec<String> =
        statement.query_map([key.0, since.0, limit], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    ids.reverse();
    Ok(ids)
}

/// The session and the highest settled line of a stream.
pub(super) fn stream(connection: &Connection, stream: &str) -> rusqlite::Result<Option<(SessionKey, u64)>> {
    cached(connection, "SELECT session, last_seq FROM streams WHERE stream = ?1")?
        .query_row([stream], |row| Ok((SessionKey(row.get(0)?), u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0))))
        .optional()
}

/// A number that outlives deletions.
pub(super) fn counter(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    let found =
        cached(connection, "SELECT value FROM counters WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(0))
}
