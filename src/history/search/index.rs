//! The index of words: an FTS5 table in `search.db` beside the store, fed up to a watermark.
//!
//! Promises: what leaves the store leaves the index, and is overwritten in its file; a damaged index is deleted and
//! made anew. Only one hand in a process changes it at a time, and only that of the store's owner does.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use tokio_util::sync::CancellationToken;

use super::words::indexed;
use crate::observe::Metrics;
use crate::store::{Archive, ArchiveError, RowId};

/// Rows fed in one transaction; between two the thread rests, so that the feeding of a whole store leaves room for others.
const STEP_ROWS: usize = 200;
const REST: Duration = Duration::from_millis(2);
/// How often the daemon looks whether there is something to feed.
const EVERY: Duration = Duration::from_secs(1);

const SCHEMA: &str = "
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO state VALUES ('watermark', 0);
CREATE VIRTUAL TABLE words USING fts5(text, tokenize = \"unicode61 remove_diacritics 0 categories 'L* M* N* Co'\");
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
PRAGMA user_version = 1;
";

/// The index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Its own file.
    #[error("the search index: {0}")]
    Index(#[from] rusqlite::Error),
    /// The store.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// The index of a store.
#[derive(Clone, Debug)]
pub struct SearchIndex {
    directory: PathBuf,
    changing: Arc<Mutex<()>>,
}

impl SearchIndex {
    /// The index of the store in this directory.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), changing: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("search.db")
    }

    /// Feeds rows above the watermark, at most so many; answers whether more are there.
    ///
    /// # Errors
    /// When index or store cannot be used; a damaged index is deleted.
    pub fn feed(&self, limit: usize) -> Result<bool, IndexError> {
        self.change(|connection, archive| {
            let watermark = watermark(connection)?;
            let rows = archive.contents(watermark, limit)?;
            let Some((last, _)) = rows.last() else { return Ok(false) };
            let transaction = connection.unchecked_transaction()?;
            {
                let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO words (rowid, text) VALUES (?1, ?2)")?;
                for (row, content) in &rows {
                    if let Some(content) = content {
                        insert.execute((row.0, indexed(content)))?;
                    }
                }
            }
            transaction.execute("UPDATE state SET value = ?1 WHERE name = 'watermark'", [last.0])?;
            transaction.commit()?;
            Ok(rows.len() == limit)
        })
    }

    /// Takes out what the store does not hold any more, overwrites it, and empties the log. Answers how many rows.
    ///
    /// # Errors
    /// When index or store cannot be used; a damaged index is deleted.
    pub fn reconcile(&self) -> Result<u64, IndexError> {
        if !self.path().exists() {
            return Ok(0);
        }
        self.change(|connection, archive| {
            let (mut after, mut gone) = (0_i64, 0);
            loop {
                let ids: Vec<i64> = connection
                    .prepare_cached("SELECT rowid FROM words WHERE rowid > ?1 ORDER BY rowid LIMIT ?2")?
                    .query_map((after, i64::try_from(STEP_ROWS).unwrap_or(i64::MAX)), |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let (Some(first), Some(last)) = (ids.first(), ids.last()) else { break };
                let there = archive.rows_between(RowId(*first), RowId(*last))?;
                after = *last;
                let leaving: Vec<i64> = ids.iter().copied().filter(|id| there.binary_search(&RowId(*id)).is_err()).collect();
                if !leaving.is_empty() {
                    let transaction = connection.unchecked_transaction()?;
                    for id in &leaving {
                        transaction.prepare_cached("DELETE FROM words WHERE rowid = ?1")?.execute([id])?;
                    }
                    transaction.commit()?;
                    gone += leaving.len() as u64;
                    std::thread::sleep(REST);
                }
            }
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            Ok(gone)
        })
    }

    fn change<T>(&self, work: impl FnOnce(&Connection, &Archive) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let archive = Archive::open(&self.directory)?;
        let result = self.open().map_err(IndexError::from).and_then(|connection| work(&connection, &archive));
        if let Err(IndexError::Index(error)) = &result
            && matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
            )
        {
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(self.directory.join(format!("search.db{suffix}")));
            }
        }
        result
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path();
        // SQLite gives its log the mode of the database.
        let _ = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // It can be made anew: a power cut may cost its youngest rows, not its soundness.
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "secure_delete", true)?;
        connection.pragma_update(None, "cache_size", -2048)?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        }
        Ok(connection)
    }

    /// For a reader: the index and its watermark; `None` when there is none, or none that can be used.
    #[must_use]
    pub fn read(&self) -> Option<Reader> {
        let path = self.path();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).ok()?;
        connection.busy_timeout(Duration::from_secs(2)).ok()?;
        let watermark = watermark(&connection).ok()?;
        Some(Reader { connection, watermark })
    }

    /// Feeds in the background until it is cancelled.
    pub async fn keep(self, metrics: Arc<Metrics>, stop: CancellationToken) {
        let mut seen = (u64::MAX, 0);
        loop {
            let now = (metrics.commits.get(), metrics.messages_pruned.get());
            if now != seen {
                let (index, stopping, pruned) = (self.clone(), stop.clone(), now.1 != seen.1);
                let round = tokio::task::spawn_blocking(move || {
                    while !stopping.is_cancelled() && index.feed(STEP_ROWS)? {
                        std::thread::sleep(REST);
                    }
                    if pruned && !stopping.is_cancelled() {
                        index.reconcile()?;
                    }
                    Ok::<(), IndexError>(())
                });
                match round.await {
                    Ok(Ok(())) => seen = now,
                    Ok(Err(error)) => tracing::debug!(%error, "the search index is fed later"),
                    Err(_) => return,
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}

fn watermark(connection: &Connection) -> rusqlite::Result<RowId> {
    let found: Option<i64> =
        connection.query_row("SELECT value FROM state WHERE name = 'watermark'", [], |row| row.get(0)).optional()?;
    Ok(RowId(found.unwrap_or(0)))
}

/// The index, for searching.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    /// Rows up to here are indexed.
    pub watermark: RowId,
}

impl Reader {
    /// Rows below `before` that match, youngest first, at most `limit`.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn rows(&self, fts: &str, before: RowId, limit: usize) -> Result<Vec<RowId>, IndexError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT rowid FROM words WHERE words MATCH ?1 AND rowid < ?2 ORDER BY rowid DESC LIMIT ?3")?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(statement.query_map((fts, before.0, limit), |row| Ok(RowId(row.get(0)?)))?.collect::<rusqlite::Result<_>>()?)
    }
}
