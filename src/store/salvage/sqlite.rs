//! The other way in: SQLite itself, on a copy, table by table, row by row, over errors.
//!
//! It sees what `View::Committed` sees; it is asked so that no row is lost to a mistake of our own page reader.
//! Promises: the damaged files are not touched, the copy is removed again, the work ends: rows and new starts are bounded.

use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::record::Value;
use super::rows::{Kind, Row};
use super::staging::{Staging, Trust};

/// How often a table is tried again behind a row that could not be read.
const MAX_RESTARTS: u32 = 256;

/// The tables read, with the columns of version 1 (the key stands in front, as null in the record itself).
const TABLES: [(Kind, &str, &str); 5] = [
    (
        Kind::Messages,
        "messages",
        "id, session, uuid, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc",
    ),
    (Kind::Held, "held", "id, session, uuid, text, time_ms, recorded_ms, item_id, crc"),
    (Kind::Sessions, "sessions", "id, mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped"),
    (Kind::Cursors, "cursors", "session, row, offset, last_report_ms"),
    (Kind::Rejected, "rejected", "row, session, reason, answer, rejected_ms"),
];

/// A copy of database and WAL that is removed when it goes out of scope.
struct Copy {
    db: PathBuf,
}

impl Copy {
    fn beside(db: &Path, wal: &Path) -> std::io::Result<Self> {
        let copy = Self { db: db.with_file_name("salvage-copy.db") };
        copy.remove();
        std::fs::copy(db, &copy.db)?;
        if wal.is_file() {
            std::fs::copy(wal, copy.sibling("-wal"))?;
        }
        Ok(copy)
    }

    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut path = self.db.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn remove(&self) {
        for path in [self.db.clone(), self.sibling("-wal"), self.sibling("-shm"), self.sibling("-journal")] {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Stages every row SQLite can read. `false` when it could not open the database at all.
///
/// # Errors
/// Only when the target fails: what the damaged file answers is never an error.
pub(super) fn read(db: &Path, wal: &Path, most_rows: u64, staging: &mut Staging<'_>) -> rusqlite::Result<bool> {
    if !db.is_file() {
        return Ok(false);
    }
    let Ok(copy) = Copy::beside(db, wal) else { return Ok(false) };
    let Ok(source) = Connection::open_with_flags(&copy.db, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
    else {
        return Ok(false);
    };
    let mut budget = most_rows;
    let mut opened = false;
    for (kind, table, columns) in TABLES {
        opened |= read_table(&source, kind, table, columns, &mut budget, staging)?;
    }
    if let Ok(value) = source.query_row("SELECT value FROM counters WHERE name = 'next_row'", [], |row| row.get::<_, i64>(0))
        && let Some(row) = Row::new(Kind::Counters, 0, &[Value::Text("next_row"), Value::Integer(value)])
    {
        staging.take(&row, Trust::CommittedAgain)?;
    }
    Ok(opened)
}

fn read_table(
    source: &Connection,
    kind: Kind,
    table: &str,
    columns: &str,
    budget: &mut u64,
    staging: &mut Staging<'_>,
) -> rusqlite::Result<bool> {
    let sql = format!("SELECT {columns} FROM {table} NOT INDEXED WHERE rowid > ?1 ORDER BY rowid");
    let Ok(mut statement) = source.prepare(&sql) else { return Ok(false) };
    let width = statement.column_count();
    let mut last = i64::MIN;
    let mut step = 1_i64;
    for _ in 0..MAX_RESTARTS {
        let Ok(mut rows) = statement.query([last]) else { return Ok(false) };
        loop {
            match rows.next() {
                Ok(None) => return Ok(true),
                Ok(Some(row)) => {
                    let Some(left) = budget.checked_sub(1) else { return Ok(true) };
                    *budget = left;
                    let Ok(rowid) = row.get::<_, i64>(0) else { continue };
                    if rowid <= last {
                        break; // the tree leads in a circle
                    }
                    (last, step) = (rowid, 1);
                    let values: Vec<_> = (0..width).map_while(|column| row.get_ref(column).ok().and_then(value)).collect();
                    let row = if values.len() == width { Row::new(kind, rowid, &values) } else { Row::damaged(kind, rowid) };
                    if let Some(row) = row {
                        staging.take(&row, Trust::CommittedAgain)?;
                    }
                }
                Err(_) => break,
            }
        }
        last = last.max(0).saturating_add(step);
        step = step.saturating_mul(2);
    }
    Ok(true)
}

fn value(found: ValueRef<'_>) -> Option<Value<'_>> {
    match found {
        ValueRef::Null => Some(Value::Null),
        ValueRef::Integer(number) => Some(Value::Integer(number)),
        ValueRef::Text(text) => std::str::from_utf8(text).ok().map(Value::Text),
        ValueRef::Blob(blob) => Some(Value::Blob(blob)),
        ValueRef::Real(_) => None,
    }
}
