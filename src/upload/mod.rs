//! Delivery: what the store holds is sent to the Manager API, each session strictly in order, until it is there.
//!
//! Promises: one report in flight per session; a session that fails takes nobody's turn and blocks no other; nothing is
//! rejected in an outage; a stop loses nothing, for everything stands in the store.
//! Refuses: to send what the store does not hold, to guess the server's time unit, to knock with more than one probe.
//! Pulls from `store`, calls `manager_api`; `gate`, `backoff`, `poison` and `due` are pure.

mod ages;
pub mod backoff;
pub mod deliveries;
mod devices;
pub mod due;
mod files;
pub mod gate;
pub mod poison;
mod queue;
pub mod scheduler;
pub mod turn;

pub use backoff::Backoff;
pub use deliveries::{Delivered, Deliveries, Server, UploadStatus};
pub use gate::{Change, Closed, Gate, Probe};
pub use poison::{StrikeOutcome, Strikes};
pub use scheduler::Uploader;
