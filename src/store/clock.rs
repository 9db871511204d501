//! Whether the wall clock can be trusted to delete by age. Pure: it is told both clocks.

use std::time::{Duration, Instant};

use crate::protocol::UnixMillis;

/// A step of the wall clock, against the monotonic one, that makes ages doubtful.
const STEP: Duration = Duration::from_secs(3600);
/// How long ages stay doubtful.
const PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Compares the wall clock with the monotonic one.
#[derive(Debug)]
pub(super) struct ClockWatch {
    last: (Instant, UnixMillis),
    doubtful_until: Option<Instant>,
}

impl ClockWatch {
    pub(super) const fn new(monotonic: Instant, wall: UnixMillis) -> Self {
        Self { last: (monotonic, wall), doubtful_until: None }
    }

    /// Looks at both clocks; `true` when ages can be trusted now.
    pub(super) fn trusts(&mut self, monotonic: Instant, wall: UnixMillis) -> bool {
        let elapsed = i64::try_from(monotonic.saturating_duration_since(self.last.0).as_millis()).unwrap_or(i64::MAX);
        let stepped = wall.0.saturating_sub(self.last.1.0).saturating_sub(elapsed).unsigned_abs();
        self.last = (monotonic, wall);
        if u128::from(stepped) > STEP.as_millis() {
            self.doubtful_until = Some(monotonic + PAUSE);
        }
        self.doubtful_until.is_none_or(|until| monotonic >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_step_of_the_wall_clock_stops_deletion_by_age_for_a_day() {
        for step_ms in [-2 * 3_600_000, 2 * 3_600_000, 365 * 86_400_000] {
            let start = Instant::now();
            let mut watch = ClockWatch::new(start, UnixMillis(1_000_000_000_000));
            assert!(watch.trusts(start + HOUR, UnixMillis(1_000_000_000_000 + 3_600_000)));
            let base = 1_000_000_000_000 + step_ms;
            assert!(!watch.trusts(start + 2 * HOUR, UnixMillis(base + 2 * 3_600_000)));
            assert!(!watch.trusts(start + 25 * HOUR, UnixMillis(base + 25 * 3_600_000)));
            assert!(watch.trusts(start + 26 * HOUR, UnixMillis(base + 26 * 3_600_000)));
        }
    }

    #[test]
    fn small_corrections_change_nothing() {
        let start = Instant::now();
        let mut watch = ClockWatch::new(start, UnixMillis(0));
        assert!(watch.trusts(start + HOUR, UnixMillis(3_600_000 + 1_800_000)));
    }
}
