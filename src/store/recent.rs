//! The youngest rows of a session, kept in memory from their commit to their delivery: what was just written need not be
//! read again, which is most of the work on the way of a lone message.
//!
//! Promises: what is kept is durable, and it is *all* rows of the session above a known one, or nothing; small for each
//! session and for all together. Refuses: to be needed — what is not here is read from the database — and to keep audio.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::types::{PendingMessage, RowId};

/// The most that is kept of one session.
const SESSION_ROWS: usize = 64;
const SESSION_BYTES: usize = 32 << 10;
/// The most that is kept of all.
const ALL_BYTES: usize = 512 << 10;

/// What is kept of all sessions, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentBytes(Arc<AtomicUsize>);

/// The youngest rows of one session.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// All rows above this are in `messages`; `None`: nothing is known.
    above: Option<RowId>,
    messages: VecDeque<PendingMessage>,
    bytes: usize,
    all: RecentBytes,
}

impl Recent {
    /// A row was committed, above `before`, which was the youngest of the session until then.
    pub(super) fn push(&mut self, before: RowId, message: PendingMessage, all: &RecentBytes) {
        let weight = weight(&message);
        let newest = self.messages.back().map_or(self.above, |message| Some(message.row));
        if newest != Some(before) {
            // Something came another way.
            self.forget(before);
        }
        if self.messages.is_empty() {
            self.all = all.clone();
        }
        let fits = self.messages.len() < SESSION_ROWS
            && self.bytes + weight <= SESSION_BYTES
            && all.0.load(Ordering::Relaxed) + weight <= ALL_BYTES;
        if fits {
            self.bytes += weight;
            all.0.fetch_add(weight, Ordering::Relaxed);
            self.messages.push_back(message);
        } else {
            self.forget(message.row);
        }
    }

    /// Keeps nothing; rows above this one will be known.
    pub(super) fn forget(&mut self, above: RowId) {
        self.all.0.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        self.messages = VecDeque::new();
        self.above = Some(above);
    }

    /// Everything up to this row is done with.
    pub(super) fn passed(&mut self, row: RowId) {
        while self.messages.front().is_some_and(|message| message.row <= row)
            && let Some(message) = self.messages.pop_front()
        {
            let weight = weight(&message);
            self.bytes -= weight;
            self.all.0.fetch_sub(weight, Ordering::Relaxed);
            self.above = Some(message.row);
        }
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
        }
    }

    /// All that is kept.
    pub(super) fn messages(&self) -> impl Iterator<Item = &PendingMessage> {
        self.messages.iter()
    }

    /// All rows above `after`, at most `limit`, and no more than `max_bytes` of text (but at least one), and whether more may
    /// follow. `None`: they have to be read.
    pub(super) fn after(&self, after: RowId, limit: usize, max_bytes: usize) -> Option<(Vec<PendingMessage>, bool)> {
        if self.above.is_none_or(|above| above > after) {
            return None;
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for message in self.messages.iter().filter(|message| message.row > after) {
            bytes += message.content.len();
            if found.len() >= limit || (bytes > max_bytes && !found.is_empty()) {
                return Some((found, true));
            }
            found.push(message.clone());
        }
        let more = found.len() >= limit;
        Some((found, more))
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn weight(message: &PendingMessage) -> usize {
    std::mem::size_of::<PendingMessage>() + message.content.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ChatType, UnixMillis};
    use crate::store::types::Disposition;

    fn message(row: i64, text: &str) -> PendingMessage {
        PendingMessage {
            row: RowId(row),
            uuid: uuid::Uuid::nil(),
            chat_type: ChatType::User,
            content: text.to_owned(),
            time: UnixMillis(0),
            recorded: UnixMillis(0),
            has_audio: false,
            disposition: Disposition::Send,
        }
    }

    fn rows(found: Option<(Vec<PendingMessage>, bool)>) -> Option<(Vec<i64>, bool)> {
        found.map(|(messages, more)| (messages.iter().map(|message| message.row.0).collect(), more))
    }

    #[test]
    fn all_rows_above_a_known_one_or_none() {
        let (mut recent, all) = (Recent::default(), RecentBytes::default());
        assert_eq!(rows(recent.after(RowId(0), 9, 99)), None);
        recent.push(RowId(3), message(7, "a"), &all);
        recent.push(RowId(7), message(9, "b"), &all);
        assert_eq!(rows(recent.after(RowId(2), 9, 99)), None, "row 3 is not here");
        assert_eq!(rows(recent.after(RowId(3), 9, 99)), Some((vec![7, 9], false)));
        assert_eq!(rows(recent.after(RowId(3), 1, 99)), Some((vec![7], true)));
        assert_eq!(rows(recent.after(RowId(3), 9, 1)), Some((vec![7], true)));
        assert_eq!(rows(recent.after(RowId(9), 9, 99)), Some((vec![], false)));
        // A row that came another way, from the shelf for instance.
        recent.push(RowId(11), message(12, "d"), &all);
        assert_eq!(rows(recent.after(RowId(9), 9, 99)), None);
        assert_eq!(rows(recent.after(RowId(11), 9, 99)), Some((vec![12], false)));
    }

    #[test]
    fn what_is_passed_leaves_and_the_books_of_all_are_right() {
        let (mut recent, all) = (Recent::default(), RecentBytes::default());
        recent.push(RowId(0), message(1, "a"), &all);
        recent.push(RowId(1), message(2, "bb"), &all);
        recent.passed(RowId(1));
        assert_eq!(rows(recent.after(RowId(0), 9, 99)), None);
        assert_eq!(rows(recent.after(RowId(1), 9, 99)), Some((vec![2], false)));
        assert!(all.0.load(Ordering::Relaxed) > 0);
        recent.passed(RowId(2));
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
        recent.push(RowId(2), message(3, "c"), &all);
        drop(recent);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_session_and_all_together_keep_little() {
        let all = RecentBytes::default();
        let mut sessions: Vec<Recent> = (0..1_000).map(|_| Recent::default()).collect();
        for recent in &mut sessions {
            for row in 0..200 {
                recent.push(RowId(row), message(row + 1, &"x".repeat(1_000)), &all);
                assert!(recent.bytes <= SESSION_BYTES && all.0.load(Ordering::Relaxed) <= ALL_BYTES);
            }
        }
        drop(sessions);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }
}
