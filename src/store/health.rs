//! How the store is, as the status shows it, and what was left when it was closed.

use std::time::Instant;

/// How the store is.
#[derive(Clone, Debug, Default)]
pub struct StoreHealth {
    /// Set while the store cannot be written.
    pub failing: Option<Failing>,
    /// Bytes on the shelf.
    pub shelf_bytes: u64,
    /// Messages on the shelf.
    pub shelf_messages: u64,
    /// Used pages and WAL, in bytes.
    pub used_bytes: u64,
    /// `store.max_bytes` is reached and nothing delivered is left to delete: intake is refused.
    pub full: bool,
}

/// An episode in which the store cannot be written.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Since when.
    pub since: Instant,
    /// The cause, for people.
    pub what: String,
    /// Messages refused meanwhile, for the shelf had no room for them.
    pub refused: u64,
}

/// What was left when the store was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloseReport {
    /// Messages on the shelf that could be written neither to the store nor delivered: they were never acknowledged.
    pub messages_lost: u64,
}
