//! The start: directory, lock, database, and what must be known before the first write. A damaged database is set aside
//! and salvaged here, before anybody is served.

use std::sync::Arc;

use rusqlite::Connection;

use super::agreement;
use super::error::StoreError;
use super::files::Files;
use super::left_behind::left_behind;
use super::lock::InstanceLock;
use super::log_meter::LogMeter;
use super::open::{self, Fault, Opening};
use super::reads;
use super::repair::{self, Source};
use super::salvage;
use super::shared::Shared;
use super::writer::NextIds;
use crate::config::{Durability, StoreSettings};
use crate::observe::Metrics;

/// Salvages in one start: the second one begins with an empty database.
const ROUNDS: usize = 3;

/// Prepares everything the writer needs.
pub(super) fn start(settings: &StoreSettings, metrics: Arc<Metrics>) -> Result<(Shared, Connection, NextIds), StoreError> {
    let files = Files::prepare(&settings.directory)?;
    let lock = InstanceLock::take(&files.lock, &files.directory)?;
    if let Some(aside) = files.unfinished()? {
        let report = repair::rebuild(&files, settings.durability, &aside, Source::Aside)?;
        repair::announce(&metrics, &files, &aside, &report);
    }
    let log = LogMeter::default();
    let mut round = 0;
    let (connection, known) = loop {
        round += 1;
        let cause = if round == 1 && log_is_damaged(&files, settings.durability) {
            String::from("its log is damaged in front of finished transactions")
        } else {
            match open::open(&files, settings.durability, &log)? {
                Opening::Ready(connection) => match cursors(&connection, &metrics).and_then(|()| Known::read(&connection)) {
                    Ok(Some(known)) => break (connection, known),
                    Ok(None) => String::from("its row ids are implausible"),
                    Err(error) if Fault::of(&error) == Fault::Damage => error.to_string(),
                    Err(error) => return Err(StoreError::database("read", &files.database)(error)),
                },
                Opening::Damaged(cause) => cause,
            }
        };
        let path = files.database.display();
        tracing::error!(%path, cause, "the store is damaged: it is set aside and salvaged");
        let aside = files.set_aside(&repair::place_name())?;
        if round >= ROUNDS {
            return Err(StoreError::Unavailable);
        }
        // What salvage made is damaged, too: then an empty database has to do.
        let source = if round == 1 { Source::Aside } else { Source::Nothing };
        let report = repair::rebuild(&files, settings.durability, &aside, source)?;
        repair::announce(&metrics, &files, &aside, &report);
    };
    metrics.pending_at_start.add(known.pending);
    metrics.held_at_start.add(known.held);
    metrics.pending.set(known.pending);
    metrics.held.set(known.held);
    metrics.messages_left_behind.set(left_behind(&files.directory));
    let shared = Shared::new(files, log, settings, metrics, lock);
    shared.readers.warm_up()?;
    Ok((shared, connection, known.next))
}

/// A cursor that cannot be is dropped before anything is counted by it. Where the disk does not take that, it stays.
fn cursors(connection: &Connection, metrics: &Metrics) -> rusqlite::Result<()> {
    match agreement::drop_wrong_cursors(connection) {
        Ok(0) => {}
        Ok(wrong) => {
            metrics.cursors_lost.add(wrong);
            tracing::error!(
                sessions = wrong,
                "cursors are damaged: what was sent of these sessions is not known, they are sent again"
            );
        }
        Err(error) if Fault::of(&error) == Fault::Damage => return Err(error),
        Err(error) => tracing::error!(%error, "damaged cursors cannot be dropped: their sessions may miss messages"),
    }
    Ok(())
}

/// Before SQLite looks: it takes a log for ended where a frame of it is damaged, and writes over what stands behind. Without
/// syncs the log may be torn anywhere by a power cut, and what stands behind was never promised.
fn log_is_damaged(files: &Files, durability: Durability) -> bool {
    durability == Durability::Fsync && salvage::log_hides_commits(&files.database)
}

/// What must be known before the first write.
struct Known {
    next: NextIds,
    pending: u64,
    held: u64,
}

impl Known {
    fn read(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let Some(next) = NextIds::read(connection)? else { return Ok(None) };
        Ok(Some(Self { next, pending: reads::pending_count(connection)?, held: reads::held_count(connection)? }))
    }
}
