//! The clocks that the standard library lacks or gives in another form. Only the edges read them: what is pure is given the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::ClockId;

use crate::protocol::UnixMillis;

/// Now. A clock before 1970 reads as 1970.
#[must_use]
pub fn wall_clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time since the boot, that in which the machine slept included: the monotonic clock stands still then, and a wall clock
/// compared with it would seem to have been set ahead.
#[must_use]
pub fn since_boot() -> Duration {
    ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default()
}
