//! Carries the log into the database.
//!
//! Promises: a large log is carried over beside the writer, on a thread and a connection of its own, so that no line waits
//! for it; what the writer appended meanwhile is little, and the writer carries that over itself, so that the log starts
//! anew and stays as small as it is to be. Refuses: to run while the database is being moved or repaired — whoever does
//! that waits for it first.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// How often the file of the log is cut, at most.
const CUT_EVERY: Duration = Duration::from_secs(60);

/// How long the file of the log stays when it is written from its beginning again. What is written while a checkpoint goes on
/// makes it longer than it was meant to be, under load each time: cut each time, everybody would wait for that (7 ms on ext4),
/// and then each group for a second flush, because the file grows. Never cut, its end, which is not reached again, would keep
/// what was deleted long ago.
#[derive(Debug)]
pub(super) struct FileOfLog {
    last_cut: Instant,
}

impl FileOfLog {
    pub(super) const fn new(now: Instant) -> Self {
        Self { last_cut: now }
    }

    /// The log is carried over: what its file may keep when it is written anew.
    pub(super) fn keeps(&mut self, max_bytes: u64, now: Instant) -> u64 {
        if now.saturating_duration_since(self.last_cut) < CUT_EVERY {
            return 2 * log_bytes(max_bytes);
        }
        self.last_cut = now;
        log_bytes(max_bytes)
    }
}

/// What goes on beside the writer.
#[derive(Default)]
pub(super) struct Checkpoint(Option<UnderWay>);

struct UnderWay {
    thread: JoinHandle<rusqlite::Result<()>>,
    /// Set before the writer is poked: a thread that does no more than end counts as over.
    is_over: Arc<AtomicBool>,
}

impl Checkpoint {
    /// Starts one; the writer is poked when it is over. `false`: there is no thread to be had.
    pub(super) fn start(&mut self, shared: &Arc<Shared>) -> bool {
        let is_over = Arc::new(AtomicBool::new(false));
        let (beside, tell) = (Arc::clone(shared), Arc::clone(&is_over));
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || {
            let result = or_later(carry(&beside.files.database, beside.durability));
            tell.store(true, Ordering::Release);
            beside.inbox.poke();
            result
        });
        self.0 = thread.ok().map(|thread| UnderWay { thread, is_over });
        self.is_under_way()
    }

    pub(super) const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Whether one that was under way is over now, and how it ended.
    pub(super) fn ended(&mut self) -> Option<rusqlite::Result<()>> {
        let over = self.0.take_if(|checkpoint| checkpoint.is_over.load(Ordering::Acquire) || checkpoint.thread.is_finished())?;
        Some(over.thread.join().unwrap_or(Ok(())))
    }

    /// Waits for it: nobody else has a hand in the files afterwards. What it met, the writer will meet, too.
    pub(super) fn wait(&mut self) {
        if let Some(checkpoint) = self.0.take() {
            let _ = checkpoint.thread.join();
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

/// Carries into the database what no reader still needs in the log; whether that is all of it, so that the log starts anew.
pub(super) fn carries_all(connection: &Connection) -> rusqlite::Result<bool> {
    or_later(connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (in_log, carried): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(in_log == carried)
    }))
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
pub(super) fn or_later<T: Default>(checkpoint: rusqlite::Result<T>) -> rusqlite::Result<T> {
    use ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull};
    match checkpoint {
        Err(error) if matches!(error.sqlite_error_code(), Some(CannotOpen | DatabaseBusy | DatabaseLocked | DiskFull)) => {
            Ok(T::default())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_log_is_cut_once_a_minute() {
        const MIB: u64 = 1 << 20;
        let start = Instant::now();
        let mut file = FileOfLog::new(start);
        let kept =
            [1, 59, 60, 61, 119, 120, 9000, 9001].map(|seconds| file.keeps(1 << 40, start + Duration::from_secs(seconds)) / MIB);
        assert_eq!(kept, [32, 32, 16, 32, 32, 16, 16, 32]);
    }
}
