//! The memory for long lines, which all connections share: a buffer that is bounded for each of thousands is not bounded.
//!
//! Promises: lines that are longer than [`FREE_BYTES`] hold at most [`SHARED_BYTES`] together until they are with the store,
//! however many clients send some. Room is given for the longest line there may be, so whoever has it can finish its line
//! without asking again, and nobody waits for somebody who waits; first come, first served. Who still has not finished
//! after [`PATIENCE`] is told so as soon as others wait.
//! Refuses: to refuse. A connection that finds no room is not read from until there is some: its client is held back by
//! the kernel, and loses nothing.
//! Called by the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

/// What each connection may hold of a line without asking.
pub const FREE_BYTES: usize = 64 * 1024;

/// What all lines together may hold that are longer; as much as the longest line that can be configured.
pub const SHARED_BYTES: usize = 64 << 20;

/// What room is counted in.
const UNIT_BYTES: usize = 1024;

/// How long a line may take from its first long byte to its end while others wait. A local socket takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Clone, Debug)]
pub struct LongLines {
    units: Arc<Semaphore>,
    /// How many wait.
    waiting: Arc<watch::Sender<usize>>,
}

/// Room for one long line; given back when dropped.
#[derive(Debug)]
pub struct Room {
    permit: OwnedSemaphorePermit,
    since: Instant,
}

impl Room {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { permit, since: Instant::now() }
    }

    /// The line is complete and goes its way, and its share with it.
    pub fn into_share(self) -> OwnedSemaphorePermit {
        self.permit
    }
}

/// One who waits, as long as it waits.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn announce(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|waiting| *waiting += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

impl Default for LongLines {
    fn default() -> Self {
        Self { units: Arc::new(Semaphore::new(SHARED_BYTES / UNIT_BYTES)), waiting: Arc::default() }
    }
}

impl LongLines {
    /// Room for a line of at most so many bytes, if there is some and nobody waits for it.
    #[must_use]
    pub fn try_room(&self, max_line_bytes: usize) -> Option<Room> {
        Arc::clone(&self.units).try_acquire_many_owned(units(max_line_bytes)).ok().map(Room::new)
    }

    /// Waits for room for a line of at most so many bytes.
    ///
    /// # Cancel safety
    /// Loses its place among those who wait, nothing else.
    pub async fn room(&self, max_line_bytes: usize) -> Room {
        // Boxed: no connection carries what nearly none waits for.
        Box::pin(async {
            let _waiting = Waiting::announce(&self.waiting);
            match Arc::clone(&self.units).acquire_many_owned(units(max_line_bytes)).await {
                Ok(permit) => Room::new(permit),
                Err(_never_closed) => std::future::pending().await,
            }
        })
        .await
    }

    /// Resolves when the line has had its time and others wait; never without room.
    ///
    /// # Cancel safety
    /// Cancel safe: it only waits.
    pub async fn overdue(&self, room: Option<&Room>) {
        let Some(room) = room else { return std::future::pending().await };
        Box::pin(async {
            sleep_until(room.since + PATIENCE).await;
            // Nobody closes it while `self` is there.
            let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
        })
        .await;
    }
}

fn units(max_line_bytes: usize) -> u32 {
    u32::try_from(max_line_bytes.min(SHARED_BYTES).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use tokio::time::timeout;

    use super::*;

    async fn is_ready(future: impl Future) -> bool {
        timeout(Duration::ZERO, future).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_line_there_may_be_always_finds_room_in_the_end() {
        let lines = LongLines::default();
        let first = lines.try_room(usize::MAX).unwrap();
        assert!(lines.try_room(1).is_none());
        let mut second = pin!(lines.room(usize::MAX));
        assert!(!is_ready(&mut second).await);
        drop(first);
        drop(second.await);
        assert!(lines.try_room(SHARED_BYTES).is_some(), "all of it came back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_time_until_somebody_waits_and_five_seconds_at_least() {
        let lines = LongLines::default();
        let room = lines.try_room(SHARED_BYTES).unwrap();
        tokio::time::advance(PATIENCE).await;
        assert!(!is_ready(lines.overdue(Some(&room))).await, "nobody waits");
        let mut other = pin!(lines.room(1));
        assert!(!is_ready(&mut other).await);
        assert!(is_ready(lines.overdue(Some(&room))).await);
        drop(room);
        let room = other.await;
        let _all = lines.try_room(SHARED_BYTES - UNIT_BYTES).unwrap();
        let mut third = pin!(lines.room(1));
        assert!(!is_ready(&mut third).await);
        assert!(!is_ready(lines.overdue(Some(&room))).await, "its time has just begun");
        tokio::time::advance(PATIENCE).await;
        assert!(is_ready(lines.overdue(Some(&room))).await);
        assert!(!is_ready(lines.overdue(None)).await);
    }
}
