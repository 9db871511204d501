//! How much goes into the log, as SQLite itself counts it after each commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;

/// What stands in front of each page in the log (<https://sqlite.org/fileformat2.html#walformat>).
const FRAME_HEADER_BYTES: u64 = 24;

/// What one connection of the writer after the other appends to the log.
#[derive(Debug, Default)]
pub(super) struct LogMeter {
    total: Arc<AtomicU64>,
    /// How many frames the log had after the last commit. A connection that is opened anew finds them there.
    frames: Arc<AtomicU64>,
}

impl LogMeter {
    /// Counts what is committed through a connection; at the first commit of the process all that the log holds.
    ///
    /// `PRAGMA wal_autocheckpoint` would take the hook away: it is to be set before.
    pub(super) fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let page_bytes: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let frame_bytes = FRAME_HEADER_BYTES + u64::try_from(page_bytes).unwrap_or_default();
        let (total, known) = (Arc::clone(&self.total), Arc::clone(&self.frames));
        connection.wal_hook(Some(move |_: &mut _, frames: i32| {
            let frames = u64::try_from(frames).unwrap_or_default();
            // Fewer than before: the log was written from its beginning again, or is another one. A transaction as long as all
            // that was there before is counted too low then, which makes a checkpoint late, not absent.
            let appended = frames.checked_sub(known.swap(frames, Ordering::Relaxed)).unwrap_or(frames);
            total.fetch_add(appended * frame_bytes, Ordering::Relaxed);
            Ok(())
        }))
    }

    /// How many bytes it is so far. It only rises.
    pub(super) fn bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The log begins with a header of its own.
    const HEADER_BYTES: u64 = 32;

    fn watched(path: &Path, meter: &LogMeter) -> Connection {
        let mut connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        meter.watch(&mut connection).unwrap();
        connection
    }

    fn fill(connection: &Connection, rows: usize) {
        for _ in 0..rows {
            connection.execute("INSERT INTO t VALUES (randomblob(9000))", []).unwrap();
        }
    }

    #[test]
    fn the_meter_counts_the_bytes_of_the_log_also_when_it_starts_anew() {
        let place = tempfile::tempdir().unwrap();
        let in_log = || std::fs::metadata(place.path().join("t.db-wal")).unwrap().len() - HEADER_BYTES;
        let meter = LogMeter::default();
        let connection = watched(&place.path().join("t.db"), &meter);
        connection.execute("CREATE TABLE t (x)", []).unwrap();
        fill(&connection, 20);
        let first = in_log();
        assert_eq!(meter.bytes(), first);

        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        fill(&connection, 3);
        assert_eq!(meter.bytes(), first + in_log());
    }

    #[test]
    fn what_the_log_holds_is_not_counted_again_when_the_database_is_opened_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("t.db");
        let in_log = || std::fs::metadata(place.path().join("t.db-wal")).unwrap().len() - HEADER_BYTES;
        let meter = LogMeter::default();
        let connection = watched(&path, &meter);
        connection.execute("CREATE TABLE t (x)", []).unwrap();
        fill(&connection, 20);
        drop(connection);
        fill(&watched(&path, &meter), 1);
        assert_eq!(meter.bytes(), in_log());

        fill(&watched(&path, &LogMeter::default()), 1);
        let of_a_new_process = LogMeter::default();
        fill(&watched(&path, &of_a_new_process), 1);
        assert_eq!(of_a_new_process.bytes(), in_log(), "what a kill left waits for its checkpoint, too");
    }
}
