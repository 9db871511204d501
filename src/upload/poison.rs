//! The poison rule: when is it the message's fault?
//!
//! The server gives the same answer for "the database is down" and "this message can never be stored"
//! (`reference: Manager API, answers`). The difference shows only beside other sessions: a failed attempt is a strike
//! only if another session's message was accepted after the attempt before it.
//!
//! Promises: with nothing accepted anywhere (an outage), and for a session alone on its host, no message is ever
//! rejected. Refuses: to count a first attempt, which has no attempt before it. Pure; called by the scheduler, one
//! [`Strikes`] a session.

use crate::store::RowId;

/// What a failed attempt means for the message at the head of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StrikeOutcome {
    /// Not (yet) its fault: it stays and is tried again.
    Wait,
    /// Its fault, proved often enough: reject it, so that its session goes on.
    Reject,
}

/// The strikes against the message at the head of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Strikes {
    head: Option<Head>,
}

/// The message that failed last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    row: RowId,
    /// What others had had accepted at the attempt before.
    accepted_by_others: u64,
    strikes: u32,
}

impl Strikes {
    /// Takes note of a failed attempt to send `row`. `accepted_by_others_total` counts the messages of other sessions
    /// accepted so far, and only ever rises; `limit` is `upload.poison_attempts` (0 counts as 1). A new row starts
    /// without strikes.
    pub fn on_failure(&mut self, row: RowId, accepted_by_others_total: u64, limit: u32) -> StrikeOutcome {
        let Some(head) = self.head.as_mut().filter(|head| head.row == row) else {
            self.head = Some(Head { row, accepted_by_others: accepted_by_others_total, strikes: 0 });
            return StrikeOutcome::Wait;
        };
        if accepted_by_others_total > head.accepted_by_others {
            head.strikes = head.strikes.saturating_add(1);
        }
        head.accepted_by_others = accepted_by_others_total;
        if head.strikes >= limit.max(1) { StrikeOutcome::Reject } else { StrikeOutcome::Wait }
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

    /// Forgets everything: the head was accepted or rejected.
    pub const fn reset(&mut self) {
        self.head = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROW: RowId = RowId(7);
    const LIMIT: u32 = 5;

    #[test]
    fn a_message_that_fails_while_others_go_through_is_rejected_at_its_last_strike() {
        let mut strikes = Strikes::default();
        assert_eq!(strikes.on_failure(ROW, 100, LIMIT), StrikeOutcome::Wait, "the first attempt has none before it");
        for strike in 1..LIMIT {
            assert_eq!(strikes.on_failure(ROW, 100 + u64::from(strike), LIMIT), StrikeOutcome::Wait);
            assert_eq!(strikes.against(ROW), strike);
        }
        assert_eq!(strikes.on_failure(ROW, 200, LIMIT), StrikeOutcome::Reject);
    }

    #[test]
    fn many_successes_between_two_attempts_are_one_strike() {
        let mut strikes = Strikes::default();
        let _ = strikes.on_failure(ROW, 0, LIMIT);
        let _ = strikes.on_failure(ROW, 1_000_000, LIMIT);
        assert_eq!(strikes.against(ROW), 1);
    }

    #[test]
    fn the_next_message_starts_without_strikes() {
        let mut strikes = Strikes::default();
        for total in 0..4 {
            let _ = strikes.on_failure(ROW, total, LIMIT);
        }
        assert_eq!((strikes.against(ROW), strikes.against(RowId(8))), (3, 0));
        assert_eq!(strikes.on_failure(RowId(8), 50, 1), StrikeOutcome::Wait);
        assert_eq!(strikes.against(RowId(8)), 0);
        strikes.reset();
        assert_eq!(strikes, Strikes::default());
    }

    proptest! {
        #[test]
        fn in_a_total_outage_or_alone_nothing_is_ever_rejected(
            total in any::<u64>(), attempts in 1_usize..500, limit in 0_u32..10,
        ) {
            let mut strikes = Strikes::default();
            for _ in 0..attempts {
                prop_assert_eq!(strikes.on_failure(ROW, total, limit), StrikeOutcome::Wait);
            }
        }

        #[test]
        fn a_rejection_needs_as_many_attempts_with_others_accepted_between_as_the_limit_says(
            accepted in proptest::collection::vec((0_u64..3, 0_i64..3), 1..60), limit in 1_u32..8,
        ) {
            let mut strikes = Strikes::default();
            let (mut total, mut row, mut between) = (0, None, 0_u32);
            for (more, next_row) in accepted {
                total += more;
                let same = row == Some(next_row);
                between = if same { between + u32::from(more > 0) } else { 0 };
                row = Some(next_row);
                let rejected = strikes.on_failure(RowId(next_row), total, limit) == StrikeOutcome::Reject;
                prop_assert_eq!(rejected, between >= limit);
            }
        }
    }
}
