//! A supervisor as systemd is one to its services: it hears what they tell, and how often they feed the watchdog.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::daemon::Builder;
use super::eventually::SOON;

/// Where the daemon's notifications arrive.
pub struct Supervisor {
    socket: UnixDatagram,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Supervisor {
    /// One that listens.
    #[allow(clippy::new_without_default, reason = "it makes a socket")]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), path, _directory: directory }
    }

    /// A daemon that tells it what it does.
    #[must_use]
    pub fn told_by(&self, daemon: Builder) -> Builder {
        daemon.environment("NOTIFY_SOCKET", &self.path.display().to_string())
    }

    /// And feeds a watchdog that bites after 0.9 s.
    #[must_use]
    pub fn fed_by(&self, daemon: Builder) -> Builder {
        self.told_by(daemon).environment("WATCHDOG_USEC", "900000")
    }

    /// The next datagram, if one comes in this time.
    pub fn hears(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1)))).unwrap();
        let mut buffer = [0; 4096];
        self.socket.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Everything up to a datagram with this line.
    #[track_caller]
    pub fn wait_for(&self, line: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let end = Instant::now() + SOON;
        loop {
            heard.extend(self.hears(end.saturating_duration_since(Instant::now())));
            if heard.last().is_some_and(|last| last.lines().any(|said| said == line)) {
                return heard;
            }
            assert!(Instant::now() < end, "the daemon never said {line}: {heard:?}");
        }
    }

    /// How often the watchdog is fed in this time.
    pub fn feedings(&self, span: Duration) -> usize {
        let end = Instant::now() + span;
        let mut count = 0;
        while Instant::now() < end {
            let heard = self.hears(end.saturating_duration_since(Instant::now()));
            count += usize::from(heard.is_some_and(|said| said.contains("WATCHDOG=1")));
        }
        count
    }
}
