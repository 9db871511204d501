//! Carries the log into the database.
//!
//! Promises: a large log is carried over beside the writer, on a thread and a connection of its own, so that no line waits
//! for it; what the writer appended meanwhile is little, and the writer carries that over itself, so that the log starts
//! anew and stays as small as it is to be. Refuses: to run while the database is being moved or repaired — whoever does
//! that waits for it first.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::open::synchronous;
use super::shared::Shared;
use crate::config::Durability;

/// The log is checkpointed at this size at the latest.
const LOG_BYTES: u64 = 16 << 20;

/// The size at which the log is checkpointed: small beside the limit of the store.
pub(super) fn log_bytes(max_bytes: u64) -> u64 {
    (max_bytes / 8).clamp(64 << 10, LOG_BYTES)
}

/// How often the file of the log is cut to what is used of it.
const CUT_EVERY: Duration = Duration::from_secs(60);

/// How long the file of the log stays when it is written from its beginning again. What is written while a checkpoint goes on
/// makes it longer than it was meant to be, under load each time: cut each time, everybody would wait for that (7 ms on ext4),
/// and then each group for a second flush, because the file grows. Never cut, the end of a file that is not reached again
/// would keep for ever what was deleted long ago.
#[derive(Debug)]
pub(super) struct FileOfLog {
    longest: u64,
    since: Instant,
}

impl FileOfLog {
    pub(super) const fn new(now: Instant) -> Self {
        Self { longest: 0, since: now }
    }

    /// The log was carried over and had this length: what its file may keep when it is written anew.
    pub(super) fn keeps(&mut self, length: u64, max_bytes: u64, now: Instant) -> u64 {
        self.longest = self.longest.max(length);
        if now.saturating_duration_since(self.since) < CUT_EVERY {
            return 2 * log_bytes(max_bytes);
        }
        self.since = now;
        std::mem::take(&mut self.longest)
    }
}

/// What goes on beside the writer.
#[derive(Default)]
pub(super) struct Checkpoint(Option<JoinHandle<rusqlite::Result<()>>>);

impl Checkpoint {
    /// Starts one, unless one is under way. The writer is poked when it is over.
    pub(super) fn start(&mut self, shared: &Arc<Shared>) {
        if self.0.is_some() {
            return;
        }
        let beside = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || {
            let result = or_later(carry(&beside.files.database, beside.durability));
            beside.inbox.poke();
            result
        });
        // Without a thread there is none now: the log only grows, and the next group asks again.
        self.0 = thread.ok();
    }

    pub(super) const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Whether one that was under way is over now, and how it ended.
    pub(super) fn ended(&mut self) -> Option<rusqlite::Result<()>> {
        let thread = self.0.take_if(|thread| thread.is_finished())?;
        Some(thread.join().unwrap_or(Ok(())))
    }

    /// Waits for it: nobody else has a hand in the files afterwards. What it met, the writer will meet, too.
    pub(super) fn wait(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

/// Carries the log over as far as it is written now, without making the writer wait.
fn carry(database: &Path, durability: Durability) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", synchronous(durability))?;
    // The second one carries what was written during the first, so that next to nothing is left for the writer.
    now(&connection, "PASSIVE")?;
    now(&connection, "PASSIVE")
}

/// Carries the log into the database, here and now.
pub(super) fn now(connection: &Connection, kind: &str) -> rusqlite::Result<()> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |_| Ok(()))
}

/// Carries the whole log into the database, here and now; whether nothing is left in it.
pub(super) fn whole(connection: &Connection) -> bool {
    let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    is_busy.is_ok_and(|is_busy| !is_busy)
}

/// A checkpoint that a long reader or a full disk stops is made up for later: the log keeps everything meanwhile. So does
/// one without a file descriptor to be had, which the writer, who has its own, does not need.
pub(super) fn or_later(checkpoint: rusqlite::Result<()>) -> rusqlite::Result<()> {
    use ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull};
    match checkpoint {
        Err(error) if matches!(error.sqlite_error_code(), Some(CannotOpen | DatabaseBusy | DatabaseLocked | DiskFull)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_log_is_cut_once_a_minute_to_the_longest_that_was_used_since() {
        const MIB: u64 = 1 << 20;
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut file = FileOfLog::new(start);
        let mut keeps = |length, seconds| file.keeps(length * MIB, 1 << 40, at(seconds)) / MIB;
        assert_eq!([keeps(17, 1), keeps(25, 2), keeps(16, 59)], [32, 32, 32]);
        assert_eq!(keeps(18, 60), 25, "the longest of the minute");
        assert_eq!(keeps(17, 61), 32, "not again at once");
        assert_eq!(keeps(16, 120), 17, "what was used before no longer counts");
        assert_eq!(keeps(16, 9000), 16, "a log that fills slowly is cut each time");
    }
}
