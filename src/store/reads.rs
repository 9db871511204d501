//! What readers ask of the database: pending messages, the backlog, transcripts. Short reads by key.

use rusqlite::{Connection, OptionalExtension, params};

use super::agreement;
use super::inbox::Found;
use super::open::damage;
use super::record::{HeldTranscriptRecord, MessageState, SessionSnapshot, TranscriptMessage};
use super::rows::{self, MESSAGE_COLUMNS, StoredMessage, cached};
use super::schema::flags;
use super::types::{Cursor, Disposition, PendingMessage, RowId, SessionKey, WaitingDevice};
use crate::protocol::{ChatType, SessionIdentity, UnixMillis};

/// The most that a page of texts weighs, unless it is a single one: a row may be as long as a line of a producer.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// The rows of a session after `after`: at most `limit`, at most `max_bytes` of text (but at least one).
/// Answers whether more may follow, too.
pub(super) fn pending(
    connection: &Connection,
    key: SessionKey,
    after: RowId,
    limit: usize,
    max_bytes: usize,
) -> rusqlite::Result<(Vec<PendingMessage>, bool)> {
    let mut statement = cached(
        connection,
        &format!(
            "SELECT {MESSAGE_COLUMNS} FROM messages INDEXED BY messages_by_session
             WHERE session = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
        ),
    )?;
    let mut rows = statement.query(params![key.0, after.0, i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let (mut messages, mut bytes) = (Vec::<PendingMessage>::new(), 0);
    while let Some(row) = rows.next()? {
        let stored = StoredMessage::by_index(connection, row, messages.last().map_or(after, |last| last.row))?;
        let message = pending_message(&stored);
        bytes += message.content.len();
        if bytes > max_bytes && !messages.is_empty() {
            return Ok((messages, true));
        }
        messages.push(message);
    }
    let more = messages.len() >= limit;
    Ok((messages, more))
}

fn pending_message(stored: &StoredMessage<'_>) -> PendingMessage {
    let chat_type = stored.sound.as_ref().and_then(|row| ChatType::from_code(row.chat_type));
    match (stored.sound, chat_type) {
        (Some(row), Some(chat_type)) => PendingMessage {
            row: stored.id,
            uuid: rows::uuid_of(row.uuid),
            chat_type,
            content: row.content.to_owned(),
            time: UnixMillis(row.time_ms),
            recorded: UnixMillis(row.recorded_ms),
            has_audio: row.audio.is_some(),
            disposition: if row.flags & flags::KEEP_ONLY == 0 { Disposition::Send } else { Disposition::KeepOnly },
        },
        _ => PendingMessage {
            row: stored.id,
            uuid: uuid::Uuid::nil(),
            chat_type: ChatType::User,
            content: String::new(),
            time: UnixMillis(0),
            recorded: UnixMillis(0),
            has_audio: false,
            disposition: Disposition::Damaged,
        },
    }
}

/// The audio of a message; `None`: there is none, or it is damaged by now.
pub(super) fn audio(connection: &Connection, row: RowId) -> rusqlite::Result<Option<Vec<u8>>> {
    let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages NOT INDEXED WHERE id = ?1");
    let audio = cached(connection, &sql)?.query_row([row.0], |row| {
        let stored = StoredMessage::of(row)?;
        Ok(stored.sound.and_then(|message| message.audio.map(<[u8]>::to_vec)))
    });
    Ok(audio.optional()?.flatten())
}

/// How many messages a session has.
pub(super) fn message_count(connection: &Connection, key: SessionKey) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM messages INDEXED BY messages_by_session WHERE session = ?1";
    let count: i64 = cached(connection, sql)?.query_row(params![key.0], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Sessions with rows after their cursor, by key, from the first one on when `after` is `None`.
pub(super) fn backlog(connection: &Connection, after: Option<SessionKey>, limit: usize) -> rusqlite::Result<Vec<Found>> {
    if after.is_none() {
        // Before the first of them is sent: a cursor that has passed a hidden message would hide it for good.
        agreement::check(connection)?;
    }
    let after = after.unwrap_or(SessionKey(i64::MIN));
    let mut statement = cached(
        connection,
        "SELECT s.id, s.mac, s.session_id, s.ended_ms IS NOT NULL, coalesce(c.row, 0), coalesce(c.offset, 0),
         coalesce(c.last_report_ms, 0)
         FROM sessions s LEFT JOIN cursors c ON c.session = s.id
         WHERE s.id > ?1 AND EXISTS (SELECT 1 FROM messages m INDEXED BY messages_by_session
           WHERE m.session = s.id AND m.id > coalesce(c.row, 0)) ORDER BY s.id LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after.0, i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let key = SessionKey(row.get(0)?);
        let identity = agreement::identity(connection, key, &row.get::<_, String>(1)?, &row.get::<_, String>(2)?)?;
        let cursor = Cursor {
            row: RowId(row.get(4)?),
            offset: u64::try_from(row.get::<_, i64>(5)?).unwrap_or(0),
            last_report: UnixMillis(row.get(6)?),
        };
        let newest = rows::newest(connection, key)?;
        let pending = rows::count_after(connection, key, cursor.row)?;
        let oldest = rows::first_after(connection, key, cursor.row)?.unwrap_or_default();
        if rows::first_after(connection, key, RowId(i64::MIN))? != rows::first_after(connection, key, RowId(0))? {
            // Nobody asks for a row in front of all cursors.
            return Err(damage("the index of messages shows a row that was never given out"));
        }
        let waits_since = cached(connection, "SELECT recorded_ms FROM messages WHERE id = ?1")?
            .query_row([oldest.0], |row| row.get(0).map(UnixMillis))
            .optional()?
            .unwrap_or(UnixMillis(0));
        found.push(Found { key, identity, ended: row.get(3)?, cursor, pending, oldest, newest, waits_since });
    }
    Ok(found)
}

/// Sessions that have not ended, by key.
pub(super) fn open_sessions(
    connection: &Connection,
    after: SessionKey,
    limit: usize,
) -> rusqlite::Result<Vec<(SessionKey, SessionIdentity)>> {
    let mut statement = cached(
        connection,
        "SELECT id, mac, session_id FROM sessions INDEXED BY sessions_open WHERE ended_ms IS NULL AND id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let rows = statement.query_map(params![after.0, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        let key = SessionKey(row.get(0)?);
        Ok((key, agreement::identity(connection, key, &row.get::<_, String>(1)?, &row.get::<_, String>(2)?)?))
    })?;
    rows.collect()
}

pub(super) fn waiting_devices(connection: &Connection) -> rusqlite::Result<Vec<WaitingDevice>> {
    let mut statement = cached(connection, "SELECT mac, since_ms, tries FROM waiting_devices")?;
    let rows = statement.query_map([], |row| {
        let (mac, since, tries): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let device = |mac| WaitingDevice { mac, since: UnixMillis(since), tries: u32::try_from(tries).unwrap_or(u32::MAX) };
        Ok(mac.parse().ok().map(device))
    })?;
    rows.filter_map(Result::transpose).collect()
}

pub(super) fn held_count(connection: &Connection) -> rusqlite::Result<u64> {
    let count: i64 = connection.query_row("SELECT count(*) FROM held", [], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// The rejected messages that are still there, by reason.
pub(super) fn rejected_counts(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    let mut statement = cached(connection, "SELECT reason, count(*) FROM rejected GROUP BY reason")?;
    let counts = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
    counts.collect()
}

/// All messages after their session's cursor, counted in the indexes.
pub(super) fn pending_count(connection: &Connection) -> rusqlite::Result<u64> {
    let count: i64 = connection.query_row(
        "SELECT coalesce(sum(
           (SELECT count(*) FROM messages m INDEXED BY messages_by_session
            WHERE m.session = s.id AND m.id > coalesce(c.row, 0))
         - (SELECT count(*) FROM messages m INDEXED BY messages_kept
            WHERE m.session = s.id AND m.id > coalesce(c.row, 0) AND m.flags & 4)), 0)
         FROM sessions s LEFT JOIN cursors c ON c.session = s.id",
        [],
        |row| row.get(0),
    )?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// A session's row and what it holds back.
pub(super) fn snapshot(connection: &Connection, key: SessionKey) -> rusqlite::Result<Option<SessionSnapshot>> {
    let found = cached(
        connection,
        "SELECT mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped FROM sessions WHERE id = ?1",
    )?
    .query_row([key.0], |row| {
        let identity = agreement::identity(connection, key, &row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?;
        let ended: Option<i64> = row.get(5)?;
        let (agent_id, client, end_reason) = (row.get(2)?, row.get(3)?, row.get(6)?);
        let (started, dropped): (i64, i64) = (row.get(4)?, row.get(7)?);
        Ok(SessionSnapshot {
            key,
            identity,
            agent_id,
            client,
            started: UnixMillis(started),
            ended: ended.map(UnixMillis),
            end_reason,
            producer_dropped: u64::try_from(dropped).unwrap_or(0),
            held: Vec::new(),
        })
    })
    .optional()?;
    let Some(mut session) = found else { return Ok(None) };
    let held = rows::held(connection, key)?.into_iter();
    session.held = held.map(|held| HeldTranscriptRecord { uuid: held.uuid, text: held.text, time: held.time }).collect();
    Ok(Some(session))
}

/// A page of a session's messages with their states: at most `limit`, and no more than [`PAGE_BYTES`] (but at least one).
/// Answers whether more may follow, too.
pub(super) fn transcript(
    connection: &Connection,
    key: SessionKey,
    delivered_to: RowId,
    after: RowId,
    limit: usize,
) -> rusqlite::Result<(Vec<TranscriptMessage>, bool)> {
    let mut statement = cached(
        connection,
        &format!(
            "SELECT {MESSAGE_COLUMNS} FROM messages INDEXED BY messages_by_session
             WHERE session = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
        ),
    )?;
    let mut rows = statement.query(params![key.0, after.0, i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut rejected = cached(connection, "SELECT reason, answer FROM rejected WHERE row = ?1")?;
    let (mut messages, mut bytes) = (Vec::<TranscriptMessage>::new(), 0);
    while let Some(row) = rows.next()? {
        let stored = StoredMessage::by_index(connection, row, messages.last().map_or(after, |last| last.row))?;
        // Its audio is not kept.
        bytes += stored.sound.as_ref().map_or(0, |row| row.content.len() + row.extra.map_or(0, str::len));
        if bytes > PAGE_BYTES && !messages.is_empty() {
            return Ok((messages, true));
        }
        let rejection: Option<(String, Option<String>)> =
            rejected.query_row([stored.id.0], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        messages.push(transcript_message(&stored, rejection, stored.id <= delivered_to));
    }
    let more = messages.len() >= limit;
    Ok((messages, more))
}

fn transcript_message(
    stored: &StoredMessage<'_>,
    rejection: Option<(String, Option<String>)>,
    passed: bool,
) -> TranscriptMessage {
    let row = stored.sound;
    let flags = row.map_or(0, |row| row.flags);
    let state = match rejection {
        Some((reason, answer)) => MessageState::Rejected { reason, answer },
        None if row.is_none() => MessageState::Damaged,
        None if flags & flags::KEEP_ONLY != 0 => MessageState::Kept,
        None if passed => MessageState::Delivered,
        None => MessageState::Pending,
    };
    TranscriptMessage {
        row: stored.id,
        uuid: row.map_or(uuid::Uuid::nil(), |row| rows::uuid_of(row.uuid)),
        chat_type: row.and_then(|row| ChatType::from_code(row.chat_type)).unwrap_or(ChatType::User),
        content: row.map_or_else(String::new, |row| row.content.to_owned()),
        time: UnixMillis(row.map_or(0, |row| row.time_ms)),
        recorded: UnixMillis(row.map_or(0, |row| row.recorded_ms)),
        event_id: row.and_then(|row| row.event_id).map(str::to_owned),
        interrupted: flags & flags::INTERRUPTED != 0,
        uncommitted: flags & flags::UNCOMMITTED != 0,
        audio_bytes: row.and_then(|row| row.audio).map_or(0, |audio| audio.len() as u64),
        extra: row.and_then(|row| row.extra).map(str::to_owned),
        state,
    }
}
