//! The index of words: an FTS5 table in `search.db` beside the store, fed up to a watermark.
//!
//! Promises: what leaves the store leaves the index, and is overwritten in its file; a damaged index is deleted and
//! made anew, and so are one of another store (an older copy that was put back, too) and one with something else in place
//! of a file: a symlink is never followed. Only one hand in a process changes it at a time, and only that of the store's owner does.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc::O_NOFOLLOW;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use tokio_util::sync::CancellationToken;

use super::words::indexed;
use crate::observe::Metrics;
use crate::store::{Archive, ArchiveError, RowId, SUFFIXES};

/// All rows.
pub const ALL: RangeInclusive<i64> = 1..=i64::MAX;
/// Rows read at once.
const STEP_ROWS: usize = 200;
/// Rows fed in one transaction; between two the thread rests, so that the feeding of a whole store leaves room for others.
const GROUP_ROWS: usize = 2_000;
const REST: Duration = Duration::from_millis(2);
/// Rows after which somebody else may change the index.
const ROUND_ROWS: usize = 10 * GROUP_ROWS;
/// How often the daemon looks whether there is something to feed.
const EVERY: Duration = Duration::from_secs(1);
/// How long the store must have been quiet.
const QUIET: Duration = Duration::from_secs(2);
/// In a store that is never quiet, rows wait no longer than this.
const PATIENCE: Duration = Duration::from_secs(300);

/// `crc` is the checksum of the row in the store: it covers all of the row, its id and its UUID included.
const SCHEMA: &str = "
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO state VALUES ('watermark', 0);
CREATE VIRTUAL TABLE words USING fts5(text, crc UNINDEXED, tokenize = \"unicode61 remove_diacritics 0 categories 'L* M* N* Co'\");
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
PRAGMA user_version = 2;
";
/// The version of [`SCHEMA`]; an index of any other is made anew.
const VERSION: i32 = 2;

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
        self.member("")
    }

    /// The directory may be reached through a symlink (systemd's `StateDirectory=` makes one), a file in it may not.
    fn member(&self, suffix: &str) -> PathBuf {
        let directory = self.directory.canonicalize();
        directory.as_ref().unwrap_or(&self.directory).join(format!("search.db{suffix}"))
    }

    fn remove(&self) {
        for suffix in SUFFIXES {
            let _ = std::fs::remove_file(self.member(suffix));
        }
    }

    /// Feeds rows above the watermark, at most so many; answers whether more are there.
    ///
    /// # Errors
    /// When index or store cannot be used; a damaged index is deleted.
    pub fn feed(&self, limit: usize) -> Result<bool, IndexError> {
        self.change(|connection, archive| {
            let mut left = limit;
            while left > 0 {
                let transaction = connection.unchecked_transaction()?;
                let fed = feed_rows(&transaction, archive, left.min(GROUP_ROWS))?;
                transaction.commit()?;
                if fed < left.min(GROUP_ROWS) {
                    return Ok(false);
                }
                left -= fed;
                std::thread::sleep(REST);
            }
            Ok(true)
        })
    }

    /// Takes out which of these rows the store does not hold any more, overwrites them, and empties the log. Answers whether
    /// nobody reads the log any more: else what was taken out still stands in the files.
    ///
    /// # Errors
    /// When index or store cannot be used; a damaged index is deleted.
    pub fn reconcile(&self, rows: RangeInclusive<i64>) -> Result<bool, IndexError> {
        if !self.path().exists() {
            return Ok(true);
        }
        self.change(|connection, archive| {
            let mut after = rows.start().saturating_sub(1);
            loop {
                let ids: Vec<i64> = connection
                    .prepare_cached("SELECT rowid FROM words WHERE rowid > ?1 AND rowid <= ?2 ORDER BY rowid LIMIT ?3")?
                    .query_map((after, rows.end(), i64::try_from(STEP_ROWS).unwrap_or(i64::MAX)), |row| row.get(0))?
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
                    std::thread::sleep(REST);
                }
            }
            Ok(empty_log(connection)?)
        })
    }

    /// Empties the log, when somebody kept [`Self::reconcile`] from it; answers as that does.
    fn empty_log(&self) -> Result<bool, IndexError> {
        self.change(|connection, _| Ok(empty_log(connection)?))
    }

    fn change<T>(&self, work: impl FnOnce(&Connection, &Archive) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let archive = Archive::open(&self.directory)?;
        let result = self.open_for(&archive).and_then(|connection| work(&connection, &archive));
        if let Err(IndexError::Index(error)) = &result
            && matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
            )
        {
            self.remove();
        }
        result
    }

    /// The index of the store that is there now.
    fn open_for(&self, archive: &Archive) -> Result<Connection, IndexError> {
        let connection = self.open()?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == VERSION && is_of(&connection, archive)? {
            return Ok(connection);
        }
        drop(connection);
        tracing::info!("the search index is of another store, or of another version: it is made anew");
        self.remove();
        Ok(self.open()?)
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        use std::os::unix::fs::OpenOptionsExt;
        let is_irregular = |path: PathBuf| path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file());
        if SUFFIXES.iter().any(|suffix| is_irregular(self.member(suffix))) {
            self.remove();
        }
        let path = self.path();
        // SQLite gives its log the mode of the database.
        let _ = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW).open(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
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

    /// For a reader: the index of this store and its watermark; `None` when there is none, or none that can be used.
    #[must_use]
    pub fn read(&self, archive: &Archive) -> Option<Reader> {
        let path = self.path();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(path, flags).ok()?;
        connection.busy_timeout(Duration::from_secs(2)).ok()?;
        let watermark = watermark(&connection).ok()?;
        is_of(&connection, archive).ok()?.then_some(())?;
        Some(Reader { connection, watermark })
    }

    /// Feeds in the background until it is cancelled: when the store is quiet, or has not been for long.
    pub async fn keep(self, metrics: Arc<Metrics>, stop: CancellationToken) {
        let mut pace = Pace::new(Instant::now());
        let (mut pruned, mut log_is_read) = (None, false);
        loop {
            let seen = metrics.messages_pruned.get();
            // A prune is no commit of a group, and what it took out must leave the index on a quiet host, too.
            if pace.is_due(metrics.commits.get().saturating_add(seen), Instant::now()) {
                let (index, stopping, has_pruned) = (self.clone(), stop.clone(), pruned != Some(seen));
                let round = tokio::task::spawn_blocking(move || {
                    while !stopping.is_cancelled() && index.feed(ROUND_ROWS)? {}
                    let reconciled = if has_pruned && !stopping.is_cancelled() { Some(index.reconcile(ALL)?) } else { None };
                    Ok::<_, IndexError>(reconciled)
                });
                match round.await {
                    Ok(Ok(reconciled)) => {
                        pruned = Some(seen);
                        log_is_read = reconciled.map_or(log_is_read, |emptied| !emptied);
                        pace.fed(Instant::now());
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "the search index is fed later"),
                    Err(_) => return,
                }
            } else if log_is_read {
                let index = self.clone();
                match tokio::task::spawn_blocking(move || index.empty_log()).await {
                    Ok(emptied) => log_is_read = !matches!(emptied, Ok(true)),
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

/// Whether this is the index of that store as it is now. Rows are numbered upwards and no number is given out twice, so the
/// youngest indexed row that the store still has tells: in another store, or in an older copy that has gone on since, it is
/// another row.
fn is_of(connection: &Connection, archive: &Archive) -> Result<bool, IndexError> {
    let watermark = watermark(connection)?;
    if !archive.has_given_out(watermark)? {
        return Ok(false);
    }
    let mut before = i64::MAX;
    loop {
        let rows: Vec<(i64, u32)> = connection
            .prepare_cached("SELECT rowid, crc FROM words WHERE rowid < ?1 ORDER BY rowid DESC LIMIT ?2")?
            .query_map((before, i64::try_from(STEP_ROWS).unwrap_or(i64::MAX)), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let Some((last, _)) = rows.last() else { break };
        before = *last;
        for (row, crc) in rows {
            if let Some(stored) = archive.checksum(RowId(row))? {
                return Ok(stored == crc);
            }
        }
    }
    // Nothing that is indexed is there any more: then nothing that is there may count as indexed.
    Ok(archive.rows_before(RowId(watermark.0.saturating_add(1)), RowId(0), 1)?.is_empty())
}

/// Answers whether it is empty: not while somebody reads it.
fn empty_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).map(|busy: i64| busy == 0)
}

/// Feeds at most so many rows in an open transaction; answers how many.
fn feed_rows(connection: &Connection, archive: &Archive, limit: usize) -> Result<usize, IndexError> {
    let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO words (rowid, text, crc) VALUES (?1, ?2, ?3)")?;
    let (mut fed, mut last) = (0, watermark(connection)?);
    while fed < limit {
        let rows = archive.contents(last, STEP_ROWS.min(limit - fed))?;
        let Some((newest, _)) = rows.last() else { break };
        (last, fed) = (*newest, fed + rows.len());
        for (row, content) in rows {
            if let Some(content) = content {
                insert.execute((row.0, indexed(&content.text), content.crc))?;
            }
        }
    }
    connection.execute("UPDATE state SET value = ?1 WHERE name = 'watermark'", [last.0])?;
    Ok(fed)
}

/// When to feed. To index a message costs more than to take it in and deliver it, so it waits until the store has been
/// quiet for a moment; searching reads what is not indexed, so nobody misses it. Pure.
struct Pace {
    /// Changes of the store at the last look, and since when there were no more.
    seen: u64,
    quiet_since: Instant,
    /// The changes there were when the last feeding began.
    begun: u64,
    /// All changes up to this one were fed; `None`: nothing was fed yet.
    fed: Option<u64>,
    waits_since: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { seen: 0, quiet_since: now, begun: 0, fed: None, waits_since: now }
    }

    /// Looks at the number of changes: of groups written and messages pruned.
    fn is_due(&mut self, changes: u64, now: Instant) -> bool {
        if changes != self.seen {
            if self.fed == Some(self.seen) {
                self.waits_since = now;
            }
            (self.seen, self.quiet_since) = (changes, now);
        }
        let quiet = now.duration_since(self.quiet_since) >= QUIET;
        let overdue = now.duration_since(self.waits_since) >= PATIENCE;
        self.begun = changes;
        self.fed != Some(changes) && (quiet || overdue)
    }

    /// All that stood in the store when it was due is fed.
    fn fed(&mut self, now: Instant) {
        self.fed = Some(self.begun);
        self.waits_since = now;
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_the_last_run_left_is_fed_once_the_store_is_quiet() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(!pace.is_due(0, start));
        assert!(pace.is_due(0, start + QUIET));
        pace.fed(start);
        assert!(!pace.is_due(0, start + 10 * QUIET));
    }

    #[test]
    fn a_busy_store_is_left_alone_until_it_is_quiet() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for second in 1..20_u32 {
            assert!(!pace.is_due(u64::from(second), start + second * SECOND));
        }
        assert!(pace.is_due(19, start + 19 * SECOND + QUIET));
        pace.fed(start + 21 * SECOND);
        assert!(!pace.is_due(19, start + 60 * SECOND));
        assert!(!pace.is_due(20, start + 61 * SECOND));
        assert!(pace.is_due(20, start + 61 * SECOND + QUIET));
    }

    #[test]
    fn a_store_that_is_never_quiet_is_fed_all_the_same() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let due = (1..1_000_u32).find(|second| pace.is_due(u64::from(*second), start + *second * SECOND));
        assert_eq!(due.map(|second| second * SECOND), Some(PATIENCE));
    }
}
