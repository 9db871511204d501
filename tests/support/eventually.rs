//! The only place that waits: for a condition, with a deadline and a reason.

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// What a healthy daemon on a busy two-core machine manages by then; only failures wait this long.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks `attempt` again and again until it has something.
///
/// # Panics
/// When `deadline` passes first, naming `what`.
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

/// [`eventually`] for a condition, within [`SOON`].
#[track_caller]
pub fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(SOON, what, || condition().then_some(()));
}

/// Watches that `condition` holds the whole time: for what must *not* happen.
#[track_caller]
pub fn always(span: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(condition(), "no longer true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Paces a stand-in that is slow on purpose. Not for tests to wait for something.
pub fn pace(span: Duration) {
    std::thread::sleep(span);
}

/// A port on loopback that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port on loopback").port()
}
