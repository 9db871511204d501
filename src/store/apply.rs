//! Turns accepted changes into SQL, inside the transaction of a group.
//!
//! Promises: everything can be applied twice with the effect of once (rows carry explicit ids, held transcripts their
//! UUID, streams only rise), so what a doubtful commit left behind is no danger when its group is written again.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, params};

use super::checksum::{self, RowFields};
use super::inbox::Advance;
use super::rows;
use super::schema::flags;
use super::types::{
    Disposition, HeldTranscript, Lifecycle, NewMessage, PendingMessage, RowId, SessionKey, SessionWrite, WaitingDevice,
};
use crate::protocol::{MacAddress, SessionIdentity, UnixMillis};

/// The number of rows a write needs: its messages, then what it holds.
pub(super) fn rows_of(write: &SessionWrite) -> i64 {
    i64::try_from(write.messages.len() + write.hold.len()).unwrap_or(i64::MAX)
}

/// One transaction's worth of changes. Streams are collected and written once each by [`Applier::finish`].
pub(super) struct Applier<'c> {
    pub(super) connection: &'c Connection,
    insert_message: CachedStatement<'c>,
    streams: HashMap<Arc<str>, StreamRow>,
}

#[derive(Clone, Copy)]
struct StreamRow {
    session: SessionKey,
    seq: u64,
    used: UnixMillis,
}

impl<'c> Applier<'c> {
    /// For a connection with an open transaction.
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let insert_message = rows::cached(
            connection,
            "INSERT INTO messages (id, session, uuid, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT (id) DO NOTHING",
        )?;
        Ok(Self { connection, insert_message, streams: HashMap::new() })
    }

    /// Fails when another session has the identity: rows of this one would belong to nobody.
    pub(super) fn create_session(&self, key: SessionKey, identity: &SessionIdentity, now: UnixMillis) -> rusqlite::Result<()> {
        let mac = identity.mac.to_string();
        rows::cached(
            self.connection,
            "INSERT INTO sessions (id, mac, session_id, started_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![key.0, mac, identity.session_id.as_str(), now.0])?;
        Ok(())
    }

    /// A session that was given the identity under another key and never had a message.
    pub(super) fn remove_empty_namesake(&self, key: SessionKey, identity: &SessionIdentity) -> rusqlite::Result<()> {
        match rows::session_by_identity(self.connection, identity)?.filter(|row| row.key != key) {
            Some(other) if rows::newest(self.connection, other.key)? == RowId(0) => {
                super::forget::remove_session(self.connection, other.key)
            }
            _ => Ok(()),
        }
    }

    /// The producer's own word about its agent stands.
    pub(super) fn suggest_agent(&self, key: SessionKey, agent_id: &str) -> rusqlite::Result<()> {
        rows::cached(self.connection, "UPDATE sessions SET agent_id = coalesce(agent_id, ?2) WHERE id = ?1")?
            .execute(params![key.0, agent_id])?;
        Ok(())
    }

    /// The owner and highest line of a stream, this transaction's changes included.
    pub(super) fn stream(&self, stream: &str) -> rusqlite::Result<Option<(SessionKey, u64)>> {
        let stored = rows::stream(self.connection, stream)?;
        let Some(changed) = self.streams.get(stream) else { return Ok(stored) };
        Ok(Some(stored.map_or((changed.session, changed.seq), |(owner, seq)| (owner, seq.max(changed.seq)))))
    }

    pub(super) fn touch_stream(&mut self, stream: &Arc<str>, session: SessionKey, seq: u64, used: UnixMillis) {
        let row = self.streams.entry(Arc::clone(stream)).or_insert(StreamRow { session, seq, used });
        row.seq = row.seq.max(seq);
        row.used = row.used.max(used);
    }

    /// Applies a write whose rows are numbered from `first_row` on.
    pub(super) fn write(&mut self, write: &SessionWrite, first_row: i64) -> rusqlite::Result<()> {
        let key = write.session.key;
        if write.session.was_forgotten() {
            // Its row went; what is said from now on needs one again.
            self.create_session(key, &write.session.identity, write.recorded)?;
        }
        let mut id = first_row;
        for message in &write.messages {
            self.message(id, key, message)?;
            id += 1;
        }
        for held in &write.hold {
            self.hold(id, key, held)?;
            id += 1;
        }
        for uuid in &write.release {
            rows::cached(self.connection, "DELETE FROM held WHERE uuid = ?1 AND session = ?2")?
                .execute(params![uuid.as_bytes(), key.0])?;
        }
        if let Some((stream, seq)) = &write.stream {
            self.touch_stream(stream, key, *seq, write.recorded);
        }
        write.lifecycle.as_ref().map_or(Ok(()), |lifecycle| self.lifecycle(key, lifecycle, write.recorded))
    }

    fn message(&mut self, id: i64, key: SessionKey, message: &NewMessage) -> rusqlite::Result<()> {
        let bit = |set: bool, flag: i64| if set { flag } else { 0 };
        let row = RowFields {
            id,
            session: key.0,
            uuid: message.uuid.as_bytes(),
            chat_type: i64::from(message.chat_type.code()),
            flags: bit(message.interrupted, flags::INTERRUPTED)
                | bit(message.uncommitted, flags::UNCOMMITTED)
                | bit(!message.sendable, flags::KEEP_ONLY),
            time_ms: message.time.0,
            recorded_ms: message.recorded.0,
            content: &message.content,
            event_id: message.event_id.as_deref(),
            extra: message.extra.as_deref(),
            audio: message.audio.as_deref(),
        };
        self.insert_message.execute(params![
            row.id,
            row.session,
            row.uuid,
            row.chat_type,
            row.flags,
            row.time_ms,
            row.recorded_ms,
            row.content,
            row.event_id,
            row.extra,
            row.audio,
            checksum::of_message(&row),
        ])?;
        Ok(())
    }

    /// A message that may be there already, as far as it is known in memory: if it is not, its audio is gone.
    pub(super) fn known(&mut self, key: SessionKey, message: &PendingMessage) -> rusqlite::Result<()> {
        let PendingMessage { row, uuid, chat_type, time, recorded, disposition, .. } = *message;
        let known = NewMessage {
            uuid,
            chat_type,
            content: message.content.clone(),
            time,
            recorded,
            event_id: None,
            extra: None,
            audio: None,
            interrupted: false,
            uncommitted: false,
            sendable: disposition == Disposition::Send,
        };
        self.message(row.0, key, &known)
    }

    fn hold(&self, id: i64, key: SessionKey, held: &HeldTranscript) -> rusqlite::Result<()> {
        let uuid = held.uuid.as_bytes().as_slice();
        let crc = checksum::of_held(key.0, uuid, &held.text, held.time.0, held.recorded.0, held.item_id.as_deref());
        rows::cached(
            self.connection,
            "INSERT INTO held (id, session, uuid, text, time_ms, recorded_ms, item_id, crc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
        )?
        .execute(params![id, key.0, uuid, held.text, held.time.0, held.recorded.0, held.item_id, crc])?;
        Ok(())
    }

    fn lifecycle(&self, key: SessionKey, lifecycle: &Lifecycle, now: UnixMillis) -> rusqlite::Result<()> {
        match lifecycle {
            Lifecycle::Started { agent_id, client } => rows::cached(
                self.connection,
                "UPDATE sessions SET ended_ms = NULL, end_reason = NULL, agent_id = coalesce(?2, agent_id),
                 client = coalesce(?3, client) WHERE id = ?1",
            )?
            .execute(params![key.0, agent_id, client])?,
            // Applied twice, it must not count the dropped lines twice. The sum stops at the largest number: one that did
            // not fit its column could never be written, nor anything behind it.
            Lifecycle::Ended { reason, dropped } => {
                super::backups_due::note_end(self.connection, key, now)?;
                rows::cached(
                    self.connection,
                    "UPDATE sessions SET producer_dropped = CASE WHEN ended_ms IS ?2 THEN producer_dropped
                   ELSE producer_dropped + min(?4, 9223372036854775807 - producer_dropped) END,
                 ended_ms = ?2, end_reason = ?3 WHERE id = ?1",
                )?
                .execute(params![key.0, now.0, reason, i64::try_from(*dropped).unwrap_or(i64::MAX)])?
            }
        };
        Ok(())
    }

    /// A cursor of a session, and what it passed over. One that is behind the one in the database changes nothing.
    pub(super) fn advance(&self, advance: &Advance, now: UnixMillis) -> rusqlite::Result<()> {
        let (handle, key, cursor) = (&advance.handle, advance.handle.key, advance.cursor);
        if handle.has_forgotten(cursor.row) {
            return Ok(());
        }
        for (row, rejection) in advance.rejected.iter().filter(|(row, _)| !handle.has_forgotten(*row)) {
            rows::cached(
                self.connection,
                "INSERT INTO rejected (row, session, reason, answer, rejected_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (row) DO UPDATE SET reason = excluded.reason, answer = excluded.answer",
            )?
            .execute(params![row.0, key.0, rejection.reason.as_str(), rejection.answer, now.0])?;
        }
        rows::cached(
            self.connection,
            "INSERT INTO cursors (session, row, offset, last_report_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (session) DO UPDATE SET row = excluded.row, offset = excluded.offset,
             last_report_ms = excluded.last_report_ms WHERE (excluded.row, excluded.offset) >= (row, offset)",
        )?
        .execute(params![
            key.0,
            cursor.row.0,
            i64::try_from(cursor.offset).unwrap_or(i64::MAX),
            cursor.last_report.0
        ])?;
        Ok(())
    }

    pub(super) fn device(&self, mac: MacAddress, device: Option<&WaitingDevice>) -> rusqlite::Result<()> {
        match device {
            Some(device) => rows::cached(
                self.connection,
                "INSERT INTO waiting_devices (mac, since_ms, tries) VALUES (?1, ?2, ?3)
                 ON CONFLICT (mac) DO UPDATE SET since_ms = excluded.since_ms, tries = excluded.tries",
            )?
            .execute(params![mac.to_string(), device.since.0, device.tries])?,
            None => rows::cached(self.connection, "DELETE FROM waiting_devices WHERE mac = ?1")?.execute([mac.to_string()])?,
        };
        Ok(())
    }

    /// Writes the streams, once each. The transaction is then ready to commit.
    pub(super) fn finish(self) -> rusqlite::Result<()> {
        let mut upsert = rows::cached(
            self.connection,
            "INSERT INTO streams (stream, session, last_seq, used_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (stream) DO UPDATE SET last_seq = max(last_seq, excluded.last_seq),
             used_ms = max(used_ms, excluded.used_ms)",
        )?;
        for (stream, row) in &self.streams {
            upsert.execute(params![stream, row.session.0, i64::try_from(row.seq).unwrap_or(i64::MAX), row.used.0])?;
        }
        Ok(())
    }
}
