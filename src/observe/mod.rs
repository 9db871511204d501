//! Looks on: metrics, the status socket, logging. Nothing in the flow waits for anything here.

pub mod metrics;

pub use metrics::{AttemptOutcome, Metrics, Skip};
