//! The secret, read again before each knock at a gate that an operator must open: a rotated one is found by the next knock.
//!
//! Promises: a file system that does not answer holds up the knock for a moment and nobody else, and however many knocks
//! it outlasts, one thread waits for it. Refuses: to log the same trouble twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use crate::manager_api::ManagerApi;

/// How long a knock waits for the secret's file before it knocks with the secret in use.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads the secret again, and tells when it cannot be read.
#[derive(Default)]
pub(super) struct SecretReader {
    /// Held while the file is read.
    reading: Arc<Mutex<()>>,
    /// What was said at the last knock.
    told: Option<String>,
}

impl SecretReader {
    /// Reads it on a thread that may wait. Answers why it could not be read; the secret in use then stays.
    pub(super) fn read_again(&self, api: &ManagerApi) -> impl Future<Output = Option<String>> + Send + use<> {
        let (reading, api) = (Arc::clone(&self.reading), api.clone());
        async move {
            let slow = || Some(String::from("the secret's file does not answer"));
            let Ok(alone) = reading.try_lock_owned() else { return slow() };
            let read = tokio::task::spawn_blocking(move || {
                let failure = api.reload_secret().err();
                drop(alone);
                failure.map(|failure| failure.to_string())
            });
            timeout(PATIENCE, read).await.map_or_else(|_| slow(), Result::unwrap_or_default)
        }
    }

    /// Says what came of it, if that is news.
    pub(super) fn tell(&mut self, unreadable: Option<String>) {
        if let Some(error) = unreadable.as_ref().filter(|_| unreadable != self.told) {
            warn!(error, "the secret cannot be read: it is tried again with every probe");
        }
        self.told = unreadable;
    }
}
