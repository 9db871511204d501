//! Who holds which session: everybody who asks for a session gets the same handle, as long as one is alive.
//!
//! Only the writer thread makes handles. A queued write, a queued cursor and a shelved write each hold the handle of their
//! session; so when no handle is alive, the database tells the truth about the session. A session that was forgotten has no
//! row, and yet whoever holds its handle may go on in it: until then it is found here by its identity, and must get no
//! second key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::session_handle::SessionHandle;
use super::types::SessionKey;
use crate::protocol::SessionIdentity;

/// The living handles.
#[derive(Debug, Default)]
pub(super) struct Directory {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    handles: HashMap<SessionKey, Weak<SessionHandle>>,
    /// Those of them whose session was forgotten.
    forgotten: HashMap<SessionIdentity, Weak<SessionHandle>>,
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
            entries.forgotten.retain(|_, handle| handle.strong_count() > 0);
            entries.sweep_at = (entries.handles.len() * 2).max(1024);
        }
    }

    /// The row of a session is gone, though somebody holds it.
    pub(super) fn note_forgotten(&self, handle: &Arc<SessionHandle>) {
        self.entries().forgotten.insert(handle.identity.clone(), Arc::downgrade(handle));
    }

    /// The living handle of a session that was forgotten; to be asked when the database does not know the identity.
    pub(super) fn forgotten(&self, identity: &SessionIdentity) -> Option<Arc<SessionHandle>> {
        self.entries().forgotten.get(identity).and_then(Weak::upgrade)
    }

    /// All living handles.
    pub(super) fn living(&self) -> Vec<Arc<SessionHandle>> {
        self.entries().handles.values().filter_map(Weak::upgrade).collect()
    }
}
