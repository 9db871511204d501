//! Keeps a lasting trouble from flooding the log: one line when it begins, a summary now and then, one when it ends.
//!
//! Pure: hands out decisions, holds no clock and logs nothing. Whoever logs asks first.

use std::time::{Duration, Instant};

/// How often a lasting trouble is mentioned again.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// A trouble that begins, lasts and ends: a closed gate, a full disk.
#[derive(Clone, Debug, Default)]
pub struct Episode {
    current: Option<Current>,
}

#[derive(Clone, Debug)]
struct Current {
    began: Instant,
    mentioned: Instant,
    unmentioned: u64,
    total: u64,
}

/// What to say about an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mention {
    /// It is the first: say it.
    Began,
    /// It goes on: say how often since the last line, and for how long already.
    GoesOn {
        /// Occurrences since the last line, this one included.
        repeats: u64,
        /// Time since the beginning.
        lasting: Duration,
    },
    /// Say nothing.
    Silent,
}

/// A trouble that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How long it lasted.
    pub lasted: Duration,
    /// How often it occurred.
    pub occurrences: u64,
}

impl Episode {
    /// No trouble yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { current: None }
    }

    /// The trouble occurs.
    pub fn occurs(&mut self, now: Instant) -> Mention {
        let Some(current) = &mut self.current else {
            self.current = Some(Current { began: now, mentioned: now, unmentioned: 0, total: 1 });
            return Mention::Began;
        };
        current.total += 1;
        current.unmentioned += 1;
        if now.saturating_duration_since(current.mentioned) < INTERVAL {
            return Mention::Silent;
        }
        current.mentioned = now;
        Mention::GoesOn {
            repeats: std::mem::take(&mut current.unmentioned),
            lasting: now.saturating_duration_since(current.began),
        }
    }

    /// All is well: `Some` once at the end of a trouble.
    pub fn ends(&mut self, now: Instant) -> Option<Ended> {
        let current = self.current.take()?;
        Some(Ended { lasted: now.saturating_duration_since(current.began), occurrences: current.total })
    }

    /// Whether it lasts.
    #[must_use]
    pub const fn lasts(&self) -> bool {
        self.current.is_some()
    }
}

/// Single events that may come in swarms: refused lines, refused peers.
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    mentioned: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// Nothing happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { mentioned: None, suppressed: 0 }
    }

    /// Whether to log this event: `Some` with the number of events since the last line that were not logged.
    pub fn permits(&mut self, now: Instant) -> Option<u64> {
        if self.mentioned.is_some_and(|mentioned| now.saturating_duration_since(mentioned) < INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.mentioned = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_trouble_is_said_once_at_its_beginning_and_once_at_its_end() {
        let start = Instant::now();
        let mut episode = Episode::new();
        assert_eq!(episode.ends(start), None);
        assert_eq!(episode.occurs(start), Mention::Began);
        for second in 1..60 {
            assert_eq!(episode.occurs(start + seconds(second)), Mention::Silent);
        }
        assert!(episode.lasts());
        assert_eq!(episode.ends(start + seconds(61)), Some(Ended { lasted: seconds(61), occurrences: 60 }));
        assert_eq!(episode.ends(start + seconds(62)), None);
        assert_eq!(episode.occurs(start + seconds(63)), Mention::Began);
    }

    #[test]
    fn a_lasting_trouble_is_mentioned_once_a_minute_with_its_count() {
        let start = Instant::now();
        let mut episode = Episode::new();
        let mut said = Vec::new();
        for second in 0..=180 {
            match episode.occurs(start + seconds(second)) {
                Mention::GoesOn { repeats, lasting } => said.push((repeats, lasting)),
                Mention::Began => assert_eq!(second, 0),
                Mention::Silent => {}
            }
        }
        assert_eq!(said, [(60, seconds(60)), (60, seconds(120)), (60, seconds(180))]);
    }

    #[test]
    fn of_a_swarm_one_a_minute_passes_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut throttle = Throttle::new();
        assert_eq!(throttle.permits(start), Some(0));
        for _ in 0..1_000 {
            assert_eq!(throttle.permits(start + seconds(59)), None);
        }
        assert_eq!(throttle.permits(start + seconds(60)), Some(1_000));
        assert_eq!(throttle.permits(start + seconds(120)), Some(0));
    }

    #[test]
    fn an_instant_from_before_does_no_harm() {
        let before = Instant::now();
        let start = before + seconds(90);
        let mut episode = Episode::new();
        assert_eq!(episode.occurs(start), Mention::Began);
        assert_eq!(episode.occurs(before), Mention::Silent);
        assert_eq!(episode.ends(before), Some(Ended { lasted: Duration::ZERO, occurrences: 2 }));
    }
}
