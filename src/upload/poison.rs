//! The poison rule: when is it the message's fault?
//!
//! The server gives the same answer for "the database is down" and "this message can never be stored"
//! (`reference: Manager API, answers`). The difference shows only beside other sessions: a failed attempt is a strike
//! only if another session's message was accepted after the attempt before it. And it shows only beside a server that is
//! sound: one of two instances that fails gives every message its failures, and takes it at a repetition. Where one device
//! or one connection always meets the part that fails, nothing tells that from poison but the next message, which fails
//! too: each further one of a session needs twice the strikes.
//!
//! Promises: with nothing accepted anywhere (an outage), for a session alone on its host, and while a good part of the
//! failures of others is mended by a repetition (an outage of a part), no message is ever rejected. Refuses: to count a
//! first attempt, which has no attempt before it. Pure; called by the scheduler, one [`Strikes`] a session.

use crate::store::RowId;

/// A server is unsound if one failure is mended by a repetition for so many acceptances, or for fewer. A sound message
/// fails by chance at one of ten attempts then, and at six in a row at one of a million.
const ACCEPTANCES_A_MENDED_FAILURE: u64 = 10;

/// Messages of a session rejected in a row behind which the strikes needed are not doubled any more.
const MOST_DOUBLINGS: u32 = 6;

/// What a failed attempt means for the message at the head of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StrikeOutcome {
    /// Not (yet) its fault: it stays and is tried again.
    Wait,
    /// Its fault, proved often enough: reject it, so that its session goes on.
    Reject,
}

/// What the server did with the messages of all others so far; both only ever rise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Others {
    /// Reports accepted.
    pub accepted: u64,
    /// Failed attempts whose message was accepted at a later one.
    pub mended: u64,
}

/// The strikes against the message at the head of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Strikes {
    head: Option<Head>,
    /// Messages rejected since one was accepted.
    rejected: u32,
}

/// The message that failed last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    row: RowId,
    /// What others had had accepted at the attempt before.
    accepted_before: u64,
    /// How others fared when its strikes began to be counted.
    at_first: Others,
    failures: u32,
    strikes: u32,
}

impl Strikes {
    /// Takes note of a failed attempt to send `row`; `limit` is `upload.poison_attempts` (0 counts as 1). A new row starts
    /// without strikes, and one that was tried at an unsound server starts again.
    pub fn on_failure(&mut self, row: RowId, others: Others, limit: u32) -> StrikeOutcome {
        let Some(head) = self.head.as_mut().filter(|head| head.row == row) else {
            self.head = Some(Head { row, accepted_before: others.accepted, at_first: others, failures: 1, strikes: 0 });
            return StrikeOutcome::Wait;
        };
        head.failures = head.failures.saturating_add(1);
        if others.accepted > head.accepted_before {
            head.strikes = head.strikes.saturating_add(1);
        }
        head.accepted_before = others.accepted;
        if head.strikes < limit.max(1) << self.rejected.min(MOST_DOUBLINGS) {
            return StrikeOutcome::Wait;
        }
        let accepted = others.accepted.saturating_sub(head.at_first.accepted);
        let mended = others.mended.saturating_sub(head.at_first.mended);
        if mended.saturating_mul(ACCEPTANCES_A_MENDED_FAILURE) < accepted {
            (self.head, self.rejected) = (None, self.rejected.saturating_add(1));
            return StrikeOutcome::Reject;
        }
        (head.at_first, head.strikes) = (others, 0);
        StrikeOutcome::Wait
    }

    /// The strikes against `row`, for the status.
    #[must_use]
    pub fn against(&self, row: RowId) -> u32 {
        self.head.filter(|head| head.row == row).map_or(0, |head| head.strikes)
    }

    /// The strikes against the message that failed last, for the status.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.head.map_or(0, |head| head.strikes)
    }

    /// The failed attempts of the message that failed last: mended ones, if it has been accepted now.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.head.map_or(0, |head| head.failures)
    }

    /// The message at the head is through, accepted or not.
    pub const fn head_is_through(&mut self) {
        self.head = None;
    }

    /// Forgets everything: a message was accepted.
    pub const fn reset(&mut self) {
        *self = Self { head: None, rejected: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROW: RowId = RowId(7);
    const LIMIT: u32 = 5;

    fn accepted(accepted: u64) -> Others {
        Others { accepted, mended: 0 }
    }

    #[test]
    fn a_message_that_fails_while_others_go_through_is_rejected_at_its_last_strike() {
        let mut strikes = Strikes::default();
        assert_eq!(strikes.on_failure(ROW, accepted(100), LIMIT), StrikeOutcome::Wait, "the first attempt has none before it");
        for strike in 1..LIMIT {
            assert_eq!(strikes.on_failure(ROW, accepted(100 + u64::from(strike)), LIMIT), StrikeOutcome::Wait);
            assert_eq!(strikes.against(ROW), strike);
        }
        assert_eq!(strikes.on_failure(ROW, accepted(200), LIMIT), StrikeOutcome::Reject);
    }

    #[test]
    fn many_successes_between_two_attempts_are_one_strike() {
        let mut strikes = Strikes::default();
        let _ = strikes.on_failure(ROW, accepted(0), LIMIT);
        let _ = strikes.on_failure(ROW, accepted(1_000_000), LIMIT);
        assert_eq!(strikes.against(ROW), 1);
    }

    #[test]
    fn each_further_message_of_a_session_needs_twice_the_strikes_until_one_is_accepted() {
        let (mut strikes, mut total) = (Strikes::default(), 0);
        let mut needed = |strikes: &mut Strikes, row| {
            let mut failures = 0;
            while strikes.on_failure(RowId(row), accepted(total), LIMIT) == StrikeOutcome::Wait {
                (failures, total) = (failures + 1, total + 1);
            }
            failures
        };
        assert_eq!([1, 2, 3].map(|row| needed(&mut strikes, row)), [5, 10, 20]);
        strikes.reset();
        assert_eq!(needed(&mut strikes, 4), 5);
        for row in 5..100 {
            let _ = needed(&mut strikes, row);
        }
        assert_eq!(needed(&mut strikes, 100), 320, "a bound");
    }

    #[test]
    fn the_next_message_starts_without_strikes() {
        let mut strikes = Strikes::default();
        for total in 0..4 {
            let _ = strikes.on_failure(ROW, accepted(total), LIMIT);
        }
        assert_eq!((strikes.against(ROW), strikes.against(RowId(8))), (3, 0));
        assert_eq!(strikes.on_failure(RowId(8), accepted(50), 1), StrikeOutcome::Wait);
        assert_eq!(strikes.against(RowId(8)), 0);
        strikes.reset();
        assert_eq!(strikes, Strikes::default());
    }

    #[test]
    fn a_message_that_fails_where_repetitions_mend_the_failures_of_others_is_not_to_blame() {
        let mut strikes = Strikes::default();
        for round in 0..1_000 {
            let others = Others { accepted: 20 * round, mended: 2 * round };
            assert_eq!(strikes.on_failure(ROW, others, LIMIT), StrikeOutcome::Wait, "one failure of ten is mended");
        }
        assert_eq!(strikes.failures(), 1_000);
        let mut needed = 0;
        while strikes.on_failure(ROW, Others { accepted: 20_000 + needed, mended: 2_000 }, LIMIT) == StrikeOutcome::Wait {
            needed += 1;
        }
        assert!(needed <= u64::from(2 * LIMIT), "once the server is sound, its strikes count: {needed}");
    }

    proptest! {
        #[test]
        fn in_a_total_outage_or_alone_nothing_is_ever_rejected(
            total in any::<u64>(), attempts in 1_usize..500, limit in 0_u32..10,
        ) {
            let mut strikes = Strikes::default();
            for _ in 0..attempts {
                prop_assert_eq!(strikes.on_failure(ROW, accepted(total), limit), StrikeOutcome::Wait);
            }
        }

        #[test]
        fn a_rejection_needs_as_many_attempts_with_others_accepted_between_as_the_limit_says(
            history in proptest::collection::vec((0_u64..3, 0_i64..3), 1..60), limit in 1_u32..8,
        ) {
            let mut strikes = Strikes::default();
            let (mut total, mut row, mut between) = (0, None, 0_u32);
            for (more, next_row) in history {
                total += more;
                let same = row == Some(next_row);
                between = if same { between + u32::from(more > 0) } else { 0 };
                row = Some(next_row);
                let rejected = strikes.on_failure(RowId(next_row), accepted(total), limit) == StrikeOutcome::Reject;
                prop_assert_eq!(rejected, between >= limit);
                if rejected {
                    // Accepted, as it is after every rejection here.
                    strikes.reset();
                    (row, between) = (None, 0);
                }
            }
        }
    }
}
