//! Opens the database: creates it, checks that it is ours and whole in shape, migrates it.
//!
//! Whatever is not exactly right is *damaged* and goes to salvage; only a database that a newer daemon wrote is left
//! alone, and a disk that says no is an error.

use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::StoreError;
use super::files::Files;
use super::log_meter::LogMeter;
use super::{backups_due, schema};
use crate::config::Durability;

/// Steps from one version to the next: the version reached and its SQL.
const MIGRATIONS: &[(i32, &str)] = &[];

/// How long a group waits for somebody else's lock (a person with `sqlite3`).
pub(super) const BUSY: Duration = Duration::from_millis(500);

/// SQLite takes a file shorter than its own header for an empty one.
const HEADER_BYTES: u64 = 100;

/// How the database was found.
pub(super) enum Opening {
    /// Sound, as far as its shape goes.
    Ready(Connection),
    /// To be set aside and salvaged; the cause, for people.
    Damaged(String),
}

/// What a failure means for the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Its content is wrong.
    Damage,
    /// The disk (or somebody's lock) says no; the content is as good as before.
    Refusal,
}

impl Fault {
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // Unknown is a missing table or column, and no code at all a value of another type than its column: our SQL
            // is right, so the file is not.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) | None => Self::Damage,
            Some(_) => Self::Refusal,
        }
    }
}

/// The error for content that SQLite reads and that cannot be: as if it had met the damage itself.
pub(super) fn damage(what: &str) -> rusqlite::Error {
    let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(corrupt, Some(what.to_owned()))
}

/// Opens the database for the writer.
///
/// # Errors
/// When the disk says no, or a newer daemon wrote it.
pub(super) fn open(files: &Files, durability: Durability, log: &LogMeter) -> Result<Opening, StoreError> {
    if let Some(path) = files.irregular() {
        return Ok(Opening::Damaged(format!("{} is no regular file", path.display())));
    }
    if files.database_len().is_some_and(|len| (1..HEADER_BYTES).contains(&len)) {
        return Ok(Opening::Damaged(String::from("it is shorter than the header of a database")));
    }
    let fresh = files.database_len().is_none_or(|len| len == 0);
    if fresh {
        if files.wal_len() > 0 {
            return Ok(Opening::Damaged(String::from("the log is there without its database")));
        }
        files.create_database()?;
    }
    files.make_private()?;
    match prepare(files, durability, fresh, log) {
        Ok(opening) => Ok(opening),
        Err(Unsound::Newer(found)) => {
            Err(StoreError::NewerSchema { path: files.database.clone(), found, known: schema::VERSION })
        }
        Err(Unsound::Sqlite(error)) => match Fault::of(&error) {
            Fault::Damage => Ok(Opening::Damaged(error.to_string())),
            Fault::Refusal => Err(StoreError::database("open the database", &files.database)(error)),
        },
    }
}

/// What SQLite is asked to sync.
pub(super) const fn synchronous(durability: Durability) -> &'static str {
    match durability {
        Durability::Fsync => "full",
        Durability::Os => "normal",
    }
}

enum Unsound {
    Sqlite(rusqlite::Error),
    Newer(i32),
}

impl From<rusqlite::Error> for Unsound {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn prepare(files: &Files, durability: Durability, fresh: bool, log: &LogMeter) -> Result<Opening, Unsound> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(&files.database, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    // The disk may be failing when it is closed; the log is as durable as the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Plans do not depend on values: SQLite would compile a statement anew for every value bound to its LIMIT.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if fresh {
        connection.pragma_update(None, "page_size", i64::try_from(schema::PAGE_BYTES).unwrap_or(4096))?;
    }
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let shape = shape_of(&connection)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // NORMAL: an acknowledged write is in the kernel's hands (a kill loses nothing), and the log is synced before the
    // database is, so that a power cut loses the youngest writes and damages nothing.
    connection.pragma_update(None, "synchronous", synchronous(durability))?;
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cache_size", -4096)?;
    // A checkpoint is the writer's word: after it has acknowledged, or beside it.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    log.watch(&mut connection)?;

    if shape.is_empty() && version == 0 && (application == 0 || application == schema::APPLICATION_ID) {
        create(&connection)?;
        return Ok(Opening::Ready(connection));
    }
    let ours = shape_of_ours()?;
    if application == schema::APPLICATION_ID && version > schema::VERSION && version < 1000 && shape != ours {
        return Err(Unsound::Newer(version));
    }
    if application != schema::APPLICATION_ID {
        return Ok(Opening::Damaged(String::from("it is no history of chat-historyd")));
    }
    if version < schema::VERSION && !MIGRATIONS.is_empty() {
        migrate(&connection, version)?;
    } else if version != schema::VERSION {
        return Ok(Opening::Damaged(format!("its version is {version}, its tables say otherwise")));
    }
    // Somebody may have added an index or ANALYZEd it: ours must be there, others may.
    let shape = shape_of(&connection)?;
    if !ours.iter().all(|object| shape.contains(object)) {
        return Ok(Opening::Damaged(String::from("its tables are not ours")));
    }
    connection.execute_batch(backups_due::TABLE)?;
    Ok(Opening::Ready(connection))
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {} {}; PRAGMA application_id = {}; PRAGMA user_version = {}; COMMIT;",
        schema::V1,
        backups_due::TABLE,
        schema::APPLICATION_ID,
        schema::VERSION
    ))
}

fn migrate(connection: &Connection, from: i32) -> rusqlite::Result<()> {
    for (version, sql) in MIGRATIONS.iter().filter(|(version, _)| *version > from) {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {version}; COMMIT;"))?;
    }
    Ok(())
}

/// What is of no version does not count.
fn shape_of(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare(
        "SELECT name, sql FROM sqlite_master
         WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' AND name <> 'backups_due' ORDER BY name",
    )?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn shape_of_ours() -> rusqlite::Result<Vec<(String, String)>> {
    let memory = Connection::open_in_memory()?;
    memory.execute_batch(schema::V1)?;
    shape_of(&memory)
}
