//! Looks on: metrics, the status socket, logging. Nothing in the flow waits for anything here.

pub mod logging;
pub mod metrics;
pub mod status;
pub mod throttle;

pub use metrics::{AttemptOutcome, Metrics, Skip};
pub use throttle::{Ended, Episode, Mention, Throttle};
