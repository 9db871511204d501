//! Whether the wall clock can be trusted to delete by age, and whether it was set ahead. Pure: it is told both clocks, the wall
//! clock and the time since the boot, which goes on while the machine sleeps.

use std::time::Duration;

use crate::protocol::UnixMillis;

/// A step of the wall clock, against the time since the boot, that makes ages doubtful.
const STEP: Duration = Duration::from_secs(3600);
/// How long ages stay doubtful.
const PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Compares the wall clock with the time since the boot.
#[derive(Debug)]
pub(super) struct ClockWatch {
    last: (Duration, UnixMillis),
    doubtful_until: Option<Duration>,
    set_ahead: Option<SetAhead>,
}

/// The wall clock was set ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SetAhead {
    /// What it would say now if it had not been.
    pub(super) otherwise: UnixMillis,
    /// By how much.
    pub(super) by_ms: i64,
}

impl ClockWatch {
    pub(super) const fn new(since_boot: Duration, wall: UnixMillis) -> Self {
        Self { last: (since_boot, wall), doubtful_until: None, set_ahead: None }
    }

    /// Looks at both clocks; `true` when ages can be trusted now.
    pub(super) fn trusts(&mut self, since_boot: Duration, wall: UnixMillis) -> bool {
        let elapsed = i64::try_from(since_boot.saturating_sub(self.last.0).as_millis()).unwrap_or(i64::MAX);
        let otherwise = UnixMillis(self.last.1.0.saturating_add(elapsed));
        let by_ms = wall.0.saturating_sub(otherwise.0);
        self.last = (since_boot, wall);
        if u128::from(by_ms.unsigned_abs()) > STEP.as_millis() {
            self.doubtful_until = Some(since_boot + PAUSE);
            self.set_ahead = (by_ms > 0).then_some(SetAhead { otherwise, by_ms });
        }
        self.doubtful_until.is_none_or(|until| since_boot >= until)
    }

    /// Whether the clock was seen to be set ahead since this was last asked.
    pub(super) const fn take_set_ahead(&mut self) -> Option<SetAhead> {
        self.set_ahead.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_step_of_the_wall_clock_stops_deletion_by_age_for_a_day() {
        for step_ms in [-2 * 3_600_000, 2 * 3_600_000, 365 * 86_400_000] {
            let start = Duration::from_secs(5);
            let mut watch = ClockWatch::new(start, UnixMillis(1_000_000_000_000));
            assert!(watch.trusts(start + HOUR, UnixMillis(1_000_000_000_000 + 3_600_000)));
            let base = 1_000_000_000_000 + step_ms;
            assert!(!watch.trusts(start + 2 * HOUR, UnixMillis(base + 2 * 3_600_000)));
            assert!(!watch.trusts(start + 25 * HOUR, UnixMillis(base + 25 * 3_600_000)));
            assert!(watch.trusts(start + 26 * HOUR, UnixMillis(base + 26 * 3_600_000)));
        }
    }

    #[test]
    fn a_clock_that_is_set_ahead_tells_by_how_much_once() {
        let start = Duration::from_secs(5);
        let mut watch = ClockWatch::new(start, UnixMillis(0));
        watch.trusts(start + HOUR, UnixMillis(1_000_000_000_000));
        let expected = SetAhead { otherwise: UnixMillis(3_600_000), by_ms: 1_000_000_000_000 - 3_600_000 };
        assert_eq!((watch.take_set_ahead(), watch.take_set_ahead()), (Some(expected), None));
        watch.trusts(start + 2 * HOUR, UnixMillis(0));
        assert_eq!(watch.take_set_ahead(), None, "set back");
    }

    #[test]
    fn small_corrections_change_nothing() {
        let start = Duration::from_secs(5);
        let mut watch = ClockWatch::new(start, UnixMillis(0));
        assert!(watch.trusts(start + HOUR, UnixMillis(3_600_000 + 1_800_000)));
    }
}
