//! The hand that writes: the running daemon's, over its status socket; without a daemon this process, which then holds
//! the instance lock.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;

use super::failure::Failure;
use super::owner::AsOwner;
use crate::config::Settings;
use crate::history::change::{Answer, Backups, Changes, Request};
use crate::history::search::SearchIndex;
use crate::observe::Metrics;
use crate::store::{Store, StoreError};

/// How long the daemon may take for one request.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a request is repeated that the daemon did not see in time.
const TRIES: usize = 50;
/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// Whoever writes.
pub(super) enum Hand {
    /// The daemon at this status socket.
    Daemon(PathBuf),
    /// This process; when it is root's, as the store's owner.
    Own(Runtime, Box<Changes>, Option<AsOwner>),
}

impl Hand {
    /// Finds out who writes to the store of these settings.
    pub(super) fn find(settings: &Settings) -> Result<Self, Failure> {
        let path = &settings.status.socket;
        match UnixStream::connect(path) {
            Ok(_) => return Ok(Self::Daemon(path.clone())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(Failure::Daemon(format!("cannot ask the daemon at {}: {error} (sudo?)", path.display()))),
        }
        let as_owner = AsOwner::of(&settings.store.directory)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let store = Store::open(&settings.store, Arc::new(Metrics::default())).map_err(|error| match error {
            StoreError::AlreadyRunning { directory } => Failure::Daemon(format!(
                "a daemon uses {} and does not answer at {} (does status.socket of this configuration name its socket?)",
                directory.display(),
                path.display()
            )),
            other => Failure::Store(other),
        })?;
        let backups = Backups::Resting(settings.backup.directory.clone());
        Ok(Self::Own(
            runtime,
            Box::new(Changes { store, index: SearchIndex::of(&settings.store.directory), backups, serving: false }),
            as_owner,
        ))
    }

    /// Whether a daemon runs.
    pub(super) const fn is_daemon(&self) -> bool {
        matches!(self, Self::Daemon(_))
    }

    /// Has something done; its refusal is a failure.
    pub(super) fn request(&self, request: &Request) -> Result<Answer, Failure> {
        let answer = match self {
            Self::Daemon(path) => ask(path, request)?,
            Self::Own(runtime, changes, _) => runtime.block_on(changes.run(request.clone())),
        };
        match answer {
            Answer { ok: true, .. } => Ok(answer),
            Answer { not_now: true, error, .. } => Err(Failure::NotNow(error.unwrap_or_default())),
            Answer { error, .. } => Err(Failure::Refused(error.unwrap_or_default())),
        }
    }

    /// Lets go of the store, after everything is written.
    pub(super) fn finish(self) {
        if let Self::Own(runtime, changes, as_owner) = self {
            runtime.block_on(changes.store.close());
            drop(runtime);
            if let Some(as_owner) = as_owner {
                as_owner.leave();
            }
        }
    }
}

fn ask(path: &PathBuf, request: &Request) -> Result<Answer, Failure> {
    let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
    line.push(b'\n');
    let failed = |error: io::Error| Failure::Daemon(format!("the daemon at {} does not answer: {error}", path.display()));
    for _ in 0..TRIES {
        let mut stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        // A daemon that has hung up already did not see it.
        let sent = stream.write_all(&line);
        let mut text = Vec::new();
        let read = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut text);
        if text.is_empty() {
            sent.and(read.map(|_| ())).map_err(failed)?;
            // Too many ask at once.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let answer: Value = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        // The status in place of an answer: the request came too late, and nothing was done.
        if answer.get("ok").is_some() {
            return serde_json::from_value(answer).map_err(|error| failed(error.into()));
        }
    }
    Err(failed(io::Error::new(io::ErrorKind::TimedOut, "it is too busy (or too old for this program)")))
}
