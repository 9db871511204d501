//! A session as everybody shares it: how far it is delivered, what of it is pending, and its youngest rows.
//!
//! Promises: the cursor never goes back, and each message leaves the books once, whoever takes it out. Holds no lock while
//! anybody waits.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::recent::{Recent, RecentBytes};
use super::types::{Cursor, PendingMessage, RowId, SessionKey};
use crate::protocol::SessionIdentity;

/// No row stands there.
const NEVER: i64 = -1;

/// A session as the actor and the uploader share it. As long as somebody holds it (a queued write does, too), its
/// cursor is newer than or equal to the one in the database; the store hands out the same one to everybody.
#[derive(Debug)]
pub struct SessionHandle {
    /// The key in the store.
    pub key: SessionKey,
    /// Whose it is.
    pub identity: SessionIdentity,
    cursor: Mutex<Cursor>,
    /// The row whose parts the offset of the cursor counts; 0: that of the next row, as the database has it.
    begun: AtomicI64,
    /// Sendable messages that came into the books, and that left them, since somebody holds it: two numbers that only rise, so
    /// that whoever waits for what is there now knows when that is through.
    accepted: AtomicU64,
    left: AtomicU64,
    /// No row of the session in the database is younger.
    stored: AtomicI64,
    recent: Mutex<Recent>,
    /// Rows up to here were deleted because a person asked for it, 0 where the store never had one; [`NEVER`]: nobody asked.
    forgotten: AtomicI64,
    /// How many advances of the cursor are not durable yet.
    unwritten: AtomicU32,
    /// Told when some of them are.
    written: Notify,
}

impl SessionHandle {
    /// A handle; only the store makes them.
    #[must_use]
    pub fn new(key: SessionKey, identity: SessionIdentity, cursor: Cursor, pending: u64) -> Self {
        Self {
            key,
            identity,
            cursor: Mutex::new(cursor),
            begun: AtomicI64::new(0),
            accepted: AtomicU64::new(pending),
            left: AtomicU64::new(0),
            stored: AtomicI64::new(i64::MAX),
            recent: Mutex::default(),
            forgotten: AtomicI64::new(NEVER),
            unwritten: AtomicU32::new(0),
            written: Notify::new(),
        }
    }

    /// How far it is delivered, as the uploader last knew.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of a row has been sent, in bytes. What was sent of one that is gone meanwhile says nothing of the next.
    #[must_use]
    pub fn sent_of(&self, row: RowId) -> u64 {
        let cursor = self.cursor();
        let begun = self.begun.load(Ordering::Acquire);
        if begun == 0 || begun == row.0 { cursor.offset } else { 0 }
    }

    /// A part of this row was sent: the offset of the next cursor is its.
    pub fn begin(&self, row: RowId) {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        if ![0, row.0].contains(&self.begun.swap(row.0, Ordering::AcqRel)) {
            // It was of another row.
            cursor.offset = 0;
        }
    }

    /// The row in whose middle the cursor stands may be gone: what is sent in parts starts anew.
    pub(super) fn start_anew(&self) {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner).offset = 0;
    }

    /// Moves the cursor and takes `passed` messages out of the books; answers `false` when they left them before, because
    /// the row was forgotten. The cursor never goes back: an import may have moved it beyond rows that were only kept.
    pub(super) fn advance(&self, cursor: Cursor, passed: u64) -> bool {
        let mut known = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        if (cursor.row, cursor.offset) >= (known.row, known.offset) {
            *known = cursor;
        }
        // Under the lock, as `forget` is: each message leaves the books once.
        let counts = !self.has_forgotten(cursor.row);
        if counts {
            self.remove_pending(passed);
        }
        drop(known);
        self.recent().passed(cursor.row);
        counts
    }

    /// Sendable messages accepted (durable or on the shelf) and neither delivered nor rejected.
    #[must_use]
    pub fn pending(&self) -> u64 {
        let accepted = self.accepted();
        accepted.saturating_sub(self.left())
    }

    /// Sendable messages accepted since somebody holds it, those that were pending then included.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }

    /// How many of the accepted, in order, are no longer pending: delivered, rejected, or forgotten.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Whether this row was forgotten: it must not be sent any more.
    #[must_use]
    pub fn has_forgotten(&self, row: RowId) -> bool {
        let forgotten = self.forgotten.load(Ordering::Acquire);
        // The cursor of a session whose first message is under way stands at 0, and that was not forgotten.
        forgotten > 0 && row.0 <= forgotten
    }

    /// Whether rows of the session were forgotten while somebody held it.
    pub(super) fn was_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire) != NEVER
    }

    /// The rows up to this one were deleted, these sendable ones among them; answers how many of them were undelivered,
    /// which are out of the books then.
    pub(super) fn forget(&self, up_to: RowId, sendable: &[RowId]) -> u64 {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let undelivered = sendable.iter().filter(|row| **row > cursor.row && !self.has_forgotten(**row)).count() as u64;
        self.forgotten.fetch_max(up_to.0, Ordering::AcqRel);
        self.remove_pending(undelivered);
        if up_to > cursor.row {
            cursor.offset = 0;
        }
        drop(cursor);
        self.recent().passed(up_to);
        undelivered
    }

    /// Whether the database may hold rows after the cursor.
    pub(super) fn may_have_stored(&self, after: RowId) -> bool {
        self.stored.load(Ordering::Acquire) > after.0
    }

    /// A handle starts without knowledge of its rows; the writer tells it.
    pub(super) fn set_stored(&self, newest: RowId) {
        self.recent().forget(newest);
        self.stored.store(newest.0, Ordering::Release);
    }

    /// Rows came into the database.
    pub(super) fn note_stored(&self, newest: RowId) {
        self.recent().forget(newest);
        self.stored.fetch_max(newest.0, Ordering::AcqRel);
    }

    /// A row came into the database that will soon be asked for.
    pub(super) fn note_recent(&self, message: PendingMessage, all: &RecentBytes) {
        let row = message.row;
        self.recent().push(RowId(self.stored.load(Ordering::Acquire)), message, all);
        // Known to be there only now that it is kept: nobody may take what is kept for all there is before.
        self.stored.fetch_max(row.0, Ordering::AcqRel);
    }

    pub(super) fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its cursor is durable as it is now.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.unwritten() == 0
    }

    /// How many advances of the cursor are not durable yet.
    pub(super) fn unwritten(&self) -> u32 {
        self.unwritten.load(Ordering::Acquire)
    }

    pub(super) fn add_unwritten(&self) {
        self.unwritten.fetch_add(1, Ordering::AcqRel);
    }

    /// So many advances are durable, or never will be.
    pub(super) fn remove_unwritten(&self, count: u32) {
        if count > 0 {
            self.unwritten.fetch_sub(count, Ordering::AcqRel);
            self.written.notify_one();
        }
    }

    /// Resolves when advances became durable since it last did.
    pub(super) async fn written(&self) {
        self.written.notified().await;
    }

    pub(super) fn add_pending(&self, count: u64) {
        self.accepted.fetch_add(count, Ordering::AcqRel);
    }

    pub(super) fn remove_pending(&self, count: u64) {
        let most = |left: u64| Some(left.saturating_add(count).min(self.accepted()));
        let _ = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MacAddress, SessionId, UnixMillis};

    fn handle(offset: u64) -> SessionHandle {
        let identity = SessionIdentity { mac: MacAddress::from_octets([0; 6]), session_id: SessionId::new("s").unwrap() };
        SessionHandle::new(SessionKey(1), identity, Cursor { row: RowId(50), offset, last_report: UnixMillis(0) }, 3)
    }

    fn part_sent(handle: &SessionHandle, row: i64, offset: u64) {
        handle.begin(RowId(row));
        handle.advance(Cursor { offset, ..handle.cursor() }, 0);
    }

    #[test]
    fn what_was_sent_of_one_row_is_not_taken_for_another() {
        let handle = handle(0);
        part_sent(&handle, 60, 2000);
        assert_eq!((handle.sent_of(RowId(60)), handle.sent_of(RowId(101))), (2000, 0));
        // Row 60 is gone, and the next one is long, too.
        part_sent(&handle, 101, 1010);
        assert_eq!(handle.sent_of(RowId(101)), 1010);
    }

    #[test]
    fn what_an_earlier_run_had_sent_is_of_the_next_row_unless_that_was_forgotten() {
        let handle = handle(700);
        assert_eq!(handle.sent_of(RowId(60)), 700);
        handle.forget(RowId(60), &[RowId(60)]);
        assert_eq!((handle.sent_of(RowId(61)), handle.pending()), (0, 2));
    }

    #[test]
    fn more_leaves_the_books_than_was_in_them_only_on_paper() {
        let handle = handle(0);
        handle.remove_pending(5);
        assert_eq!((handle.pending(), handle.left(), handle.accepted()), (0, 3, 3));
        handle.add_pending(2);
        assert_eq!(handle.pending(), 2);
    }
}
