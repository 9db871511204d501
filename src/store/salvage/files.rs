//! The damaged files, read by page number in one of three views, and payloads gathered over overflow pages.
//!
//! Promises: reads only, never more than a page and one record in memory, ends on any chain. What cannot be read is
//! zeros, and is counted.

use std::cell::Cell as Count;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::page::{Cell, cells, overflow_bytes};
use super::wal::{FRAME_HEADER_BYTES, Layout, frame_at};
use crate::store::schema::{PAGE_BYTES, PAGE_SIZES};

/// The longest record that is put together: far beyond any line the daemon takes in.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// A file that may be missing, short, or fail at any byte.
pub(super) struct Bytes {
    file: Option<File>,
    length: u64,
    failures: Count<u64>,
}

impl Bytes {
    /// Opens a regular file; anything else is empty.
    pub(super) fn open(path: &Path) -> Self {
        let regular = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
        let file = if regular { File::open(path).ok() } else { None };
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        Self { file, length, failures: Count::new(0) }
    }

    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// How many reads failed.
    pub(super) const fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Whether all of it can be read. Reads it once.
    pub(super) fn is_readable(&self) -> bool {
        let mut chunk = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.length && self.failures() == 0 {
            self.fill(at, &mut chunk);
            at += chunk.len() as u64;
        }
        self.failures() == 0
    }

    /// Fills the buffer from `at` on, with zeros where nothing can be read; the number of bytes that could.
    pub(super) fn fill(&self, at: u64, buffer: &mut [u8]) -> usize {
        buffer.fill(0);
        let Some(file) = &self.file else { return 0 };
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.failures.set(self.failures.get() + 1);
                    break;
                }
            }
        }
        done
    }
}

/// Which version of a page is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum View {
    /// The database file alone.
    Database,
    /// What SQLite itself would see: the last committed frame before any damage of the WAL, else the database.
    Committed,
    /// The newest sound frame, else as [`Self::Committed`].
    Newest,
    /// The newest sound frame, else one that claims to be this page, else as [`Self::Committed`].
    Claimed,
}

/// The pages of database and WAL.
pub(super) struct Pages {
    pub(super) db: Bytes,
    pub(super) wal: Bytes,
    pub(super) layout: Layout,
    pub(super) page_bytes: usize,
}

impl Pages {
    /// Opens both files and finds out what the WAL holds.
    pub(super) fn open(db: &Path, wal: &Path) -> Self {
        let (db, wal) = (Bytes::open(db), Bytes::open(wal));
        let layout = Layout::of(&wal);
        let page_bytes = layout.page_bytes.unwrap_or_else(|| page_bytes_of(&db));
        Self { db, wal, layout, page_bytes }
    }

    /// Pages in the database file, a torn last one included.
    pub(super) fn database_pages(&self) -> u32 {
        u32::try_from(self.db.length().div_ceil(self.page_bytes as u64)).unwrap_or(u32::MAX)
    }

    /// Reads a page into the buffer; the number of bytes that could be read.
    pub(super) fn read(&self, view: View, number: u32, buffer: &mut [u8]) -> usize {
        let layout = &self.layout;
        let committed = || layout.committed.get(&number).copied();
        let newest = || layout.newest.get(&number).copied();
        let frame = match view {
            View::Database => None,
            View::Committed => committed(),
            View::Newest => newest().or_else(committed),
            View::Claimed => newest().or_else(|| layout.claimed.get(&number).copied()).or_else(committed),
        };
        match frame {
            Some(frame) => self.read_frame(frame, buffer),
            None if number == 0 => 0,
            None => self.db.fill((u64::from(number) - 1) * self.page_bytes as u64, buffer),
        }
    }

    /// Reads the page in a frame of the WAL.
    pub(super) fn read_frame(&self, frame: u64, buffer: &mut [u8]) -> usize {
        self.wal.fill(frame_at(frame, self.page_bytes) + FRAME_HEADER_BYTES as u64, buffer)
    }

    /// The whole payload of a cell. `None` when its chain is too long, leads in a circle or out of the file.
    pub(super) fn payload(&self, view: View, cell: &Cell<'_>) -> Option<Vec<u8>> {
        if cell.payload_bytes > MAX_RECORD_BYTES {
            return None;
        }
        let mut payload = cell.local.to_vec();
        let mut next = cell.overflow;
        let mut seen = HashSet::new();
        let mut page = vec![0_u8; self.page_bytes];
        while payload.len() < cell.payload_bytes {
            let number = next.filter(|number| *number != 0 && seen.insert(*number))?;
            if self.read(view, number, &mut page) < self.page_bytes {
                return None;
            }
            let (link, content) = page.split_first_chunk::<4>()?;
            let wanted = (cell.payload_bytes - payload.len()).min(overflow_bytes(self.page_bytes));
            payload.extend_from_slice(content.get(..wanted)?);
            next = Some(u32::from_be_bytes(*link));
        }
        Some(payload)
    }
}

/// The page size of a database whose log cannot tell: the one at which more can be read. Its header may be damaged, too.
fn page_bytes_of(db: &Bytes) -> usize {
    let readable = |size: &usize| {
        let mut page = vec![0_u8; *size];
        let mut found = 0;
        for number in 0..db.length().div_ceil(*size as u64) {
            db.fill(number * *size as u64, &mut page);
            found += cells(&page).count();
        }
        found
    };
    PAGE_SIZES.into_iter().rev().max_by_key(readable).unwrap_or(PAGE_BYTES)
}
