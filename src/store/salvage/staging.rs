//! Where rows wait until all evidence is in: committed messages go straight into the target, everything else into
//! staging tables beside them (on disk, so that memory stays small), which `settle` turns into rows and drops.

use rusqlite::{Connection, Statement, params};

use super::rows::Row;

/// Messages in one transaction: bounds the journal, not the safety (a target is thrown away unless salvage returned).
const BATCH: u64 = 4096;

pub(super) const TABLES: &str = "
CREATE TABLE salvage_messages (
  id INTEGER PRIMARY KEY, session, uuid UNIQUE, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc
);
CREATE TABLE salvage_damaged (id INTEGER PRIMARY KEY);
CREATE TABLE salvage_damaged_held (id INTEGER PRIMARY KEY);
CREATE TABLE salvage_held (uuid PRIMARY KEY, id, session, text, time_ms, recorded_ms, item_id, crc);
CREATE TABLE salvage_sessions (
  id, mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped, proof,
  PRIMARY KEY (id, mac, session_id)
) WITHOUT ROWID;
CREATE TABLE salvage_identities (id, mac, session_id, proof, PRIMARY KEY (id, mac, session_id)) WITHOUT ROWID;
CREATE TABLE salvage_cursors (session, row, offset, last_report_ms, PRIMARY KEY (session, row, offset, last_report_ms)) WITHOUT ROWID;
CREATE TABLE salvage_rejected (row INTEGER PRIMARY KEY, session, reason, answer, rejected_ms);
CREATE TABLE salvage_next_row (value INTEGER PRIMARY KEY);
";

/// How a row was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trust {
    /// In the state SQLite itself would see.
    Committed,
    /// On a page beside that state: kept only if nothing committed contradicts it.
    Doubtful,
    /// In that state, read after all else: what is known of a session may be younger, and stays.
    CommittedAgain,
}

/// Takes rows in.
pub(super) struct Staging<'c> {
    connection: &'c Connection,
    message: Statement<'c>,
    doubtful: Statement<'c>,
    damaged: Statement<'c>,
    damaged_held: Statement<'c>,
    held: Statement<'c>,
    session: Statement<'c>,
    unknown_session: Statement<'c>,
    identity: Statement<'c>,
    cursor: Statement<'c>,
    rejected: Statement<'c>,
    next_row: Statement<'c>,
    in_batch: u64,
    /// Committed messages inserted so far.
    pub(super) messages: u64,
}

impl<'c> Staging<'c> {
    /// Makes the staging tables and opens a transaction. What staging leaves behind when it is dropped is zeros.
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        const COLUMNS: &str = "(id, session, uuid, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc) \
                               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
        const SESSION: &str = "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        connection.execute_batch("PRAGMA secure_delete = ON; BEGIN IMMEDIATE")?;
        connection.execute_batch(TABLES)?;
        let prepare = |sql: &str| connection.prepare(sql);
        Ok(Self {
            connection,
            message: prepare(&format!("INSERT OR IGNORE INTO messages {COLUMNS}"))?,
            doubtful: prepare(&format!("INSERT OR IGNORE INTO salvage_messages {COLUMNS}"))?,
            damaged: prepare("INSERT OR IGNORE INTO salvage_damaged VALUES (?1)")?,
            damaged_held: prepare("INSERT OR IGNORE INTO salvage_damaged_held VALUES (?1)")?,
            held: prepare("INSERT OR IGNORE INTO salvage_held VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?,
            session: prepare(&format!("INSERT OR REPLACE INTO salvage_sessions {SESSION}"))?,
            unknown_session: prepare(&format!("INSERT OR IGNORE INTO salvage_sessions {SESSION}"))?,
            identity: prepare("INSERT OR IGNORE INTO salvage_identities VALUES (?1, ?2, ?3, ?4)")?,
            cursor: prepare("INSERT OR IGNORE INTO salvage_cursors VALUES (?1, ?2, ?3, ?4)")?,
            rejected: prepare("INSERT OR IGNORE INTO salvage_rejected VALUES (?1, ?2, ?3, ?4, ?5)")?,
            next_row: prepare("INSERT OR IGNORE INTO salvage_next_row VALUES (?1)")?,
            in_batch: 0,
            messages: 0,
        })
    }

    /// Takes one row in.
    pub(super) fn take(&mut self, row: &Row<'_>, trust: Trust) -> rusqlite::Result<()> {
        match *row {
            Row::Message { fields: f, crc } => {
                let committed = trust != Trust::Doubtful;
                let statement = if committed { &mut self.message } else { &mut self.doubtful };
                let inserted = statement.execute(params![
                    f.id,
                    f.session,
                    f.uuid,
                    f.chat_type,
                    f.flags,
                    f.time_ms,
                    f.recorded_ms,
                    f.content,
                    f.event_id,
                    f.extra,
                    f.audio,
                    crc
                ])? as u64;
                self.messages += if committed { inserted } else { 0 };
                self.in_batch += 1;
            }
            Row::DamagedMessage { id } => {
                self.damaged.execute([id])?;
            }
            Row::DamagedHeld { id } => {
                self.damaged_held.execute([id])?;
            }
            Row::Held { id, session, uuid, text, time_ms, recorded_ms, item_id, crc } => {
                self.held.execute(params![uuid, id, session, text, time_ms, recorded_ms, item_id, crc])?;
            }
            Row::Session { id, mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped, proof } => {
                let values =
                    params![id, mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped, proof];
                let again = trust == Trust::CommittedAgain;
                if again { &mut self.unknown_session } else { &mut self.session }.execute(values)?;
            }
            Row::Identity { id, mac, session_id, proof } => {
                self.identity.execute(params![id, mac, session_id, proof])?;
            }
            Row::Cursor { session, row, offset, last_report_ms } => {
                self.cursor.execute([session, row, offset, last_report_ms])?;
            }
            Row::Rejected { row, session, reason, answer, rejected_ms } => {
                self.rejected.execute(params![row, session, reason, answer, rejected_ms])?;
            }
            Row::Counter(value) => {
                self.next_row.execute([value])?;
            }
        }
        if self.in_batch >= BATCH {
            self.in_batch = 0;
            self.connection.execute_batch("COMMIT; BEGIN IMMEDIATE")?;
        }
        Ok(())
    }
}
