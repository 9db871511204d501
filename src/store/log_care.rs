//! When the log is carried into the database, and how long its file stays.
//!
//! Promises: a log that has reached its size is carried over, whether or not there is a thread for it; what a long reader, a
//! full disk or a failing one left in it is tried again by the clock, without a line having to come. The file is cut to the size
//! of the log at most once a minute, when the log starts anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::checkpoint::{self, Checkpoint, log_bytes};
use super::open::BUSY;
use super::shared::Shared;

/// How often the file is cut, at most. What is written while a checkpoint goes on makes it longer than the log is to be, under
/// load each time: cut each time, everybody would wait for that (7 ms on ext4), and then each group for a second flush, because
/// the file grows. Never cut, its end, which is not reached again, would keep what was deleted long ago.
const CUT_EVERY: Duration = Duration::from_secs(60);
/// How long after a checkpoint that did not carry all the next is tried, at first and at most.
const AGAIN: Duration = Duration::from_secs(5);
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
        } else {
            self.plan.carried_in_part();
        }
        Ok(())
    }

    /// Carries all over and empties the file, unless somebody reads: nobody waits for that. What a failing disk says to it, the
    /// next checkpoint says, too.
    pub(super) fn empty(&mut self, shared: &Shared, connection: &Connection, max_bytes: u64) {
        self.wait();
        let is_empty = connection.busy_timeout(Duration::ZERO).is_ok() && checkpoint::whole(connection);
        let _ = connection.busy_timeout(BUSY);
        if is_empty {
            self.plan.carried(shared.log.bytes(), 0, log_bytes(max_bytes), Instant::now());
        }
    }

    /// Waits for what goes on beside the writer: nobody else has a hand in the files afterwards.
    pub(super) fn wait(&mut self) {
        self.checkpoint.wait();
    }
}

/// What is due when.
#[derive(Debug)]
struct Plan {
    /// How much had gone into the log when a checkpoint of it was begun, or had carried all.
    begun_at: u64,
    /// Not all of that is carried: when it is tried again.
    again: Option<Instant>,
    pause: Duration,
    /// It is not known to have been more than a reader that was in the way: only the clock says when it is tried again.
    may_have_failed: bool,
    last_cut: Instant,
    /// The file was longer than the log is to be when last seen, or nobody looked yet.
    is_long: bool,
}

impl Plan {
    const fn new(now: Instant) -> Self {
        Self { begun_at: 0, again: None, pause: AGAIN, may_have_failed: false, last_cut: now, is_long: true }
    }

    /// Whether a log into which so much went is to be carried over.
    fn is_due(&self, logged: u64, log_bytes: u64, now: Instant) -> bool {
        let appended = logged - self.begun_at;
        match self.again {
            Some(at) => at <= now || (appended >= log_bytes && !self.may_have_failed),
            // To cut the file, which the next group does.
            None => appended >= log_bytes || (self.is_long && appended > 0 && self.may_cut(now)),
        }
    }

    fn may_cut(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_cut) >= CUT_EVERY
    }

    /// A checkpoint begins, and has failed until it is known better.
    fn begin(&mut self, logged: u64, now: Instant) {
        // A log that fills meanwhile says nothing of what is in the way.
        if self.again.is_some_and(|at| at <= now) {
            self.pause = AGAIN_AT_MOST.min(2 * self.pause);
        }
        (self.begun_at, self.again, self.may_have_failed) = (logged, Some(now + self.pause), true);
    }

    /// A reader was in the way, or there was no room.
    const fn carried_in_part(&mut self) {
        self.may_have_failed = false;
    }

    /// All is carried over: how long the file may stay when it is written from its beginning again.
    fn carried(&mut self, logged: u64, file_bytes: u64, log_bytes: u64, now: Instant) -> u64 {
        (self.begun_at, self.again, self.pause, self.may_have_failed) = (logged, None, AGAIN, false);
        self.is_long = file_bytes > log_bytes;
        if !self.may_cut(now) {
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

    /// After a checkpoint that found a file of the right length.
    fn sound(now: Instant) -> Plan {
        let mut plan = Plan::new(now);
        plan.carried(0, LOG, LOG, now);
        plan
    }

    #[test]
    fn the_log_is_carried_over_when_it_has_its_size() {
        let at = clock();
        let mut plan = sound(at(0));
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
        let mut plan = sound(at(0));
        let mut now = 0;
        for pause in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            plan.begin(LOG, at(now));
            assert!(!plan.is_due(LOG, LOG, at(now + pause - 1)), "{pause}");
            assert!(plan.is_due(LOG, LOG, at(now + pause)), "{pause}");
            now += pause;
        }
        plan.carried(LOG, LOG, LOG, at(now));
        assert!(!plan.is_due(LOG, LOG, at(now + 10_000)));
        (2..6).for_each(|times| plan.begin(times * LOG, at(now)));
        assert!(plan.is_due(5 * LOG, LOG, at(now + 5)), "short again, however quickly it fills");
    }

    #[test]
    fn after_a_failure_no_line_leads_to_the_next_one() {
        let at = clock();
        for is_long in [false, true] {
            let mut plan = sound(at(0));
            plan.carried(0, LOG + u64::from(is_long), LOG, at(1));
            plan.begin(LOG, at(100));
            assert!(!plan.is_due(9 * LOG, LOG, at(104)), "it waits for the clock");
            plan.carried_in_part();
            assert!(!plan.is_due(2 * LOG - 1, LOG, at(104)), "somebody reads");
            assert!(plan.is_due(2 * LOG, LOG, at(104)), "and may have ended");
        }
    }

    #[test]
    fn the_file_is_cut_once_a_minute() {
        let at = clock();
        let mut plan = sound(at(0));
        let kept = [1, 59, 60, 61, 119, 120, 9000, 9001].map(|seconds| plan.carried(0, LOG, LOG, at(seconds)) / LOG);
        assert_eq!(kept, [2, 2, 1, 2, 2, 1, 1, 2]);
    }

    #[test]
    fn a_file_that_stayed_long_is_cut_after_a_minute_with_a_line() {
        let at = clock();
        let mut plan = sound(at(0));
        assert_eq!(plan.carried(LOG, LOG + 1, LOG, at(30)), 2 * LOG);
        assert!(!plan.is_due(LOG, LOG, at(60)), "nothing would cut it");
        assert!(!plan.is_due(LOG + 1, LOG, at(59)));
        assert!(plan.is_due(LOG + 1, LOG, at(60)));
        plan.begin(LOG + 1, at(60));
        assert_eq!(plan.carried(LOG + 1, LOG + 1, LOG, at(60)), LOG);
        plan.carried(LOG + 2, LOG, LOG, at(121));
        assert!(!plan.is_due(LOG + 3, LOG, at(10_000)), "it was cut");
    }

    #[test]
    fn a_file_that_an_earlier_run_left_is_looked_at() {
        let at = clock();
        assert!(Plan::new(at(0)).is_due(1, LOG, at(60)));
    }
}
