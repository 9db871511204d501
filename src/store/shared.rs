//! What the writer thread and the handles of the store share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::arrivals::Arrivals;
use super::directory::Directory;
use super::files::Files;
use super::health::StoreHealth;
use super::inbox::Inbox;
use super::lock::InstanceLock;
use super::log_meter::LogMeter;
use super::readers::Readers;
use super::recent::RecentBytes;
use super::shelf::Shelf;
use crate::config::{Durability, StoreSettings};
use crate::observe::Metrics;

/// Shared by the handles of the store and its writer.
pub(super) struct Shared {
    pub(super) files: Files,
    pub(super) durability: Durability,
    pub(super) log: LogMeter,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<Metrics>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) directory: Directory,
    pub(super) arrivals: Arrivals,
    pub(super) readers: Arc<Readers>,
    pub(super) recent: RecentBytes,
    shelf: Mutex<Shelf>,
    health: Mutex<StoreHealth>,
    /// Let go when the writer is gone, too.
    _lock: InstanceLock,
}

impl Shared {
    pub(super) fn new(files: Files, log: LogMeter, settings: &StoreSettings, metrics: Arc<Metrics>, lock: InstanceLock) -> Self {
        let inbox = Arc::new(Inbox::new());
        let readers = Arc::new(Readers::new(files.database.clone(), Arc::clone(&inbox)));
        Self {
            files,
            durability: settings.durability,
            log,
            limits: Limits::new(settings),
            metrics,
            inbox,
            directory: Directory::default(),
            arrivals: Arrivals::default(),
            readers,
            recent: RecentBytes::default(),
            shelf: Mutex::default(),
            health: Mutex::default(),
            _lock: lock,
        }
    }

    pub(super) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, StoreHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The settings that may change while the store is open.
#[derive(Debug)]
pub(super) struct Limits {
    retention_ms: AtomicU64,
    max_bytes: AtomicU64,
    shelf_bytes: AtomicU64,
    all_delivered: AtomicBool,
}

impl Limits {
    fn new(settings: &StoreSettings) -> Self {
        let limits = Self {
            retention_ms: AtomicU64::default(),
            max_bytes: AtomicU64::default(),
            shelf_bytes: AtomicU64::default(),
            all_delivered: AtomicBool::default(),
        };
        limits.set(settings);
        limits
    }

    pub(super) fn set(&self, settings: &StoreSettings) {
        self.retention_ms.store(u64::try_from(settings.retention.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.max_bytes.store(settings.max_bytes, Ordering::Relaxed);
        self.shelf_bytes.store(settings.shelf_bytes, Ordering::Relaxed);
    }

    pub(super) fn set_all_delivered(&self, yes: bool) {
        self.all_delivered.store(yes, Ordering::Relaxed);
    }

    pub(super) fn retention(&self) -> Duration {
        Duration::from_millis(self.retention_ms.load(Ordering::Relaxed))
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn shelf_bytes(&self) -> usize {
        usize::try_from(self.shelf_bytes.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    pub(super) fn all_delivered(&self) -> bool {
        self.all_delivered.load(Ordering::Relaxed)
    }
}
