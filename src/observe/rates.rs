//! How much happens: counters compared over the last minutes.
//!
//! Pure and bounded: at most `SAMPLES` samples, taken by whoever has a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{AttemptOutcome, Metrics};

/// Time between two samples.
pub const EVERY: Duration = Duration::from_secs(5);

/// Samples kept: five minutes.
const SAMPLES: usize = 61;

/// Counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Items taken in.
    pub received: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Reports sent.
    pub attempts: u64,
    /// Of these, accepted.
    pub accepted: u64,
}

impl Sample {
    /// What the books say now.
    #[must_use]
    pub fn of(metrics: &Metrics) -> Self {
        Self {
            received: metrics.received.get(),
            delivered: metrics.delivered.get(),
            attempts: metrics.attempts.sum(),
            accepted: metrics.attempts.get(AttemptOutcome::Accepted),
        }
    }
}

/// The last minutes.
#[derive(Clone, Debug)]
pub struct Rates {
    samples: VecDeque<(Instant, Sample)>,
}

/// What happened over a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The time looked at; short after the start.
    pub window: Duration,
    /// What happened in it.
    pub happened: Sample,
}

impl Rate {
    /// A number of the window, per minute.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no precision")]
    pub fn per_minute(&self, happened: u64) -> f64 {
        let seconds = self.window.as_secs_f64();
        if seconds > 0.0 { happened as f64 * 60.0 / seconds } else { 0.0 }
    }

    /// The share of reports that were accepted; `None` when none was sent.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no precision")]
    pub fn success(&self) -> Option<f64> {
        (self.happened.attempts > 0).then(|| self.happened.accepted as f64 / self.happened.attempts as f64)
    }
}

impl Rates {
    /// The counting begins.
    #[must_use]
    pub fn new(now: Instant, sample: Sample) -> Self {
        Self { samples: [(now, sample)].into() }
    }

    /// One more sample; the oldest makes room.
    pub fn take(&mut self, now: Instant, sample: Sample) {
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, sample));
    }

    /// What happened from the oldest sample until now.
    #[must_use]
    pub fn until(&self, now: Instant, sample: Sample) -> Rate {
        let (since, before) = self.samples.front().copied().unwrap_or((now, sample));
        Rate {
            window: now.saturating_duration_since(since),
            happened: Sample {
                received: sample.received.saturating_sub(before.received),
                delivered: sample.delivered.saturating_sub(before.delivered),
                attempts: sample.attempts.saturating_sub(before.attempts),
                accepted: sample.accepted.saturating_sub(before.accepted),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(attempts: u64, accepted: u64) -> Sample {
        Sample { attempts, accepted, ..Sample::default() }
    }

    #[test]
    fn only_the_last_five_minutes_count() {
        let start = Instant::now();
        let mut rates = Rates::new(start, sample(0, 0));
        for step in 1..=120_u32 {
            rates.take(start + EVERY * step, sample(u64::from(step) * 10, u64::from(step) * 5));
        }
        let rate = rates.until(start + EVERY * 120, sample(1_200, 600));
        assert_eq!(rate.window, Duration::from_secs(300));
        assert_eq!(rate.happened, sample(600, 300));
        assert!((rate.per_minute(600) - 120.0).abs() < 1e-9);
        assert_eq!(rate.success(), Some(0.5));
    }

    #[test]
    fn at_the_very_start_nothing_is_divided_by_zero() {
        let now = Instant::now();
        let rate = Rates::new(now, sample(0, 0)).until(now, sample(3, 0));
        assert!(rate.per_minute(3).abs() < 1e-9);
        assert_eq!(Rates::new(now, sample(0, 0)).until(now, sample(0, 0)).success(), None);
    }
}
