//! Counters and gauges: plain atomics, counted where the thing happens, read by the status socket and the HTTP face.
//!
//! The books must balance: `received + pending and held at start = delivered + pending + held + rejected + skipped`,
//! counted in messages (a line that is refused counts as one).
//!
//! A metric is one line of the list below: its name is the key in the status, its documentation the help text of the
//! Prometheus exposition, which names it `chat_historyd_<name>`, with `_total` for counters.

mod kinds;

use kinds::Measured;
pub use kinds::{Buckets, Counter, Family, Gauge, Histogram, Kind, Label, Value};

use crate::protocol::RefusalCode;
use crate::store::RejectReason;

macro_rules! label {
    ($(#[$doc:meta])* $name:ident as $key:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Label for $name {
            const NAME: &'static str = $key;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
            fn index(self) -> usize { self as usize }
        }
    };
}

label! {
    /// Why something received did not become a message.
    Skip as "reason" {
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
        /// Undelivered, and deleted because a person asked for it.
        Forgotten = "forgotten",
    }
}

label! {
    /// How an attempt to report ended.
    AttemptOutcome as "outcome" {
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
    const NAME: &'static str = "code";
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
    const NAME: &'static str = "reason";
    const ALL: &'static [Self] = &Self::ALL;
    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
    fn index(self) -> usize {
        self as usize
    }
}

/// How long a request takes: from a local server's milliseconds to the longest timeout in use.
#[derive(Debug)]
pub struct Seconds;

impl Buckets for Seconds {
    const BOUNDS: &'static [f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
}

/// How many messages a conversation has.
#[derive(Debug)]
pub struct Messages;

impl Buckets for Messages {
    const BOUNDS: &'static [f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
}

/// What is known of a metric without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key in the status.
    pub name: &'static str,
    /// What it means.
    pub help: String,
    /// What it is.
    pub kind: Kind,
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

            /// What there is, in the order of its definition.
            #[must_use]
            pub fn catalogue() -> Vec<Entry> {
                vec![$(Entry {
                    name: stringify!($name),
                    help: concat!($($doc),+).trim().replace('`', ""),
                    kind: <$kind as Measured>::KIND,
                },)+]
            }
        }
    };
}

metrics! {
    /// What came in: messages, transcripts and events, refused lines included; rejected messages that are tried again
    /// and undelivered ones from an import, too.
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
    /// 1 while no producer can connect: the path of the events socket is gone.
    pub socket_missing: Gauge,
    /// 1 while the address of `status.http_listen` cannot be listened on; it is tried again.
    pub http_missing: Gauge,
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
    /// Messages and transcripts that salvages could not carry over: they stand in the files set aside in `corrupt/` and nowhere else.
    pub messages_left_behind: Gauge,
    /// Sessions that a salvage left without a cursor: sent from their beginning, again if anything of them was delivered before.
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
    /// Attempts that failed and are repeated.
    pub retries: Counter,
    /// Time from sending a report to the end of its answer, in seconds; reports without an answer are not in it.
    pub request_duration_seconds: Histogram<Seconds>,
    /// Length of conversations in messages, taken each time a session ends.
    pub conversation_messages: Histogram<Messages>,
    /// 1 when the configuration of the last reload (or of the start) is in use, 0 when it was refused and an older one is.
    pub config_last_reload_successful: Gauge,
    /// Times the gate closed.
    pub gate_closings: Counter,
    /// Backups written.
    pub backups_written: Counter,
    /// Attempts to write a backup that failed.
    pub backup_errors: Counter,
    /// Ended sessions whose backup could not be written yet, as of the last attempt: they are tried again.
    pub backups_due: Gauge,
}
