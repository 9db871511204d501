//! When the log is carried into the database, and how long its file stays.
//!
//! Promises: the log is carried over whenever it has reached its size, whether or not there is a thread for it; what a long
//! reader, a full disk or a failing one left in it is tried again without a line having to come. The file is cut to the size of
//! the log at most once a minute, and at the latest with the first line after that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::checkpoint::{self, Checkpoint, log_bytes};
use super::shared::Shared;

/// How often the file is cut, at most. What is written while a checkpoint goes on makes it longer than the log is to be, under
/// load each time: cut each time, everybody would wait for that (7 ms on ext4), and then each group for a second flush, because
/// the file grows. Never cut, its end, which is not reached again, would keep what was deleted long ago.
const CUT_EVERY: Duration = Duration::from_secs(60);
/// How long a checkpoint that did not carry all is waited for before the next, at first and at most.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_AT_MOST: Duration = Duration::from_secs(600);

/// The log in the writer's care.
pub(super) struct LogCare {
    checkpoint: Checkpoint,
    plan: Plan,
}

impl LogCare {
    pub(super) fn new(now: Instant) -> Self {
        Self { checkpoint: Checkpoint::default(), plan: Plan::new(now) }
    }

    /// Carries over what is due.
    pub(super) fn visit(&mut self, shared: &Arc<Shared>, connection: &Connection, max_bytes: u64) -> rusqlite::Result<()> {
        if let Some(ended) = self.checkpoint.ended() {
            ended?;
            // The little that was written meanwhile: then the log starts anew.
            self.carry(shared, connection, max_bytes)?;
        }
        let (logged, now) = (shared.log.bytes(), Instant::now());
        if !self.checkpoint.is_under_way() && self.plan.is_due(logged, log_bytes(max_bytes), now) {
            self.plan.begin(logged, now);
            if !self.checkpoint.start(shared) {
                // No thread is to be had: better a line waits than that the log grows.
                self.carry(shared, connection, max_bytes)?;
            }
        }
        Ok(())
    }

    fn carry(&mut self, shared: &Shared, connection: &Connection, max_bytes: u64) -> rusqlite::Result<()> {
        if checkpoint::carries_all(connection)? {
            let keeps = self.plan.carried(shared.log.bytes(), shared.files.wal_len(), log_bytes(max_bytes), Instant::now());
            connection.pragma_update(None, "journal_size_limit", i64::try_from(keeps).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }

    /// Carries all over and empties the file, where no reader is in the way.
    pub(super) fn empty(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.wait();
        checkpoint::or_later(checkpoint::now(connection, "TRUNCATE"))
    }

    /// Waits for what goes on beside the writer: nobody else has a hand in the files afterwards.
    pub(super) fn wait(&mut self) {
        self.checkpoint.wait();
    }
}

/// What is due when.
#[derive(Debug)]
struct Plan {
    /// How much had gone into the log when it was last carried over, or begun to be.
    carried_at: u64,
    /// Until all of that is carried: when it is tried again.
    again: Option<Instant>,
    pause: Duration,
    last_cut: Instant,
    /// The file was longer than the log is to be.
    is_long: bool,
}

impl Plan {
    const fn new(now: Instant) -> Self {
        Self { carried_at: 0, again: None, pause: AGAIN, last_cut: now, is_long: false }
    }

    /// Whether a log into which so much went is to be carried over.
    fn is_due(&self, logged: u64, log_bytes: u64, now: Instant) -> bool {
        let appended = logged - self.carried_at;
        let may_cut = now.saturating_duration_since(self.last_cut) >= CUT_EVERY;
        appended >= log_bytes || self.again.is_some_and(|at| at <= now) || (self.is_long && may_cut && appended > 0)
    }

    fn begin(&mut self, logged: u64, now: Instant) {
        // A log that fills meanwhile says nothing of what is in the way.
        if self.again.is_some_and(|at| at <= now) {
            self.pause = AGAIN_AT_MOST.min(2 * self.pause);
        }
        (self.carried_at, self.again) = (logged, Some(now + self.pause));
    }

    /// All is carried over: how long the file may stay when it is written from its beginning again.
    fn carried(&mut self, logged: u64, file_bytes: u64, log_bytes: u64, now: Instant) -> u64 {
        (self.carried_at, self.again, self.pause) = (logged, None, AGAIN);
        self.is_long = file_bytes > log_bytes;
        if now.saturating_duration_since(self.last_cut) < CUT_EVERY {
            return 2 * log_bytes;
        }
        self.last_cut = now;
        log_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: u64 = 1000;

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_log_is_carried_over_when_it_has_its_size() {
        let at = clock();
        let mut plan = Plan::new(at(0));
        assert!(!plan.is_due(LOG - 1, LOG, at(1000)));
        assert!(plan.is_due(LOG, LOG, at(1)));
        plan.begin(LOG, at(1));
        plan.carried(LOG + 10, LOG, LOG, at(2));
        assert!(!plan.is_due(2 * LOG + 9, LOG, at(1000)));
        assert!(plan.is_due(2 * LOG + 10, LOG, at(3)));
    }

    #[test]
    fn what_could_not_be_carried_is_tried_again_after_growing_pauses_without_a_line() {
        let at = clock();
        let mut plan = Plan::new(at(0));
        let mut now = 0;
        for pause in [60, 120, 240, 480, 600, 600] {
            plan.begin(LOG, at(now));
            assert!(!plan.is_due(LOG, LOG, at(now + pause - 1)), "{pause}");
            assert!(plan.is_due(LOG, LOG, at(now + pause)), "{pause}");
            now += pause;
        }
        plan.carried(LOG, LOG, LOG, at(now));
        assert!(!plan.is_due(LOG, LOG, at(now + 10_000)));
        (2..6).for_each(|times| plan.begin(times * LOG, at(now)));
        assert!(plan.is_due(5 * LOG, LOG, at(now + 60)), "short again, however quickly it fills");
    }

    #[test]
    fn the_file_is_cut_once_a_minute() {
        let at = clock();
        let mut plan = Plan::new(at(0));
        let kept = [1, 59, 60, 61, 119, 120, 9000, 9001].map(|seconds| plan.carried(0, LOG, LOG, at(seconds)) / LOG);
        assert_eq!(kept, [2, 2, 1, 2, 2, 1, 1, 2]);
    }

    #[test]
    fn a_file_that_stayed_long_is_cut_after_a_minute_with_a_line() {
        let at = clock();
        let mut plan = Plan::new(at(0));
        assert_eq!(plan.carried(LOG, LOG + 1, LOG, at(30)), 2 * LOG);
        assert!(!plan.is_due(LOG, LOG, at(60)), "nothing would cut it");
        assert!(!plan.is_due(LOG + 1, LOG, at(59)));
        assert!(plan.is_due(LOG + 1, LOG, at(60)));
        plan.begin(LOG + 1, at(60));
        assert_eq!(plan.carried(LOG + 1, LOG + 1, LOG, at(60)), LOG);
        plan.carried(LOG + 2, LOG, LOG, at(121));
        assert!(!plan.is_due(LOG + 3, LOG, at(10_000)), "it was cut");
    }
}
