//! Who holds which session: everybody who asks for a session gets the same handle, as long as one is alive.
//!
//! Only the writer thread makes handles. A queued write, a queued cursor and a shelved write each hold the handle of their
//! session; so when no handle is alive, the database tells the truth about the session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::session_handle::SessionHandle;
use super::types::SessionKey;

/// The living handles.
#[derive(Debug, Default)]
pub(super) struct Directory {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    handles: HashMap<SessionKey, Weak<SessionHandle>>,
    sweep_at: usize,
}

impl Directory {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The living handle of a session.
    pub(super) fn get(&self, key: SessionKey) -> Option<Arc<SessionHandle>> {
        self.entries().handles.get(&key).and_then(Weak::upgrade)
    }

    /// Makes a handle known.
    pub(super) fn insert(&self, handle: &Arc<SessionHandle>) {
        let mut entries = self.entries();
        entries.handles.insert(handle.key, Arc::downgrade(handle));
        if entries.handles.len() > entries.sweep_at {
            entries.handles.retain(|_, handle| handle.strong_count() > 0);
            entries.sweep_at = (entries.handles.len() * 2).max(1024);
        }
    }

    /// All living handles.
    pub(super) fn living(&self) -> Vec<Arc<SessionHandle>> {
        self.entries().handles.values().filter_map(Weak::upgrade).collect()
    }
}
