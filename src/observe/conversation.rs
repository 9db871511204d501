//! What the status shows of one open session: kept by its actor, read by whoever looks on.
//!
//! Bounded: one record for each session in memory (`session.max_open`), gone with the actor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::SessionIdentity;
use crate::store::SessionHandle;

/// One open session, seen from outside.
#[derive(Debug)]
pub struct Conversation {
    identity: SessionIdentity,
    opened: Instant,
    /// Milliseconds after `opened`.
    last_event: AtomicU64,
    messages: AtomicU64,
    handle: Mutex<Weak<SessionHandle>>,
}

impl Conversation {
    /// A session that is being opened now.
    #[must_use]
    pub fn new(identity: SessionIdentity) -> Self {
        let zero = AtomicU64::default;
        Self { identity, opened: Instant::now(), last_event: zero(), messages: zero(), handle: Mutex::default() }
    }

    /// A line of its producer has come.
    pub fn touch(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_event.store(millis, Ordering::Relaxed);
    }

    /// The store has told what there is of the session already.
    pub fn restored(&self, handle: &Arc<SessionHandle>, messages: u64) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(handle);
        self.messages.store(messages, Ordering::Relaxed);
    }

    /// Messages were captured. Answers how many there are now.
    pub fn captured(&self, messages: u64) -> u64 {
        self.messages.fetch_add(messages, Ordering::Relaxed) + messages
    }

    /// Whose it is.
    #[must_use]
    pub const fn identity(&self) -> &SessionIdentity {
        &self.identity
    }

    /// Messages captured, those of earlier runs of the daemon included: the conversation's length.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Messages waiting for delivery.
    #[must_use]
    pub fn pending(&self) -> u64 {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        handle.map_or(0, |handle| handle.pending())
    }

    /// Since when it is in memory.
    #[must_use]
    pub const fn opened(&self) -> Instant {
        self.opened
    }

    /// When the last line came; the opening, before the first.
    #[must_use]
    pub fn last_event(&self) -> Instant {
        self.opened + Duration::from_millis(self.last_event.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::protocol::SessionId;

    #[tokio::test(start_paused = true)]
    async fn it_knows_its_length_and_its_last_event() {
        let identity = SessionIdentity { mac: "68:25:dd:ba:39:78".parse().unwrap(), session_id: SessionId::new("s").unwrap() };
        let conversation = Conversation::new(identity);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(conversation.last_event(), conversation.opened());
        conversation.touch();
        assert_eq!(conversation.last_event(), Instant::now());
        assert_eq!(conversation.captured(2), 2);
        assert_eq!(conversation.captured(1), 3);
        assert_eq!((conversation.messages(), conversation.pending()), (3, 0));
    }
}
