//! The kinds of metrics: counters, gauges, families of counters and histograms, all plain atomics.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only rises.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// `count` more, up to the largest number: for counts that somebody else names.
    pub fn add_claimed(&self, count: u64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_add(count)));
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Default, Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// `count` less, never below zero.
    pub fn subtract(&self, count: u64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(count)));
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A label with a fixed set of values.
pub trait Label: Copy + 'static {
    /// What the label is called.
    const NAME: &'static str;
    /// All values, in order.
    const ALL: &'static [Self];
    /// The value as text.
    fn as_str(self) -> &'static str;
    /// Its place in [`Self::ALL`].
    fn index(self) -> usize;
}

/// A counter per value of a label.
#[derive(Debug)]
pub struct Family<L: Label> {
    counters: Box<[Counter]>,
    label: PhantomData<L>,
}

impl<L: Label> Default for Family<L> {
    fn default() -> Self {
        Self { counters: L::ALL.iter().map(|_| Counter::default()).collect(), label: PhantomData }
    }
}

impl<L: Label> Family<L> {
    /// The counter of one value.
    pub fn add(&self, label: L, count: u64) {
        if let Some(counter) = self.counters.get(label.index()) {
            counter.add(count);
        }
    }

    /// One more of this value.
    pub fn increment(&self, label: L) {
        self.add(label, 1);
    }

    /// Every value with its number.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        L::ALL.iter().zip(self.counters.iter()).map(|(label, counter)| (label.as_str(), counter.get()))
    }

    /// The number of one value.
    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.counters.get(label.index()).map_or(0, Counter::get)
    }

    /// All values together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.counters.iter().map(Counter::get).sum()
    }
}

/// The upper bounds of a histogram's buckets, rising; the last bucket, without a bound, is implied.
pub trait Buckets: 'static {
    /// The bounds.
    const BOUNDS: &'static [f64];
}

/// Counts observations by size.
#[derive(Debug)]
pub struct Histogram<B: Buckets> {
    /// One more than bounds; not cumulative.
    counts: Box<[AtomicU64]>,
    /// In millionths: every size in use is a whole number of them.
    sum_micros: AtomicU64,
    bounds: PhantomData<B>,
}

impl<B: Buckets> Default for Histogram<B> {
    fn default() -> Self {
        let counts = (0..=B::BOUNDS.len()).map(|_| AtomicU64::default()).collect();
        Self { counts, sum_micros: AtomicU64::default(), bounds: PhantomData }
    }
}

impl<B: Buckets> Histogram<B> {
    /// Notes a time, in seconds.
    pub fn observe_duration(&self, time: Duration) {
        self.observe(time.as_secs_f64(), u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Notes a number of things.
    #[allow(clippy::cast_precision_loss, reason = "the bounds are far below the precision of f64")]
    pub fn observe_count(&self, count: u64) {
        self.observe(count as f64, count.saturating_mul(1_000_000));
    }

    fn observe(&self, size: f64, micros: u64) {
        let bucket = B::BOUNDS.partition_point(|bound| *bound < size);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A counter for each value of this label.
    Family(&'static str),
    /// Observations by size.
    Histogram,
}

/// The value of a metric.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// One number.
    One(u64),
    /// A number per value of a label.
    Each(Vec<(&'static str, u64)>),
    /// Observations up to each bound (all of them, for the last, without a bound), and their sum.
    Sizes {
        /// Bound and cumulative number; no bound for the last.
        buckets: Vec<(Option<f64>, u64)>,
        /// The sum of all sizes.
        sum: f64,
    },
}

pub(super) trait Measured {
    const KIND: Kind;
    fn value(&self) -> Value;
}

impl Measured for Counter {
    const KIND: Kind = Kind::Counter;
    fn value(&self) -> Value {
        Value::One(self.get())
    }
}

impl Measured for Gauge {
    const KIND: Kind = Kind::Gauge;
    fn value(&self) -> Value {
        Value::One(self.get())
    }
}

impl<L: Label> Measured for Family<L> {
    const KIND: Kind = Kind::Family(L::NAME);
    fn value(&self) -> Value {
        Value::Each(self.iter().collect())
    }
}

impl<B: Buckets> Measured for Histogram<B> {
    const KIND: Kind = Kind::Histogram;

    #[allow(clippy::cast_precision_loss, reason = "a sum of 285 years still has microseconds")]
    fn value(&self) -> Value {
        let bounds = B::BOUNDS.iter().copied().map(Some).chain([None]);
        let mut seen = 0;
        let buckets = bounds.zip(&self.counts).map(|(bound, count)| {
            seen += count.load(Ordering::Relaxed);
            (bound, seen)
        });
        Value::Sizes { buckets: buckets.collect(), sum: self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Few;

    impl Buckets for Few {
        const BOUNDS: &'static [f64] = &[1.0, 2.5];
    }

    #[test]
    fn a_size_counts_in_every_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::<Few>::default();
        histogram.observe_count(1);
        histogram.observe_duration(Duration::from_millis(2_500));
        histogram.observe_count(7);
        let buckets = vec![(Some(1.0), 1), (Some(2.5), 2), (None, 3)];
        assert_eq!(histogram.value(), Value::Sizes { buckets, sum: 10.5 });
    }
}
