//! When a session is to be sent. Pure.

use std::time::{Duration, Instant};

/// What speaks for sending a session now.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Its pending messages.
    pub pending: u64,
    /// When the oldest of them was taken in.
    pub since: Instant,
    /// It has ended, was flushed, stood in the store at start, or the daemon stops.
    pub urgent: bool,
}

/// The rule: `batch_size` messages, or the oldest `send_interval` old, or urgent.
#[derive(Clone, Copy, Debug)]
pub struct DueRule {
    /// `session.batch_size`
    pub batch_size: u32,
    /// `session.send_interval`
    pub send_interval: Duration,
}

impl DueRule {
    /// When the session is due: an instant in the past or now means at once, `None` means it has nothing to send.
    #[must_use]
    pub fn due_at(self, backlog: Backlog) -> Option<Instant> {
        if backlog.pending == 0 {
            return None;
        }
        let at_once = backlog.urgent || backlog.pending >= u64::from(self.batch_size);
        Some(if at_once { backlog.since } else { backlog.since + self.send_interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_due_by_number_by_age_or_by_urgency() {
        let rule = DueRule { batch_size: 5, send_interval: Duration::from_secs(30) };
        let since = Instant::now();
        let backlog = |pending, urgent| Backlog { pending, since, urgent };
        assert_eq!(rule.due_at(backlog(0, true)), None);
        assert_eq!(rule.due_at(backlog(4, false)), Some(since + Duration::from_secs(30)));
        assert_eq!(rule.due_at(backlog(5, false)), Some(since));
        assert_eq!(rule.due_at(backlog(1, true)), Some(since));
    }
}
