//! A few read-only connections. They never block the writer, and a failing one is thrown away.
//!
//! One idle connection is kept open as long as the database is in place: it keeps the shared index of the log alive, so
//! that the writer can reopen the database on a full disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::error::StoreError;
use super::inbox::Inbox;
use super::open::Fault;

/// Connections that read at once.
const CONNECTIONS: usize = 4;

/// The pool.
pub(super) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    permits: Semaphore,
    inbox: Arc<Inbox>,
}

struct Pool {
    idle: Vec<Connection>,
    /// Rises when another database takes the place of this one.
    generation: u64,
    /// `false` while no database is in place.
    in_place: bool,
    /// `false` while another file may be at the path than the one that is open.
    may_connect: bool,
}

impl Readers {
    pub(super) fn new(path: PathBuf, inbox: Arc<Inbox>) -> Self {
        let pool = Mutex::new(Pool { idle: Vec::new(), generation: 0, in_place: true, may_connect: true });
        Self { path, pool, permits: Semaphore::new(CONNECTIONS), inbox }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn generation(&self) -> u64 {
        self.pool().generation
    }

    /// Opens the connection that is kept.
    pub(super) fn warm_up(&self) -> Result<(), StoreError> {
        self.run(|connection| connection.query_row("SELECT count(*) FROM counters", [], |_| Ok(())))
    }

    /// The database is being moved: nobody reads until [`Self::put_in_place`].
    pub(super) fn take_away(&self) {
        let mut pool = self.pool();
        (pool.in_place, pool.idle) = (false, Vec::new());
        pool.generation += 1;
    }

    /// The open file is not at its path: it is read by the connections that have it, until [`Self::put_in_place`].
    pub(super) fn keep_to_open_ones(&self) {
        self.pool().may_connect = false;
    }

    /// Another database is in place, or the same again.
    pub(super) fn put_in_place(&self) {
        let mut pool = self.pool();
        (pool.in_place, pool.may_connect) = (true, true);
    }

    /// Runs a short read on a thread where it may block.
    pub(super) async fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _permit = self.permits.acquire().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || readers.run(read)).await.map_err(|_| StoreError::Unavailable)?
    }

    /// Runs a short read here. Blocks.
    pub(super) fn run<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let (connection, generation) = {
            let mut pool = self.pool();
            if !pool.in_place {
                return Err(StoreError::Unavailable);
            }
            let idle = pool.idle.pop();
            if idle.is_none() && !pool.may_connect {
                return Err(StoreError::Unavailable);
            }
            (idle, pool.generation)
        };
        let result = connection.map_or_else(|| self.connect(), Ok).and_then(|connection| Ok((read(&connection)?, connection)));
        match result {
            Ok((value, connection)) => {
                let mut pool = self.pool();
                if pool.generation == generation {
                    pool.idle.push(connection);
                }
                Ok(value)
            }
            Err(error) => {
                if Fault::of(&error) == Fault::Damage {
                    self.inbox.report_damage(generation, error.to_string());
                }
                Err(StoreError::database("read", &self.path)(error))
            }
        }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        // Plans do not depend on values: SQLite would compile a statement anew for every value bound to its LIMIT.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "cache_size", -2048)?;
        Ok(connection)
    }
}
