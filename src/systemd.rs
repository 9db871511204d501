//! What the daemon tells its supervisor. Without a supervisor nothing is told, and nothing here fails.

use std::time::Duration;

use sd_notify::NotifyState;

/// The socket accepts: others may start.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The daemon is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// The start (a damaged store is being salvaged) or the stop goes on: so much longer from now on, whatever the unit allows.
pub fn takes(time: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

/// All core tasks have made progress.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be said; `None` without a watchdog.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn tell(states: &[NotifyState<'_>]) {
    // A supervisor that does not listen is no reason to stop.
    let _ = sd_notify::notify(states);
}
