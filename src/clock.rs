//! The wall clock, as the rest of the daemon reads it. Only the edges read it: what is pure is given the time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::protocol::UnixMillis;

/// Now. A clock before 1970 reads as 1970.
#[must_use]
pub fn wall_clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
