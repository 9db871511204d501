//! What the daemon is asked to do from outside.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals the daemon listens to.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// A reload was asked for while only a stop was listened to.
    owes_reload: bool,
}

/// What a signal means.
pub(super) enum Wish {
    Stop,
    Reload,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            owes_reload: false,
        })
    }

    /// The next wish; a reload that came during [`Self::stop`] is the first.
    pub(super) async fn next(&mut self) -> Wish {
        if std::mem::take(&mut self.owes_reload) {
            return Wish::Reload;
        }
        self.heard().await
    }

    async fn heard(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }

    /// Waits for a stop, whatever comes before: a reload is owed then.
    pub(super) async fn stop(&mut self) {
        while matches!(self.heard().await, Wish::Reload) {
            self.owes_reload = true;
        }
    }
}
