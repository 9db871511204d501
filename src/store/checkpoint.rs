//! Carries the log into the database.
//!
//! Promises: a large log is carried over beside the writer, on a thread and a connection of its own, so that no line waits
//! for it; what the writer appended meanwhile is little, and the writer carries that over itself, so that the log starts
//! anew and stays as small as it is to be. Refuses: to run while the database is being moved or repaired — whoever does
//! that waits for it first.

use std::path::Path;
use std::sync::Arc;
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
