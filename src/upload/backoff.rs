//! How long to wait before the next attempt.
//!
//! Promises: delays double from the first to the longest; jitter takes at most half of a delay away, so there is
//! always a floor; a `Retry-After` is a minimum to which jitter only adds. Refuses: to hold a clock or a random
//! source — the caller passes the random number. Called by the scheduler (sessions) and the gate (probes).

use std::time::Duration;

use tokio_retry::strategy::ExponentialBackoff;

/// The least first delay: below this, waiting is no backoff.
const SHORTEST: Duration = Duration::from_millis(2);

/// A jittered exponential backoff.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    delays: ExponentialBackoff,
}

impl Backoff {
    /// A backoff from `initial` (`upload.backoff_initial`) to `max` (`upload.backoff_max`), before jitter.
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        let initial = initial.max(SHORTEST);
        let max = max.max(initial);
        Self { initial, max, delays: delays(initial, max) }
    }

    /// The delay before the next attempt. `random` is a number in `0.0 ..= 1.0` (others are clamped). Without
    /// `retry_after` the delay is between half of the exponential one and all of it; with it, at least `retry_after`
    /// and at most a quarter more than the longer of the two.
    pub fn next_delay(&mut self, retry_after: Option<Duration>, random: f64) -> Duration {
        let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 1.0 };
        let delay = self.delays.next().unwrap_or(self.max);
        let jittered = delay.mul_f64(random.mul_add(0.5, 0.5));
        match retry_after {
            None => jittered,
            Some(least) => jittered.max(least.saturating_add(least.min(self.max).mul_f64(random * 0.25))),
        }
    }

    /// Starts from the first delay again: something went well.
    pub fn reset(&mut self) {
        self.delays = delays(self.initial, self.max);
    }
}

/// `from_millis` takes the *base* of the power, not the first delay: 2 doubles, and the factor sets the scale.
fn delays(initial: Duration, max: Duration) -> ExponentialBackoff {
    let factor = u64::try_from(initial.as_millis() / 2).unwrap_or(u64::MAX).max(1);
    ExponentialBackoff::from_millis(2).factor(factor).max_delay(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        let delays: Vec<u64> = (0..9).map(|_| backoff.next_delay(None, 1.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn jitter_has_a_floor_of_half_the_delay() {
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        assert_eq!(backoff.next_delay(None, 0.0), SECOND / 2);
        assert_eq!(backoff.next_delay(None, 0.0), SECOND);
    }

    #[test]
    fn a_success_starts_again() {
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        let _ = (backoff.next_delay(None, 1.0), backoff.next_delay(None, 1.0));
        backoff.reset();
        assert_eq!(backoff.next_delay(None, 1.0), SECOND);
    }

    #[test]
    fn to_what_the_server_asks_for_jitter_only_adds() {
        let hour = 3600 * SECOND;
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        assert_eq!(backoff.next_delay(Some(7 * SECOND), 0.0), 7 * SECOND);
        assert!(backoff.next_delay(Some(7 * SECOND), 1.0) > 7 * SECOND);
        assert_eq!(backoff.next_delay(Some(hour), 1.0), hour + 15 * SECOND);
        assert_eq!(backoff.next_delay(Some(Duration::ZERO), 1.0), 8 * SECOND);
    }

    #[test]
    fn nonsense_is_bounded() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        assert!(backoff.next_delay(None, 0.0) >= Duration::from_millis(1));
        let mut backoff = Backoff::new(10 * SECOND, SECOND);
        assert_eq!(backoff.next_delay(None, 1.0), 10 * SECOND);
        assert_eq!(backoff.next_delay(None, f64::NAN), 10 * SECOND);
        assert_eq!(backoff.next_delay(None, 7.0), 10 * SECOND);
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        let _ = backoff.next_delay(Some(Duration::MAX), 1.0);
    }

    proptest! {
        #[test]
        fn every_delay_is_within_its_bounds(
            initial in 2_u64..5_000, more in 0_u64..100_000, asked in proptest::option::of(0_u64..3_600_000), randoms in proptest::collection::vec(0.0..=1.0_f64, 1..80),
        ) {
            let (initial, max) = (Duration::from_millis(initial), Duration::from_millis(initial + more));
            let asked = asked.map(Duration::from_millis);
            let mut backoff = Backoff::new(initial, max);
            for random in randoms {
                let delay = backoff.next_delay(asked, random);
                let least = asked.unwrap_or_default().max(initial / 3);
                prop_assert!(delay >= least && delay <= max.max(asked.unwrap_or_default() + max / 4));
            }
        }
    }
}
