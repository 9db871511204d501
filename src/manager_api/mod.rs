//! The remote: what a report looks like, what an answer means, and the HTTP client between the two.
//!
//! Promises: building a report, cutting long text and judging an answer are pure and total — every byte sequence a
//! server can send has exactly one [`Verdict`]; only HTTP 200 with a JSON object of `code` 0 and `data` true is
//! [`Verdict::Delivered`]; a request that may have reached the server without a readable answer is marked ambiguous;
//! every request ends within its timeout and reads at most 64 KiB of an answer.
//! Refuses: to follow redirects, to repeat a request by itself, to use a proxy nobody configured, to guess the
//! server's time unit, to put content or the secret into a text that may be logged.
//! Called by `upload` (reports, probes, profile) and `doctor`; the agent lookup serves `history`.

pub mod client;
mod connection;
mod credential;
mod envelope;
mod lookup;
#[cfg(test)]
mod on_the_wire;
pub mod profile;
pub mod report;
mod split;
mod transport;
pub mod verdict;

/// Said where making a client takes too long: it reads two files, and one of them hangs.
pub const FILES_DO_NOT_ANSWER: &str =
    "manager_api.secret_file or manager_api.ca_file does not answer: look at the file system it is on";

pub use client::{AnsweredBy, Attempt, ManagerApi, ManagerApiError, ServerLook};
pub use lookup::AgentLookup;
pub use profile::{ProfileUnknown, ServerProfile, TimeUnit};
pub use report::{AUDIO_CAP_BYTES, Report, audio_to_send, encode, idempotency_key, report_time, session_id_within};
pub use split::{ContentLimit, Part, next_part, truncate};
pub use verdict::{Answer, BodyEnd, Verdict, classify};
