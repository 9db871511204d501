//! The uploader's mailbox: which sessions have something new, and that cursors became durable. One entry a session, so it
//! is bounded by the number of sessions, whatever the uploader does meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::session_handle::SessionHandle;
use super::types::{Arrival, SessionKey};

/// Sessions with something new since the uploader last looked.
#[derive(Debug, Default)]
pub struct Arrivals {
    entries: Mutex<HashMap<SessionKey, Arrival>>,
    /// The database was salvaged: sessions may stand in it that nobody could read before.
    rebuilt: AtomicBool,
    /// Cursors became durable.
    cursors: AtomicBool,
    changed: Notify,
}

impl Arrivals {
    /// Waits until something arrived since the last [`Self::take`], or cursors became durable since this was last called. One
    /// waiter: the uploader.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is taken, and nothing is missed by the next call.
    pub async fn changed(&self) {
        loop {
            let notified = self.changed.notified();
            let nothing_new = self.entries.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            let cursors = self.cursors.swap(false, Ordering::AcqRel);
            if !nothing_new || cursors || self.rebuilt.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// Takes everything that arrived.
    #[must_use]
    pub fn take(&self) -> Vec<Arrival> {
        let entries = std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner));
        entries.into_values().collect()
    }

    /// Whether the store was salvaged since this was last asked: then the backlog is to be looked through again.
    #[must_use]
    pub fn take_rebuilt(&self) -> bool {
        self.rebuilt.swap(false, Ordering::AcqRel)
    }

    /// Notes that the store was salvaged while the daemon runs.
    pub(super) fn note_rebuilt(&self) {
        self.rebuilt.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Notes what the writer has accepted, in the order it was accepted, and whether cursors became durable: one wake-up for
    /// all that came of a group.
    pub(super) fn note(&self, news: impl IntoIterator<Item = (Arc<SessionHandle>, u64, Option<bool>)>, cursors: bool) {
        let now = Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = cursors;
        self.cursors.fetch_or(cursors, Ordering::AcqRel);
        for (handle, messages, ended) in news {
            if messages == 0 && ended.is_none() {
                continue;
            }
            any = true;
            let entry = entry_of(&mut entries, &handle, now);
            if entry.messages == 0 {
                entry.since = now;
            }
            entry.messages += messages;
            entry.ended = ended.or(entry.ended);
            entry.had_an_end |= ended == Some(true);
        }
        drop(entries);
        if any {
            self.changed.notify_one();
        }
    }

    /// Notes that messages of a session were forgotten: what it waited for may be over.
    pub(super) fn note_forgotten(&self, handle: &Arc<SessionHandle>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entry_of(&mut entries, handle, Instant::now());
        drop(entries);
        self.changed.notify_one();
    }
}

fn entry_of<'e>(entries: &'e mut HashMap<SessionKey, Arrival>, handle: &Arc<SessionHandle>, since: Instant) -> &'e mut Arrival {
    let new = || Arrival { handle: Arc::clone(handle), messages: 0, since, ended: None, had_an_end: false };
    entries.entry(handle.key).or_insert_with(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MacAddress, SessionId, SessionIdentity};
    use crate::store::types::Cursor;

    fn handle(key: i64) -> Arc<SessionHandle> {
        let identity = SessionIdentity { mac: MacAddress::from_octets([0; 6]), session_id: SessionId::new("s").unwrap() };
        Arc::new(SessionHandle::new(SessionKey(key), identity, Cursor::default(), 0))
    }

    #[tokio::test]
    async fn news_of_one_session_become_one_arrival() {
        let arrivals = Arrivals::default();
        let (a, b) = (handle(1), handle(2));
        arrivals.note([(Arc::clone(&a), 2, None), (b, 0, None), (Arc::clone(&a), 3, Some(true)), (a, 0, Some(false))], false);
        arrivals.changed().await;
        let taken = arrivals.take();
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].messages, taken[0].ended, taken[0].had_an_end), (5, Some(false), true));
        assert!(arrivals.take().is_empty());
    }

    #[tokio::test]
    async fn durable_cursors_are_told_once_and_are_no_arrival() {
        let arrivals = Arrivals::default();
        arrivals.note([], true);
        arrivals.note([], true);
        arrivals.changed().await;
        assert!(arrivals.take().is_empty());
        let again = tokio::time::timeout(std::time::Duration::ZERO, arrivals.changed()).await;
        assert!(again.is_err(), "told already");
    }

    #[tokio::test]
    async fn a_salvage_is_news_once() {
        let arrivals = Arrivals::default();
        assert!(!arrivals.take_rebuilt());
        arrivals.note_rebuilt();
        arrivals.changed().await;
        assert!(arrivals.take_rebuilt() && !arrivals.take_rebuilt());
    }
}
