//! Opens sessions and binds streams, on whatever connection the writer has. Only the writer thread calls this.

use std::sync::Arc;

use rusqlite::Connection;

use super::directory::Directory;
use super::inbox::Found;
use super::rows;
use super::session_handle::SessionHandle;
use super::shelf::Overlay;
use super::types::{BacklogSession, MAX_EVENT_IDS, OpenedSession, SessionKey};
use super::writer::NextIds;
use crate::protocol::{SessionIdentity, UnixMillis};

/// How long de-duplication keys outlive the end of their session.
pub(super) const KEYS_LIVE_MS: i64 = 24 * 3_600_000;

/// The shared handle of a session that is in the database.
pub(super) fn handle(
    directory: &Directory,
    connection: &Connection,
    key: SessionKey,
    identity: &SessionIdentity,
) -> rusqlite::Result<Arc<SessionHandle>> {
    if let Some(handle) = directory.get(key) {
        return Ok(handle);
    }
    let cursor = rows::cursor(connection, key)?;
    let pending = rows::count_after(connection, key, cursor.row)?;
    let handle = Arc::new(SessionHandle::new(key, identity.clone(), cursor, pending));
    handle.set_stored(rows::newest(connection, key)?);
    directory.insert(&handle);
    Ok(handle)
}

/// The handle of a session that the database does not know: new, or the one that somebody still holds.
pub(super) fn new_handle(directory: &Directory, next: &mut NextIds, identity: &SessionIdentity) -> Arc<SessionHandle> {
    if let Some(handle) = directory.forgotten(identity) {
        return handle;
    }
    let handle = Arc::new(SessionHandle::new(next.session_key(), identity.clone(), super::types::Cursor::default(), 0));
    handle.set_stored(super::types::RowId(0));
    directory.insert(&handle);
    handle
}

/// A new session, opened.
pub(super) fn opened_new(handle: Arc<SessionHandle>) -> OpenedSession {
    OpenedSession { handle, held: Vec::new(), event_ids: Vec::new(), agent_id: None, was_ended: false }
}

/// Everything the database knows of a session; `None` when it does not know it.
pub(super) fn load(
    directory: &Directory,
    connection: &Connection,
    identity: &SessionIdentity,
    now: UnixMillis,
) -> rusqlite::Result<Option<OpenedSession>> {
    let Some(row) = rows::session_by_identity(connection, identity)? else { return Ok(None) };
    // Of an open session all keys live, of one that ended those of the last day.
    let since = if row.ended { UnixMillis(now.0.saturating_sub(KEYS_LIVE_MS)) } else { UnixMillis(i64::MIN) };
    Ok(Some(OpenedSession {
        handle: handle(directory, connection, row.key, identity)?,
        held: rows::held(connection, row.key)?,
        event_ids: rows::event_ids(connection, row.key, since, MAX_EVENT_IDS)?,
        agent_id: row.agent_id,
        was_ended: row.ended,
    }))
}

/// Lays what is on the shelf over what the database knows.
pub(super) fn overlay(opened: &mut OpenedSession, shelf: Overlay) {
    opened.was_ended = shelf.ended().unwrap_or(opened.was_ended);
    opened.held.retain(|held| !shelf.released.contains(&held.uuid));
    let known: Vec<_> = opened.held.iter().map(|held| held.uuid).collect();
    opened.held.extend(shelf.held.into_iter().filter(|held| !known.contains(&held.uuid)));
    opened.event_ids.extend(shelf.event_ids);
    opened.agent_id = shelf.agent.or(opened.agent_id.take()).or(shelf.suggested_agent);
}

/// Gives sessions with a backlog their handles. A reader has counted them; what came since then is added. Rows leave from the
/// oldest on, when they are forgotten: if that one is still there, all are.
pub(super) fn adopt(directory: &Directory, connection: &Connection, found: &[Found]) -> rusqlite::Result<Vec<BacklogSession>> {
    let adopt = |found: &Found| {
        let living = directory.get(found.key);
        let handle = match living {
            Some(handle) => handle,
            None if is_as_found(connection, found)? => {
                let pending = found.pending + rows::count_after(connection, found.key, found.newest)?;
                let handle = Arc::new(SessionHandle::new(found.key, found.identity.clone(), found.cursor, pending));
                handle.set_stored(rows::newest(connection, found.key)?);
                directory.insert(&handle);
                handle
            }
            None => handle(directory, connection, found.key, &found.identity)?,
        };
        Ok(BacklogSession { handle, ended: found.ended, oldest: found.waits_since })
    };
    found.iter().map(adopt).collect()
}

fn is_as_found(connection: &Connection, found: &Found) -> rusqlite::Result<bool> {
    Ok(rows::cursor(connection, found.key)? == found.cursor
        && rows::first_after(connection, found.key, found.cursor.row)? == Some(found.oldest))
}
