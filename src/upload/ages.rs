//! Which messages have surely waited for so long, by the wall clock's time at which they were taken in, whatever that clock
//! does meanwhile: a host may start far behind, and be set right while its messages wait. Pure: it is told both clocks.
//!
//! Promises: what this run took in is never thought older than it is, but for a step that came back before anybody looked; it
//! may be thought younger. What an earlier run took in is judged by the wall clock as it was at the start.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::UnixMillis;

/// Compares the wall clock with the monotonic one.
#[derive(Debug)]
pub(super) struct Ages {
    start: (Instant, UnixMillis),
    /// How far the wall clock has been behind where it would be had it never stepped, at most, in milliseconds.
    behind: i64,
}

impl Ages {
    pub(super) const fn new(monotonic: Instant, wall: UnixMillis) -> Self {
        Self { start: (monotonic, wall), behind: 0 }
    }

    /// Looks at both clocks: as often as something is taken in, or judged.
    pub(super) fn look(&mut self, monotonic: Instant, wall: UnixMillis) {
        self.behind = self.behind.max(self.steady(monotonic).saturating_sub(wall.0));
    }

    /// What was taken in up to this time of the wall clock has waited for so long.
    pub(super) fn waited_for(&self, age: Duration, monotonic: Instant) -> UnixMillis {
        UnixMillis(self.steady(monotonic).saturating_sub(self.behind).saturating_sub(millis(age)))
    }

    fn steady(&self, monotonic: Instant) -> i64 {
        let (start, wall) = self.start;
        wall.0.saturating_add(millis(monotonic.saturating_duration_since(start)))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;
    const HOLD: Duration = Duration::from_secs(60);

    /// Whether a message has waited for the hold after so many seconds, when the clock was off by the first step when it was
    /// taken in and by the others, one a second, from then on.
    fn has_waited(steps: &[i64], seconds: i64) -> bool {
        let (start, wall) = (Instant::now(), |step: i64, second: i64| UnixMillis(1_700_000_000_000 + step + second * 1000));
        let mut ages = Ages::new(start, wall(0, 0));
        let mut now = start;
        for second in 0..=seconds {
            let step = steps.get(usize::try_from(second).unwrap()).or(steps.last()).unwrap();
            now = start + Duration::from_secs(second.unsigned_abs());
            ages.look(now, wall(*step, second));
        }
        wall(steps[0], 0) <= ages.waited_for(HOLD, now)
    }

    #[test]
    fn a_message_has_waited_when_its_time_is_over_and_not_before() {
        assert!(!has_waited(&[0], 59));
        assert!(has_waited(&[0], 60));
    }

    #[test]
    fn no_step_of_the_clock_makes_a_message_older_than_it_is() {
        let steps: [&[i64]; 5] = [&[0, DAY_MS], &[-DAY_MS], &[-DAY_MS, 0], &[-DAY_MS, DAY_MS], &[DAY_MS, -DAY_MS, 0]];
        for steps in steps {
            assert!(!has_waited(steps, 59), "{steps:?}");
        }
        assert!(has_waited(&[-DAY_MS], 60), "a clock that was set back makes nothing wait for longer, either");
    }
}
