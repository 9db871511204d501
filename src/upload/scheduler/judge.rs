//! What comes of a turn: verdicts, the poison rule, repetitions, and devices that the server does not know.

use std::sync::atomic::Ordering;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{Settling, UNKNOWN_DEVICE, UNREADABLE_PAUSE, UNSEEN_PAUSE, Uploader, now, random};
use crate::clock::wall_clock;
use crate::manager_api::{AnsweredBy, Verdict};
use crate::observe::Mention;
use crate::protocol::MacAddress;
use crate::store::{Cursor, Passed, RejectReason, Rejection, RowId, SessionKey};
use crate::upload::backoff::Backoff;
use crate::upload::gate::Change;
use crate::upload::poison::{Others, StrikeOutcome};
use crate::upload::queue::Order;
use crate::upload::turn::{Failure, Outcome, TurnEnd};

impl Uploader {
    pub(super) fn turn_ended(&mut self, turn: Settling) {
        let Settling { handle, knocked, end, .. } = turn;
        let key = handle.key;
        self.sending -= 1;
        let TurnEnd { reports, passed, answered, outcome, permit } = end;
        if knocked {
            self.gate.probe_over();
        }
        let change = match (reports, answered) {
            (1.., _) => self.gate.accepted(),
            (0, true) => self.gate.answered(),
            (0, false) => Change::None,
        };
        self.announce(change);
        if let Some(entry) = self.queue.turn_over(key) {
            entry.passed += passed;
            entry.accepted += reports;
            let mac = entry.handle.identity.mac;
            if reports > 0 {
                self.mended += u64::from(entry.strikes.failures());
                entry.strikes.reset();
            }
            if (reports > 0 || passed > 0)
                && let Some(ended) = entry.forgive(Instant::now())
            {
                info!(mac = %mac.short(), failures = ended.occurrences, after = ?ended.lasted, "the session's reports go through again");
            }
            if reports > 0 {
                info!(mac = %mac.short(), reports, pending = entry.handle.pending(), "batch delivered");
                self.device_is_known(mac);
            }
            self.judge(key, mac, outcome, passed + reports > 0);
            self.evaluate(key);
        }
        if knocked {
            self.gate.probe_judged(now());
            self.announce(Change::None);
        }
        drop(permit);
    }

    fn judge(&mut self, key: SessionKey, mac: MacAddress, outcome: Outcome, went_on: bool) {
        match outcome {
            Outcome::Drained => {
                if let Some(entry) = self.queue.get(key) {
                    entry.since = Instant::now();
                    entry.order = Order::Since(Instant::now());
                    if entry.handle.pending() > 0 && !went_on {
                        // Nothing to be seen of what the books say: it is not committed yet. No turn follows the other meanwhile.
                        self.queue.await_arrival(key, UNSEEN_PAUSE);
                    }
                }
            }
            Outcome::More => {
                if let Some(entry) = self.queue.get(key) {
                    entry.urgent = true;
                    // To the back of the queue, if it had anything of its turn.
                    if went_on {
                        entry.order = Order::Since(Instant::now());
                    }
                }
            }
            Outcome::Failed(failure) => self.failed(key, &failure),
            Outcome::Unregistered => self.park(key, mac),
            Outcome::Unreadable(error) => {
                if let Some(more) = self.unreadable.permits(now()) {
                    warn!(mac = %mac.short(), %error, more, "a session cannot be read and is held");
                }
                if let Some(entry) = self.queue.get(key) {
                    entry.refuse_waiters("the store cannot be read");
                }
                self.queue.back_off(key, UNREADABLE_PAUSE);
            }
        }
    }

    fn failed(&mut self, key: SessionKey, failure: &Failure) {
        let Failure { verdict, answered_by, .. } = failure;
        let accepted = self.progress.accepted.load(Ordering::Relaxed);
        let in_a_row = std::mem::replace(&mut self.accepted_before, accepted) == accepted;
        if !in_a_row {
            self.gate.flowing();
        }
        // A connection that broke may lead to another server next time, and so may a proxy that finds none. One that fails now
        // and then has one: nobody waits for a question then.
        let doubtful = match answered_by {
            AnsweredBy::Nobody => true,
            AnsweredBy::Gateway => in_a_row,
            AnsweredBy::Server => false,
        };
        let is_its_own = matches!(verdict, Verdict::Operator { .. }) && self.is_forbidden_again(key, failure.row);
        let mut one_too_many = false;
        let change = match verdict {
            Verdict::Operator { reason } if is_its_own => self.gate.refused(key, reason, now(), random()),
            Verdict::Operator { reason } => self.gate.operator(reason, now(), random()),
            Verdict::Refused { answer } => self.gate.refused(key, answer, now(), random()),
            Verdict::Later { reason, retry_after, .. } => {
                one_too_many = self.gate.blame(failure.began);
                self.gate.later(reason, failure.unreachable, *retry_after, now(), random())
            }
            Verdict::Delivered | Verdict::Unregistered { .. } | Verdict::Rejected { .. } => self.gate.answered(),
        };
        // However it failed: behind a closed gate there is time for another server. What is being asked already may come from
        // the one before, unless it is itself the knock.
        if (doubtful || change == Change::Closed) && !self.profile.knocks {
            self.doubt_profile();
        }
        self.profile.ask |= doubtful || self.gate.closed().is_some();
        self.announce(change);
        if matches!(verdict, Verdict::Operator { .. }) && !is_its_own {
            // Not the session's fault, or not known to be: it is due when the gate opens, behind the others that are.
            if let Some(entry) = self.queue.get(key) {
                entry.urgent = true;
                entry.order = Order::Since(Instant::now());
            }
        } else if !self.rejects_poison(key, failure, one_too_many) {
            self.repeat_later(key, verdict);
        }
    }

    /// Whether this answer is for this message alone: it had one like it before, and the gate has opened since. What stands
    /// before a server may dislike a text and refuse it as it refuses a wrong secret.
    fn is_forbidden_again(&mut self, key: SessionKey, row: RowId) -> bool {
        let openings = self.openings;
        let Some(entry) = self.queue.get(key) else { return false };
        let (forbidden, then) = *entry.forbidden.get_or_insert((row, openings));
        if forbidden != row {
            entry.forbidden = Some((row, openings));
        }
        forbidden == row && then < openings
    }

    /// The poison rule. `true`: the message is rejected and its session goes on. A failure for which it is to blame that one
    /// more was let in is no strike: a server that cannot take so many refuses the one that comes last, and that is again and
    /// again the one that is repeated.
    fn rejects_poison(&mut self, key: SessionKey, failure: &Failure, one_too_many: bool) -> bool {
        let limit = self.settings.borrow().upload.poison_attempts;
        let accepted = self.progress.accepted.load(Ordering::Relaxed);
        let Some(entry) = self.queue.get(key).filter(|_| failure.about_the_message && !one_too_many) else { return false };
        let others = Others { accepted: accepted.saturating_sub(entry.accepted), mended: self.mended };
        if entry.strikes.on_failure(failure.row, others, limit) != StrikeOutcome::Reject {
            return false;
        }
        let answer = failure.verdict.text();
        error!(
            mac = %entry.handle.identity.mac.short(), row = failure.row.0, answer,
            "a message is rejected: the server refuses it again and again while it takes others"
        );
        let cursor = Cursor { row: failure.row, offset: 0, last_report: entry.handle.cursor().last_report };
        let rejection = Rejection { reason: RejectReason::RefusedByServer, answer: Some(answer.to_owned()) };
        self.store.advance(&entry.handle, cursor, Passed::rejected(failure.row, rejection));
        entry.passed += 1;
        let _ = entry.forgive(Instant::now());
        entry.urgent = true;
        true
    }

    /// `retry_attempts` in a row with growing pauses, then the longest one at the back of the queue.
    fn repeat_later(&mut self, key: SessionKey, verdict: &Verdict) {
        let retry_after = if let Verdict::Later { retry_after, .. } = verdict { *retry_after } else { None };
        let settings = self.settings.borrow().clone();
        let upload = &settings.upload;
        let Some(entry) = self.queue.get(key) else { return };
        entry.failures += 1;
        self.metrics.retries.increment();
        entry.urgent = true;
        entry.order = Order::Since(Instant::now());
        let delay = if entry.failures > upload.retry_attempts {
            Backoff::new(upload.backoff_max, upload.backoff_max).next_delay(retry_after, random())
        } else {
            let new = || Box::new(Backoff::new(upload.backoff_initial, upload.backoff_max));
            entry.backoff.get_or_insert_with(new).next_delay(retry_after, random())
        };
        let (mac, failures, reason) = (entry.handle.identity.mac.short(), entry.failures, verdict.text());
        if self.gate.closed().is_some() {
            // That was said when the gate closed, once.
            debug!(%mac, failures, again_in = ?delay, reason, "a report failed and is repeated");
        } else {
            match entry.trouble.occurs(now()) {
                Mention::Began => warn!(%mac, again_in = ?delay, reason, "a report failed and is repeated"),
                Mention::GoesOn { repeats, lasting } => {
                    let lasting_seconds = lasting.as_secs();
                    warn!(%mac, failures = repeats, lasting_seconds, again_in = ?delay, reason, "the session's reports still fail");
                }
                Mention::Silent => debug!(%mac, failures, again_in = ?delay, reason, "a report failed again"),
            }
        }
        self.queue.back_off(key, delay);
    }

    /// The server does not know the device: all its sessions wait, and only they.
    fn park(&mut self, key: SessionKey, mac: MacAddress) {
        let retry = self.settings.borrow().upload.unknown_device_retry;
        let noted = self.devices.unregistered(key, mac, wall_clock(), Instant::now() + retry);
        self.queue.park(key);
        if let Some(entry) = self.queue.get(key) {
            entry.refuse_waiters(UNKNOWN_DEVICE);
        }
        if let Some(record) = noted.record {
            self.store.note_waiting(record);
        }
        if noted.fresh {
            warn!(mac = %mac.short(), again_in = ?retry, "the server does not know this device: its messages wait (register it)");
        }
    }

    fn device_is_known(&mut self, mac: MacAddress) {
        let Some(parked) = self.devices.registered(mac) else { return };
        info!(mac = %mac.short(), sessions = parked.len() + 1, "the device is registered now: its messages are sent");
        self.store.clear_waiting(mac);
        for key in parked {
            self.queue.unpark(key);
            self.evaluate(key);
        }
    }

    /// What one server did not know another may: nobody waits for what the last one said.
    pub(super) fn forget_devices(&mut self) {
        for (mac, parked) in self.devices.forget() {
            self.store.clear_waiting(mac);
            for key in parked {
                self.queue.unpark(key);
                self.evaluate(key);
            }
        }
    }

    /// One session of a waiting device tries again; where none waits, its next message does.
    pub(super) fn try_device(&mut self, mac: MacAddress) {
        if let Some(key) = self.devices.next_trial(mac) {
            self.queue.unpark(key);
            self.evaluate(key);
        }
    }
}
