//! What an operator mends in a file, the secret and the authorities: read again before each knock at a gate that only an
//! operator can open, and at a reload. So what was mended or rotated is found by the next knock.
//!
//! Promises: a file system that does not answer holds up the knock for a moment and nobody else, and however many knocks
//! it outlasts, one thread waits for it. Refuses: to log the same trouble twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use crate::manager_api::ManagerApi;

/// How long a knock waits for the files before it knocks with what is in use.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads the files again, and tells when one cannot be read.
#[derive(Default)]
pub(super) struct FileReader {
    /// Held while they are read.
    reading: Arc<Mutex<()>>,
    /// Whoever reads them has used up somebody's patience.
    hangs: Arc<AtomicBool>,
    /// What was said at the last knock.
    told: Option<String>,
}

impl FileReader {
    /// Reads them on a thread that may wait. Answers what could not be read; what is in use then stays.
    pub(super) fn read_again(&self, api: &ManagerApi) -> impl Future<Output = Option<String>> + Send + use<> {
        let (reading, hangs, api) = (Arc::clone(&self.reading), Arc::clone(&self.hangs), api.clone());
        async move {
            let files = api.files();
            let slow = || Some(format!("{files} does not answer"));
            if reading.try_lock().is_err() && hangs.load(Ordering::Relaxed) {
                return slow();
            }
            let read = async {
                let alone = reading.lock_owned().await;
                hangs.store(false, Ordering::Relaxed);
                let read = tokio::task::spawn_blocking(move || {
                    let failure = api.reload().err();
                    drop(alone);
                    failure.map(|failure| failure.to_string())
                });
                read.await.unwrap_or_default()
            };
            timeout(PATIENCE, read).await.unwrap_or_else(|_| {
                hangs.store(true, Ordering::Relaxed);
                slow()
            })
        }
    }

    /// Says what came of it, if that is news.
    pub(super) fn tell(&mut self, unreadable: Option<String>) {
        if let Some(error) = unreadable.as_ref().filter(|_| unreadable != self.told) {
            warn!(
                error,
                "a file that delivery needs cannot be read: what was read before stays in use (it is tried again with every probe)"
            );
        }
        self.told = unreadable;
    }
}
