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

/// What goes on beside the writer.
#[derive(Default)]
pub(super) struct Checkpoint(Option<UnderWay>);

struct UnderWay {
    thread: JoinHandle<rusqlite::Result<()>>,
    /// Set before the writer is poked: a thread that does no more than end counts as over.
    is_over: Arc<AtomicBool>,
}

impl Checkpoint {
    /// Starts one; the writer is poked when it is over. `false`: there is no thread to be had, and none is under way.
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

/// Carries into the database what no reader still needs in the log; whether that is all of it. The log then starts anew, unless
/// somebody reads its very end just then.
pub(super) fn carries_all(connection: &Connection) -> rusqlite::Result<bool> {
    or_later(connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        // Another process that carries it over just then leaves neither number to say.
        let (is_busy, in_log, carried): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(!is_busy && in_log == carried)
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
    use std::fs::OpenOptions;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    use super::*;

    #[test]
    fn what_another_process_carries_over_just_then_is_not_carried_by_us() {
        let place = tempfile::tempdir().unwrap();
        let connection = Connection::open(place.path().join("t.db")).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute("CREATE TABLE t (x)", []).unwrap();
        // As SQLite locks out others while it carries a log over: the second of the locks, which begin at byte 120.
        let index = OpenOptions::new().read(true).write(true).open(place.path().join("t.db-shm")).unwrap();
        let (l_type, l_whence) = (i16::try_from(libc::F_WRLCK).unwrap(), i16::try_from(libc::SEEK_SET).unwrap());
        let lock = |l_type| {
            let place = libc::flock { l_type, l_whence, l_start: 121, l_len: 1, l_pid: 0 };
            fcntl(&index, FcntlArg::F_OFD_SETLK(&place)).unwrap();
        };
        lock(l_type);
        assert!(!carries_all(&connection).unwrap());
        lock(i16::try_from(libc::F_UNLCK).unwrap());
        assert!(carries_all(&connection).unwrap());
    }
}
