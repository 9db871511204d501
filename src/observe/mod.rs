//! Looks on: metrics, the status socket, the HTTP face, logging. Nothing in the flow waits for anything here.

pub mod control;
pub mod conversation;
pub mod http;
pub mod logging;
pub mod metrics;
mod process;
pub mod prometheus;
pub mod rates;
pub mod sampled;
pub mod status;
pub mod throttle;

pub use conversation::Conversation;
pub use metrics::{AttemptOutcome, Metrics, Skip};
pub use throttle::{Ended, Episode, Mention, Throttle};
