//! The archive for readers outside the daemon: one read-only connection, beside a running daemon or without one.
//!
//! Promises: it takes no lock that the writer waits for, every read is a short one by key (so the log can be
//! checkpointed meanwhile), and what it answers is what is committed.
//! Refuses: to create, repair or change anything; a row whose checksum fails has no text.
//! Called by `history` commands.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::open::Fault;
use super::record::{SessionSnapshot, TranscriptMessage};
use super::rows::{self, cached};
use super::schema;
use super::types::{RowId, SessionKey};
use super::writer::NextIds;
use super::{checksum, reads, record};
use crate::protocol::UnixMillis;

/// The archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// There is none.
    #[error("there is no history at {} (nothing was taken in yet, or store.directory names another place)", .0.display())]
    Missing(PathBuf),
    /// It cannot be opened.
    #[error("cannot open {}: {source} ({})", .path.display(), remedy(.source))]
    Refused {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Its content is wrong.
    #[error("{} is damaged: {cause} (chat-historyd history check has it set aside and salvaged)", .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A newer daemon wrote it.
    #[error("{} has schema version {found}, this program knows {} (use the newer chat-historyd)", .path.display(), schema::VERSION)]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
}

/// A session with the numbers of its messages, as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    /// Its row and what is held of it.
    pub session: SessionSnapshot,
    /// Its messages, held transcripts not counted.
    pub messages: u64,
    /// Waiting for delivery.
    pub pending: u64,
    /// Accepted by the server.
    pub delivered: u64,
    /// Never to be delivered.
    pub rejected: u64,
    /// Kept here, never sent.
    pub kept: u64,
    /// The youngest of its messages.
    pub newest: RowId,
}

/// The text of a message, and the checksum of its row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Content {
    pub text: String,
    pub crc: u32,
}

/// Which sessions are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionQuery {
    /// Of this device, as it is stored.
    pub mac: Option<String>,
    /// Of this agent.
    pub agent: Option<String>,
    /// With this id.
    pub session_id: Option<String>,
    /// That ended at this moment or later, or are open.
    pub from: Option<UnixMillis>,
    /// That began before this moment.
    pub to: Option<UnixMillis>,
}

/// One page of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The oldest sessions after this one.
    After(SessionKey),
    /// The youngest sessions before this one.
    Before(SessionKey),
}

impl Page {
    /// The first page, oldest first.
    pub const OLDEST: Self = Self::After(SessionKey(i64::MIN));
    /// The first page, youngest first.
    pub const YOUNGEST: Self = Self::Before(SessionKey(i64::MAX));
}

/// The archive.
#[derive(Debug)]
pub struct Archive {
    connection: Connection,
    path: PathBuf,
    /// Rejected messages by session, when the archive was opened: few, by their nature.
    rejected: HashMap<i64, u64>,
}

impl Archive {
    /// Opens the archive in the store's directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(directory: &Path) -> Result<Self, ArchiveError> {
        let path = directory.join("history.db");
        let length = path.metadata().map(|metadata| metadata.len());
        if matches!(&length, Err(error) if error.kind() == std::io::ErrorKind::NotFound) || matches!(length, Ok(0)) {
            return Err(ArchiveError::Missing(path));
        }
        let connection = connect(&path).map_err(|error| failed(&path, error))?;
        let version: i32 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(|error| failed(&path, error))?;
        if version > schema::VERSION {
            return Err(ArchiveError::Newer { path, found: version });
        }
        let mut archive = Self { connection, path, rejected: HashMap::new() };
        archive.rejected = archive.read(|connection| {
            let mut statement = cached(connection, "SELECT session, count(*) FROM rejected GROUP BY session")?;
            statement.query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?.collect()
        })?;
        Ok(archive)
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, ArchiveError> {
        read(&self.connection).map_err(|error| failed(&self.path, error))
    }

    /// A page of the sessions that match, at most `limit`; empty at the end.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn sessions(&self, query: &SessionQuery, page: Page, limit: usize) -> Result<Vec<SessionEntry>, ArchiveError> {
        let keys = self.read(|connection| session_keys(connection, query, page, limit))?;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            entries.extend(self.session(key)?);
        }
        Ok(entries)
    }

    /// One session; `None` when it is gone.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn session(&self, key: SessionKey) -> Result<Option<SessionEntry>, ArchiveError> {
        let rejected = self.rejected.get(&key.0).copied().unwrap_or(0);
        self.read(|connection| {
            // What it holds becomes a message of it: both are to be read in one state.
            let _state = connection.unchecked_transaction()?;
            let Some(session) = reads::snapshot(connection, key)? else { return Ok(None) };
            let cursor = rows::cursor(connection, key)?;
            let messages =
                count(connection, "SELECT count(*) FROM messages INDEXED BY messages_by_session WHERE session = ?1", key)?;
            let kept_sql = "SELECT count(*) FROM messages INDEXED BY messages_kept WHERE session = ?1 AND flags & 4";
            let kept = count(connection, kept_sql, key)?;
            let pending = rows::count_after(connection, key, cursor.row)?;
            let delivered = messages.saturating_sub(kept + pending + rejected);
            let newest = rows::newest(connection, key)?;
            Ok(Some(SessionEntry { session, messages, pending, delivered, rejected, kept, newest }))
        })
    }

    /// All messages, counted in an index.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn message_count(&self) -> Result<u64, ArchiveError> {
        self.read(|connection| connection.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).map(unsigned))
    }

    /// A page of a session's messages with their states: at most `limit` after the row `after`, fewer where they are long;
    /// empty at the end.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn messages(&self, key: SessionKey, after: RowId, limit: usize) -> Result<Vec<TranscriptMessage>, ArchiveError> {
        self.read(|connection| {
            let delivered_to = rows::cursor(connection, key)?.row;
            Ok(reads::transcript(connection, key, delivered_to, after, limit)?.0)
        })
    }

    /// As [`Self::messages`], of those that stood in the store when the entry was read: what the session held then is no
    /// message among them, and what came after, or was moved to its end, is left out.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn messages_of(&self, entry: &SessionEntry, after: RowId, limit: usize) -> Result<Vec<TranscriptMessage>, ArchiveError> {
        let mut page = self.messages(entry.session.key, after, limit)?;
        page.retain(|message| message.row <= entry.newest);
        Ok(page)
    }

    /// One message and its session; `None` when there is no such row.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn message(&self, row: RowId) -> Result<Option<(SessionKey, TranscriptMessage)>, ArchiveError> {
        let Some(session) = self.session_of(row)? else { return Ok(None) };
        let page = self.messages(session, RowId(row.0 - 1), 1)?;
        // It may have left since; then the page begins with another.
        Ok(page.into_iter().next().filter(|message| message.row == row).map(|message| (session, message)))
    }

    /// Texts of the rows after `after` with the checksums of the rows, at most `limit`, fewer where they are long; none for a
    /// row whose checksum fails. Empty at the end.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn contents(&self, after: RowId, limit: usize) -> Result<Vec<(RowId, Option<Content>)>, ArchiveError> {
        self.read(|connection| {
            let columns = rows::MESSAGE_COLUMNS;
            let mut statement =
                cached(connection, &format!("SELECT {columns} FROM messages WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
            let mut found = statement.query(params![after.0, signed(limit)])?;
            let (mut contents, mut bytes) = (Vec::new(), 0);
            while let Some(row) = found.next()? {
                let stored = rows::StoredMessage::of(row)?;
                bytes += stored.sound.as_ref().map_or(0, |fields| fields.content.len());
                if bytes > reads::PAGE_BYTES && !contents.is_empty() {
                    break;
                }
                contents.push((
                    stored.id,
                    stored.sound.map(|fields| Content { text: fields.content.to_owned(), crc: checksum::of_message(&fields) }),
                ));
            }
            Ok(contents)
        })
    }

    /// The checksum that stands in a row; `None` when there is no such row, or none in it.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn checksum(&self, row: RowId) -> Result<Option<u32>, ArchiveError> {
        self.read(|connection| {
            let crc: Option<i64> =
                cached(connection, "SELECT crc FROM messages WHERE id = ?1")?.query_row([row.0], |row| row.get(0)).optional()?;
            Ok(crc.and_then(|crc| u32::try_from(crc).ok()))
        })
    }

    /// Whether this store has ever given out the id of this row, or a higher one.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn has_given_out(&self, row: RowId) -> Result<bool, ArchiveError> {
        self.read(|connection| {
            let mut stands = cached(connection, "SELECT EXISTS (SELECT 1 FROM messages WHERE id >= ?1)")?;
            if stands.query_row([row.0], |row| row.get(0))? {
                return Ok(true);
            }
            Ok(NextIds::read(connection)?.is_some_and(|next| next.row > row.0))
        })
    }

    /// The rows there are between two, both included, in order.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn rows_between(&self, first: RowId, last: RowId) -> Result<Vec<RowId>, ArchiveError> {
        self.read(|connection| {
            let mut statement = cached(connection, "SELECT id FROM messages WHERE id BETWEEN ?1 AND ?2 ORDER BY id")?;
            statement.query_map([first.0, last.0], |row| Ok(RowId(row.get(0)?)))?.collect()
        })
    }

    /// The youngest rows below `before` and above `above`, youngest first, at most `limit`.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn rows_before(&self, before: RowId, above: RowId, limit: usize) -> Result<Vec<RowId>, ArchiveError> {
        self.read(|connection| {
            let sql = "SELECT id FROM messages WHERE id < ?1 AND id > ?2 ORDER BY id DESC LIMIT ?3";
            let mut statement = cached(connection, sql)?;
            statement.query_map(params![before.0, above.0, signed(limit)], |row| Ok(RowId(row.get(0)?)))?.collect()
        })
    }

    /// The session of a row; `None` when there is no such row.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn session_of(&self, row: RowId) -> Result<Option<SessionKey>, ArchiveError> {
        self.read(|connection| {
            let mut statement = cached(connection, "SELECT session FROM messages WHERE id = ?1")?;
            let mut found = statement.query([row.0])?;
            found.next()?.map(|row| Ok(SessionKey(row.get(0)?))).transpose()
        })
    }

    /// The audio of a message; `None` when it has none, or has left the store.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn audio(&self, row: RowId) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.read(|connection| {
            let audio = cached(connection, "SELECT audio FROM messages WHERE id = ?1")?.query_row([row.0], |row| row.get(0));
            Ok(audio.optional()?.flatten())
        })
    }

    /// A page of the rejected messages by row, at most `limit` after `after`, with their sessions.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn rejected(&self, after: RowId, limit: usize) -> Result<Vec<record::RejectedRow>, ArchiveError> {
        self.read(|connection| {
            let mut statement = cached(
                connection,
                "SELECT row, session, reason, answer, rejected_ms FROM rejected WHERE row > ?1 ORDER BY row LIMIT ?2",
            )?;
            let found = statement.query_map(params![after.0, signed(limit)], |row| {
                Ok(record::RejectedRow {
                    row: RowId(row.get(0)?),
                    session: SessionKey(row.get(1)?),
                    reason: row.get(2)?,
                    answer: row.get(3)?,
                    rejected: UnixMillis(row.get(4)?),
                })
            })?;
            found.collect()
        })
    }
}

fn session_keys(connection: &Connection, query: &SessionQuery, page: Page, limit: usize) -> rusqlite::Result<Vec<SessionKey>> {
    let (compare, order, edge) = match page {
        Page::After(key) => (">", "ASC", key.0),
        Page::Before(key) => ("<", "DESC", key.0),
    };
    let mut statement = cached(
        connection,
        &format!(
            "SELECT id FROM sessions WHERE id {compare} ?1 AND (?2 IS NULL OR mac = ?2) AND (?3 IS NULL OR agent_id = ?3)
             AND (?4 IS NULL OR session_id = ?4) AND (?5 IS NULL OR coalesce(ended_ms, ?5) >= ?5) AND (?6 IS NULL OR started_ms < ?6)
             ORDER BY id {order} LIMIT ?7"
        ),
    )?;
    let (from, to) = (query.from.map(|time| time.0), query.to.map(|time| time.0));
    let values = params![edge, query.mac, query.agent, query.session_id, from, to, signed(limit)];
    statement.query_map(values, |row| Ok(SessionKey(row.get(0)?)))?.collect()
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    // The directory may be reached through a symlink (systemd's `StateDirectory=` makes one), the file may not.
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    let path = directory.map_or_else(|| path.to_path_buf(), |directory| directory.join("history.db"));
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cache_size", -4096)?;
    Ok(connection)
}

fn failed(path: &Path, error: rusqlite::Error) -> ArchiveError {
    let path = path.to_path_buf();
    match Fault::of(&error) {
        Fault::Damage => ArchiveError::Damaged { path, cause: error.to_string() },
        Fault::Refusal => ArchiveError::Refused { path, source: error },
    }
}

fn remedy(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly) => "a reader keeps a list of the log beside it: copy it to a directory that you can write to",
        _ => "whose is it, and who are you?",
    }
}

fn count(connection: &Connection, sql: &str, key: SessionKey) -> rusqlite::Result<u64> {
    cached(connection, sql)?.query_row([key.0], |row| row.get(0)).map(unsigned)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
