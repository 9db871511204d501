//! How much goes into the log, as SQLite itself counts it after each commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;

/// What stands in front of each page in the log (<https://sqlite.org/fileformat2.html#walformat>).
const FRAME_HEADER_BYTES: u64 = 24;

/// What stands at the beginning of the log.
const HEADER_BYTES: u64 = 32;

/// What one writer after the other appends to the log.
#[derive(Debug, Default)]
pub(super) struct LogMeter {
    total: Arc<AtomicU64>,
    length: Arc<AtomicU64>,
}

impl LogMeter {
    /// Counts what is committed through a connection. What its log holds already is counted with the first commit.
    ///
    /// `PRAGMA wal_autocheckpoint` would take the hook away: it is to be set before.
    pub(super) fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let page_bytes: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let frame_bytes = FRAME_HEADER_BYTES + u64::try_from(page_bytes).unwrap_or_default();
        let (total, length) = (Arc::clone(&self.total), Arc::clone(&self.length));
        let mut known = 0;
        connection.wal_hook(Some(move |_: &mut _, frames: i32| {
            let frames = u64::try_from(frames).unwrap_or_default();
            // Fewer than before: the log was written from its beginning again.
            let appended = frames.checked_sub(known).unwrap_or(frames);
            known = frames;
            total.fetch_add(appended * frame_bytes, Ordering::Relaxed);
            length.store(HEADER_BYTES + frames * frame_bytes, Ordering::Relaxed);
            Ok(())
        }))
    }

    /// How many bytes it is so far. It only rises.
    pub(super) fn bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// How far the file of the log was written, from its beginning, by the last commit.
    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_counts_the_bytes_of_the_log_also_when_it_starts_anew() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("t.db");
        let in_log = || std::fs::metadata(place.path().join("t.db-wal")).unwrap().len();
        let mut connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        let meter = LogMeter::default();
        meter.watch(&mut connection).unwrap();
        let fill = |_| assert_eq!(connection.execute("INSERT INTO t VALUES (randomblob(9000))", []).unwrap(), 1);
        connection.execute("CREATE TABLE t (x)", []).unwrap();
        (0..20).for_each(fill);
        let first = in_log() - HEADER_BYTES;
        assert_eq!((meter.bytes(), meter.length()), (first, in_log()));

        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        (0..3).for_each(fill);
        assert_eq!((meter.bytes(), meter.length()), (first + in_log() - HEADER_BYTES, in_log()));
    }
}
