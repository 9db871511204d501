//! One group: applied in one transaction, committed, and only then told to everybody, in order.

use std::sync::Arc;

use rusqlite::Connection;

use super::apply::{Applier, rows_of};
use super::error::{BindError, StoreError};
use super::inbox::Job;
use super::rows;
use super::session_handle::SessionHandle;
use super::sessions;
use super::shared::Shared;
use super::shelf::row_after;
use super::types::{
    BacklogSession, Disposition, Lifecycle, NewMessage, NoRoom, OpenedSession, PendingMessage, RowId, SessionKey, SessionWrite,
    Settled, StreamStand, StreamTaken,
};
use super::writer::{Coalesced, NextIds, wall_clock};
use crate::observe::Skip;

/// A job on its way through a group.
pub(super) struct Item {
    pub(super) job: Job,
    pub(super) first_row: i64,
    pub(super) answer: Answer,
    /// Its messages stand in the books as pending and held.
    pub(super) booked: bool,
}

/// What is told once the group is committed.
pub(super) enum Answer {
    None,
    Refused(NoRoom),
    Opened(Result<OpenedSession, StoreError>),
    Bound(Result<StreamStand, BindError>),
    Adopted(Result<Vec<BacklogSession>, StoreError>),
}

impl Item {
    pub(super) const fn new(job: Job) -> Self {
        Self { job, first_row: 0, answer: Answer::None, booked: false }
    }
}

/// Runs `body` in a transaction of its own.
pub(super) fn in_transaction(connection: &Connection, body: impl FnOnce() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    rows::cached(connection, "BEGIN IMMEDIATE")?.execute([])?;
    let result = body().and_then(|()| rows::cached(connection, "COMMIT")?.execute([]).map(|_| ()));
    if result.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    result
}

/// Writes a group: jobs in order, then cursors, then streams.
pub(super) fn commit(
    shared: &Shared,
    connection: &Connection,
    next: &mut NextIds,
    items: &mut [Item],
    coalesced: &Coalesced,
    refusing: bool,
) -> rusqlite::Result<()> {
    let now = wall_clock();
    in_transaction(connection, || {
        let mut applier = Applier::new(connection)?;
        for item in items.iter_mut() {
            apply(shared, &mut applier, next, item, refusing)?;
        }
        for advance in coalesced.advances.values() {
            applier.advance(advance, now)?;
        }
        for (mac, device) in &coalesced.devices {
            applier.device(*mac, device.as_ref())?;
        }
        applier.finish()?;
        // Before anybody can see the rows: whoever delivers one must find it in the books.
        for item in items.iter_mut() {
            book(shared, item);
        }
        Ok(())
    })
}

fn apply(
    shared: &Shared,
    applier: &mut Applier<'_>,
    next: &mut NextIds,
    item: &mut Item,
    refusing: bool,
) -> rusqlite::Result<()> {
    match &item.job {
        Job::Write(write) => {
            let earlier = write.epoch.is_refused();
            if earlier || (refusing && rows_of(write) > 0) {
                write.epoch.refuse();
                item.answer = Answer::Refused(if earlier { NoRoom::Earlier } else { NoRoom::Store });
                return Ok(());
            }
            item.first_row = next.row;
            next.row = row_after(next.row, write);
            applier.write(write, item.first_row)?;
        }
        Job::Open { identity, now, .. } => {
            let opened = if let Some(opened) = sessions::load(&shared.directory, applier.connection, identity, *now)? {
                opened
            } else {
                let handle = sessions::new_handle(&shared.directory, next, identity);
                applier.create_session(handle.key, identity, *now)?;
                sessions::opened_new(handle)
            };
            item.answer = Answer::Opened(Ok(opened));
        }
        Job::Bind { session, stream, now, .. } => {
            let known = applier.stream(stream)?.map(|(owner, seq)| (owner, StreamStand::durable(seq)));
            let bound = bind(session, known);
            if let Ok(stand) = bound {
                applier.touch_stream(stream, session.key, stand.taken, *now);
            }
            item.answer = Answer::Bound(bound.map_err(BindError::Taken));
        }
        Job::Backed { session, backed } => super::backups_due::note_backed(applier.connection, *session, *backed)?,
        Job::Agent { session, agent_id } => applier.suggest_agent(session.key, agent_id)?,
        // The writer takes changes out of the group.
        Job::Change(_) => {}
        Job::Adopt { found, .. } => {
            item.answer = Answer::Adopted(Ok(sessions::adopt(&shared.directory, applier.connection, found)?));
        }
    }
    Ok(())
}

/// How far a stream is known, when it is free or the session's.
pub(super) fn bind(session: &Arc<SessionHandle>, known: Option<(SessionKey, StreamStand)>) -> Result<StreamStand, StreamTaken> {
    match known {
        Some((owner, _)) if owner != session.key => Err(StreamTaken),
        Some((_, stand)) => Ok(stand),
        None => Ok(StreamStand::default()),
    }
}

/// Messages of a write that are to be delivered.
pub(super) fn sendable(write: &SessionWrite) -> u64 {
    write.messages.iter().filter(|message| message.sendable).count() as u64
}

/// Puts an accepted write into the books.
pub(super) fn book(shared: &Shared, item: &mut Item) {
    let Job::Write(write) = &item.job else { return };
    if item.booked || matches!(item.answer, Answer::Refused(_)) {
        return;
    }
    item.booked = true;
    let sendable = sendable(write);
    write.session.add_pending(sendable);
    shared.metrics.pending.add(sendable);
    shared.metrics.skipped.add(Skip::KeptOnly, write.messages.len() as u64 - sendable);
    shared.metrics.held.add(write.hold.len() as u64);
    shared.metrics.held.subtract(write.release.len() as u64);
}

/// Refuses a write for want of room; it leaves the books again if it was in them. Answers how many messages that are.
pub(super) fn refuse(shared: &Shared, mut write: SessionWrite, booked: bool, why: NoRoom) -> u64 {
    write.epoch.refuse();
    if booked {
        let sendable = sendable(&write);
        write.session.remove_pending(sendable);
        shared.metrics.pending.subtract(sendable);
        shared.metrics.held.add(write.release.len() as u64);
        shared.metrics.held.subtract(write.hold.len() as u64);
    }
    // What was held before stays held; only what is new was received and is refused.
    let emitted = write.messages.iter().filter(|message| write.release.contains(&message.uuid)).count();
    let kept = if booked { write.messages.len() as u64 - sendable(&write) } else { 0 };
    let refused = (write.messages.len() - emitted + write.hold.len()) as u64;
    let refused = refused.saturating_sub(kept);
    shared.metrics.skipped.add(Skip::Overloaded, refused);
    if let Some(on_settled) = write.on_settled.take() {
        on_settled(Settled::Overloaded(why));
    }
    refused
}

/// What a lifecycle says to the uploader.
pub(super) fn ended(write: &SessionWrite) -> Option<bool> {
    write.lifecycle.as_ref().map(|lifecycle| matches!(lifecycle, Lifecycle::Ended { .. }))
}

/// Tells everybody that a group is durable, with cursors or without.
pub(super) fn settle(shared: &Shared, mut items: Vec<Item>, cursors: bool) {
    let mut news = Vec::new();
    let mut written = 0;
    for item in &mut items {
        if let (Job::Write(write), false) = (&mut item.job, matches!(item.answer, Answer::Refused(_))) {
            written += 1;
            news.push((Arc::clone(&write.session), sendable(write), ended(write)));
            note_recent(shared, write, item.first_row);
        }
    }
    shared.metrics.writes_committed.add(written);
    shared.arrivals.note(news, cursors);
    for item in items {
        match (item.job, item.answer) {
            (Job::Write(write), Answer::Refused(why)) => {
                refuse(shared, *write, item.booked, why);
            }
            (Job::Write(write), _) => {
                if let Some(on_settled) = write.on_settled {
                    on_settled(Settled::Durable);
                }
            }
            (job, answer) => reply(job, answer),
        }
    }
}

/// The rows of a write are in the database, and the uploader will soon ask for them.
fn note_recent(shared: &Shared, write: &mut SessionWrite, first_row: i64) {
    if shared.limits.all_delivered() {
        // Nobody will.
        return note_stored(write, first_row);
    }
    for (message, row) in std::mem::take(&mut write.messages).into_iter().zip(first_row..) {
        let disposition = if message.sendable { Disposition::Send } else { Disposition::KeepOnly };
        let NewMessage { uuid, chat_type, content, time, recorded, audio, .. } = message;
        let row = RowId(row);
        let has_audio = audio.is_some();
        let pending = PendingMessage { row, uuid, chat_type, content, time, recorded, has_audio, disposition };
        write.session.note_recent(pending, &shared.recent);
    }
}

/// The rows of a write are in the database.
pub(super) fn note_stored(write: &SessionWrite, first_row: i64) {
    if let Ok(count @ 1..) = i64::try_from(write.messages.len()) {
        write.session.note_stored(RowId(first_row + count - 1));
    }
}

/// Answers a job that is no write. Whoever no longer listens needs no answer.
pub(super) fn reply(job: Job, answer: Answer) {
    match (job, answer) {
        (Job::Open { reply, .. }, Answer::Opened(opened)) => drop(reply.send(opened)),
        (Job::Bind { reply, .. }, Answer::Bound(bound)) => drop(reply.send(bound)),
        (Job::Adopt { reply, .. }, Answer::Adopted(adopted)) => drop(reply.send(adopted)),
        (Job::Change(change), _) => change.refuse(super::error::StoreError::Unavailable),
        _ => {}
    }
}
