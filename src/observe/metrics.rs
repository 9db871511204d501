//! Counters and gauges: plain atomics, counted where the thing happens, read by the status socket.
//!
//! The books must balance: `received + pending and held at start = delivered + pending + held + rejected + skipped`,
//! counted in messages (a line that is refused counts as one).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::RefusalCode;
use crate::store::RejectReason;

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
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Default for Family<L> {
    fn default() -> Self {
        Self { counters: L::ALL.iter().map(|_| Counter::default()).collect(), label: std::marker::PhantomData }
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

    /// All values together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.counters.iter().map(Counter::get).sum()
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
            fn index(self) -> usize { self as usize }
        }
    };
}

label! {
    /// Why something received did not become a message.
    Skip {
        /// Nothing was left of the text.
        Empty = "empty",
        /// Its `(stream, seq)` or `(session, id)` is already there.
        Duplicate = "duplicate",
        /// A final transcript that an item covers.
        Superseded = "superseded",
        /// A LiveKit event without a sentence.
        Ignored = "ignored",
        /// The line was refused with an error reply.
        Refused = "refused",
        /// No room left.
        Overloaded = "overloaded",
        /// A tool record that is kept but not sent.
        KeptOnly = "kept_only",
        /// Deleted by retention while no Manager API was configured.
        Expired = "expired",
    }
}

label! {
    /// How an attempt to report ended.
    AttemptOutcome {
        /// Stored by the server.
        Accepted = "accepted",
        /// The server does not know the device.
        UnknownDevice = "unknown_device",
        /// An operator must act.
        OperatorError = "operator_error",
        /// Never to be sent again.
        Rejected = "rejected",
        /// Refused; the poison rule decides.
        Refused = "refused",
        /// To be tried again.
        Later = "later",
    }
}

impl Label for RefusalCode {
    const ALL: &'static [Self] = &[
        Self::BadJson,
        Self::BadField,
        Self::NotBound,
        Self::LineTooLong,
        Self::UnsupportedVersion,
        Self::TooManyErrors,
        Self::Overloaded,
        Self::TooManyConnections,
    ];
    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
    fn index(self) -> usize {
        self as usize
    }
}

impl Label for RejectReason {
    const ALL: &'static [Self] = &Self::ALL;
    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
    fn index(self) -> usize {
        self as usize
    }
}

/// The value of a metric.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// One number.
    One(u64),
    /// A number per value of a label.
    Each(Vec<(&'static str, u64)>),
}

trait Measured {
    fn value(&self) -> Value;
}

impl Measured for Counter {
    fn value(&self) -> Value {
        Value::One(self.get())
    }
}

impl Measured for Gauge {
    fn value(&self) -> Value {
        Value::One(self.get())
    }
}

impl<L: Label> Measured for Family<L> {
    fn value(&self) -> Value {
        Value::Each(self.iter().collect())
    }
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ pub $name:ident: $kind:ty,)+) => {
        /// Everything that is counted.
        #[derive(Default, Debug)]
        pub struct Metrics { $($(#[doc = $doc])+ pub $name: $kind,)+ }

        impl Metrics {
            /// Every metric with its name and its value now, in the order of their definition.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static str, Value)> {
                vec![$((stringify!($name), self.$name.value()),)+]
            }
        }
    };
}

metrics! {
    /// What came in: messages, transcripts and events, refused lines included.
    pub received: Counter,
    /// What of it did not become a message.
    pub skipped: Family<Skip>,
    /// Messages pending when the daemon started, and those that a salvage while it ran made pending once more.
    pub pending_at_start: Counter,
    /// Transcripts held when the daemon started.
    pub held_at_start: Counter,
    /// Messages the server accepted.
    pub delivered: Counter,
    /// Messages that will never be delivered.
    pub rejected: Family<RejectReason>,
    /// Messages waiting for delivery.
    pub pending: Gauge,
    /// Transcripts waiting for their item.
    pub held: Gauge,
    /// Connections accepted.
    pub connections_total: Counter,
    /// Connections open.
    pub connections: Gauge,
    /// Connections refused: peer uid not allowed.
    pub peers_refused: Counter,
    /// Lines read, blank ones not counted.
    pub lines: Counter,
    /// Lines refused, by code.
    pub refusals: Family<RefusalCode>,
    /// Replies dropped because a client does not read.
    pub replies_dropped: Counter,
    /// Times outside the plausible range that were replaced by now.
    pub times_replaced: Counter,
    /// Session ids with a `:`.
    pub colon_session_ids: Counter,
    /// Audio that was no strict base64 and was left out.
    pub audio_invalid: Counter,
    /// Audio not sent: switched off, or over the cap.
    pub audio_not_sent: Counter,
    /// `speech_created` events.
    pub speeches_created: Counter,
    /// `error` events of agents.
    pub agent_errors: Counter,
    /// Lines that producers dropped before they reached the daemon, by their own word.
    pub producer_dropped: Counter,
    /// Session actors alive.
    pub sessions_open: Gauge,
    /// Sessions opened or re-opened.
    pub sessions_started: Counter,
    /// Sessions ended, idle ones included.
    pub sessions_ended: Counter,
    /// Transactions committed.
    pub commits: Counter,
    /// Writes of sessions committed.
    pub writes_committed: Counter,
    /// Failures of the store.
    pub store_errors: Counter,
    /// Bytes on the shelf.
    pub shelf_bytes: Gauge,
    /// Messages on the shelf that were delivered and dropped unarchived to make room.
    pub archive_dropped: Counter,
    /// Damaged stores set aside.
    pub stores_salvaged: Counter,
    /// Messages salvaged from a damaged store.
    pub messages_salvaged: Counter,
    /// Sessions sent again because their cursor was unreadable.
    pub cursors_lost: Counter,
    /// Messages deleted by age or size.
    pub messages_pruned: Counter,
    /// Attempts to report.
    pub attempts: Family<AttemptOutcome>,
    /// Attempts whose answer was lost after the body was sent: possible duplicates.
    pub ambiguous: Counter,
    /// Messages sent in more than one part.
    pub messages_split: Counter,
    /// Messages cut at the content limit.
    pub messages_truncated: Counter,
    /// Sum of the times of answered attempts, in microseconds.
    pub attempt_micros: Counter,
    /// Times the gate closed.
    pub gate_closings: Counter,
    /// Backups written.
    pub backups_written: Counter,
    /// Backups that could not be written.
    pub backup_errors: Counter,
}
