//! Reading what is readable from a damaged store.
//!
//! Two ways, and the union of what they find: SQLite itself on a copy, over errors; and a page reader of our own, over
//! every page of the database and every frame of the WAL, that needs neither b-tree nor header nor schema.
//!
//! Promises: never a panic and never an altered row, whatever the bytes (a message or held transcript is taken only with
//! a checksum that verifies); memory for a page and a record, plus 24 bytes for each frame of the WAL; an end. With an
//! undamaged WAL nothing deleted comes back: of each page only the last committed version is read. With a damaged one
//! rows deleted since the last checkpoint may, because an older page may be the only readable one.
//! The damaged files are only read; `salvage-copy.db` beside them comes and goes.
//!
//! Refuses: to guess. Messages whose session has lost both copies of its identity have nowhere to go: they stay in the
//! set-aside file and are counted. A cursor without proof is dropped, and its session sent again. `streams` and
//! `waiting_devices` are not carried over: a wrong `last_seq` would lose lines, a missing one only has unacknowledged
//! lines resent; a device that waits simply starts to wait anew.
//!
//! Called by the store alone. The target must stand elsewhere than the live database until `salvage` has returned
//! `Ok`: it is written in several transactions.

mod files;
mod page;
mod record;
mod rows;
mod settle;
mod sqlite;
mod staging;
mod wal;

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use self::files::{Bytes, Pages, View};
use self::page::cells;
use self::record::Header;
use self::rows::{Kind, Row};
use self::staging::{Staging, Trust};
use self::wal::Layout;

/// The files that were moved aside. Either may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFiles {
    /// The database.
    pub db: PathBuf,
    /// Its write-ahead log.
    pub wal: PathBuf,
}

impl DamagedFiles {
    /// A database and the WAL beside it, under the name SQLite gives it.
    #[must_use]
    pub fn beside(db: &Path) -> Self {
        let mut wal = db.as_os_str().to_owned();
        wal.push("-wal");
        Self { db: db.to_path_buf(), wal: wal.into() }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SalvageReport {
    /// Messages now in the target.
    pub messages: u64,
    /// Messages recognised whose checksum fails: they stay in the set-aside file.
    pub messages_damaged: u64,
    /// Sound messages of sessions whose identity is lost: they stay in the set-aside file.
    pub messages_without_session: u64,
    /// Held transcripts now in the target.
    pub held: u64,
    /// Held transcripts recognised whose checksum fails.
    pub held_damaged: u64,
    /// Sound held transcripts of sessions whose identity is lost.
    pub held_without_session: u64,
    /// Sessions now in the target.
    pub sessions: u64,
    /// Those of them whose row was lost and that were made from the index and their messages: open, without agent.
    pub sessions_invented: u64,
    /// Sessions that have messages or held transcripts but no identity.
    pub sessions_lost: u64,
    /// Cursors believed.
    pub cursors: u64,
    /// Sessions with messages whose cursor was found and not believed: sent again.
    pub cursors_lost: u64,
    /// Sessions with messages and without a cursor: the former, those never delivered to, and those whose cursor could
    /// not be read at all.
    pub sessions_without_cursor: u64,
    /// Rejections now in the target.
    pub rejected: u64,
    /// The row id to go on with (also in `counters`): well above every id ever given out.
    pub next_row: i64,
    /// Pages of the database file.
    pub pages: u64,
    /// Pages and frames that could not be read whole.
    pub unreadable_pages: u64,
    /// Frames of the WAL's last generation.
    pub wal_frames: u64,
    /// Those of them whose checksum fails.
    pub wal_frames_damaged: u64,
    /// SQLite could read at least one table.
    pub sqlite_could_read: bool,
    /// Messages that only SQLite found.
    pub messages_by_sqlite_alone: u64,
}

/// Brings what is readable in `damaged` into `target`, a fresh database with the tables of version 1.
///
/// # Errors
/// Only when the target cannot be written. The target is then to be thrown away.
pub fn salvage(damaged: &DamagedFiles, target: &mut Connection) -> Result<SalvageReport, rusqlite::Error> {
    let outcome = bring_over(damaged, target);
    if outcome.is_err() && !target.is_autocommit() {
        let _ = target.execute_batch("ROLLBACK");
    }
    outcome
}

/// Whether every byte of the files can be read now: what a disk does not give may still be there.
pub(super) fn is_readable(damaged: &DamagedFiles) -> bool {
    [&damaged.db, &damaged.wal].into_iter().all(|path| Bytes::open(path).is_readable())
}

/// Whether the log of a database is damaged in front of finished transactions, which SQLite would then forget without a
/// word. Reads the log once.
pub(super) fn log_hides_commits(db: &Path) -> bool {
    let files = DamagedFiles::beside(db);
    Layout::of(&Bytes::open(&files.wal)).hides_commits
}

fn bring_over(damaged: &DamagedFiles, target: &Connection) -> Result<SalvageReport, rusqlite::Error> {
    let pages = Pages::open(&damaged.db, &damaged.wal);
    let mut report = SalvageReport {
        pages: u64::from(pages.database_pages()),
        wal_frames: pages.layout.frames,
        wal_frames_damaged: pages.layout.damaged_frames,
        ..SalvageReport::default()
    };
    let mut staging = Staging::new(target)?;
    read_pages(&pages, &mut staging, &mut report)?;
    report.unreadable_pages += pages.wal.failures();
    let by_pages = staging.messages;
    let most_rows = (pages.db.length() + pages.wal.length()) / 8;
    report.sqlite_could_read = sqlite::read(&damaged.db, &damaged.wal, most_rows, &mut staging)?;
    report.messages_by_sqlite_alone = staging.messages - by_pages;
    drop(staging);
    settle::settle(target, &mut report)?;
    target.execute_batch("COMMIT")?;
    Ok(report)
}

/// Every page in its last committed version; and where the WAL is broken, or behind its database, also the versions it
/// would hide.
fn read_pages(pages: &Pages, staging: &mut Staging<'_>, report: &mut SalvageReport) -> Result<(), rusqlite::Error> {
    let mut reader = Reader { pages, staging, page: vec![0; pages.page_bytes] };
    let committed = &pages.layout.committed;
    let behind = pages.layout.database_pages.is_some_and(|known| known < pages.database_pages());
    let in_doubt = pages.layout.broken || behind;
    for number in 1..=pages.database_pages() {
        if committed.contains_key(&number) {
            if in_doubt {
                reader.read(View::Database, number, Trust::Doubtful)?;
            }
        } else if reader.read(View::Committed, number, Trust::Committed)? < pages.page_bytes {
            report.unreadable_pages += 1;
        }
    }
    for number in committed.keys() {
        reader.read(View::Committed, *number, Trust::Committed)?;
    }
    for number in pages.layout.newest.keys() {
        reader.read(View::Newest, *number, Trust::Doubtful)?;
    }
    for frame in &pages.layout.suspects {
        pages.read_frame(*frame, &mut reader.page);
        reader.take_cells(View::Newest, Trust::Doubtful)?;
    }
    Ok(())
}

struct Reader<'a, 's, 'c> {
    pages: &'a Pages,
    staging: &'s mut Staging<'c>,
    page: Vec<u8>,
}

impl Reader<'_, '_, '_> {
    fn read(&mut self, view: View, number: u32, trust: Trust) -> Result<usize, rusqlite::Error> {
        let read = self.pages.read(view, number, &mut self.page);
        self.take_cells(view, trust)?;
        Ok(read)
    }

    fn take_cells(&mut self, view: View, trust: Trust) -> Result<(), rusqlite::Error> {
        for cell in cells(&self.page) {
            let Some(header) = Header::read(cell.local, cell.payload_bytes) else { continue };
            let Some(kind) = Kind::of(cell.tree, &header) else { continue };
            let chains: &[View] = if view == View::Newest { &[View::Newest, View::Claimed] } else { &[view] };
            for chain in chains {
                let gathered = if cell.overflow.is_some() { self.pages.payload(*chain, &cell) } else { None };
                let payload = gathered.as_deref().unwrap_or(cell.local);
                let row = match header.values(payload) {
                    Some(values) => Row::new(kind, cell.rowid, &values),
                    None => Row::damaged(kind, cell.rowid),
                };
                if let Some(row) = &row {
                    self.staging.take(row, trust)?;
                }
                if cell.overflow.is_none() || matches!(row, Some(Row::Message { .. })) {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
