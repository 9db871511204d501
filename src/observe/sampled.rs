//! Figures that only the disk can tell: asked in the background, one question at a time.
//!
//! Promises: a file system that hangs holds up one thread and nobody who asks for the status; a figure that could not be
//! renewed for `FRESH` is no longer told. Refuses: to cost more than a fiftieth of a processor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::config::Settings;
use crate::store::Store;

/// The pause between two questions, when answers come fast.
const EVERY: Duration = Duration::from_secs(2);

/// A question that took long is not asked again for so many times as long.
const REST: u32 = 50;

/// How old a figure may be.
const FRESH: Duration = Duration::from_secs(60);

/// The file system of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that the daemon's user may still write.
    pub free_bytes: u64,
    /// All its bytes.
    pub size_bytes: u64,
}

impl Disk {
    /// Asks the file system that a path is on. Blocks.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let statistics = nix::sys::statvfs::statvfs(path).ok()?;
        let unit = statistics.fragment_size();
        Some(Self { free_bytes: statistics.blocks_available() * unit, size_bytes: statistics.blocks() * unit })
    }
}

/// The figures as they were last told. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sampled(Arc<Mutex<Figures>>);

#[derive(Debug, Default)]
struct Figures {
    disk: Option<(Instant, Disk)>,
    rejected: Option<BTreeMap<String, u64>>,
}

impl Sampled {
    /// The store's file system; `None` while it does not answer.
    #[must_use]
    pub fn disk(&self) -> Option<Disk> {
        self.figures().disk.filter(|(at, _)| at.elapsed() < FRESH).map(|(_, disk)| disk)
    }

    /// Rejected messages that stand in the store, by reason; `None` while nobody could count them.
    #[must_use]
    pub fn rejected(&self) -> Option<BTreeMap<String, u64>> {
        self.figures().rejected.clone()
    }

    /// Keeps asking until the task is dropped.
    pub async fn keep(self, store: Store, settings: watch::Receiver<Arc<Settings>>) {
        let disk = async {
            loop {
                let directory = settings.borrow().store.directory.clone();
                let began = Instant::now();
                self.ask_disk(directory).await;
                sleep(EVERY.max(began.elapsed() * REST)).await;
            }
        };
        let rejected = async {
            loop {
                let began = Instant::now();
                // A store that cannot be read now may be read later: what was counted last stands until then.
                if let Ok(counted) = store.rejected_counts().await {
                    self.figures().rejected = Some(counted.into_iter().collect());
                }
                sleep(EVERY.max(began.elapsed() * REST)).await;
            }
        };
        tokio::join!(disk, rejected);
    }

    async fn ask_disk(&self, directory: PathBuf) {
        if let Ok(Some(disk)) = tokio::task::spawn_blocking(move || Disk::of(&directory)).await {
            self.figures().disk = Some((Instant::now(), disk));
        }
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_figure_that_could_not_be_renewed_is_not_told() {
        let sampled = Sampled::default();
        assert_eq!(sampled.disk(), None);
        let disk = Disk { free_bytes: 1, size_bytes: 2 };
        sampled.figures().disk = Some((Instant::now(), disk));
        assert_eq!(sampled.disk(), Some(disk));
        tokio::time::advance(FRESH).await;
        assert_eq!(sampled.disk(), None);
    }
}
