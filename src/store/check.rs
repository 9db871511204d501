//! The whole database read on request. A start must not take so long, and damage in a page that nobody reads is met by nobody:
//! a person who was told of it has it salvaged now.

use std::time::Duration;

use rusqlite::Connection;

use super::agreement;
use super::error::StoreError;
use super::handle::Store;
use super::open::{Fault, damage};

/// How often it is looked whether a salvage is done.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a salvage is waited for; it goes on by itself.
const PATIENCE: Duration = Duration::from_secs(580);

/// How the database was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Every page of it.
    Whole,
    /// It was damaged, and is another one now.
    Salvaged {
        /// Messages that were carried over.
        messages: u64,
        /// Messages that stand only in the files that were set aside.
        left_behind: u64,
    },
}

impl Store {
    /// Reads the whole database; one that is damaged is set aside and salvaged, as if the daemon had met the damage itself.
    /// What opening it has salvaged counts, too, if `since_opened`.
    ///
    /// # Errors
    /// When the store cannot be read now, or the salvage takes longer than is waited for.
    ///
    /// # Cancel safety
    /// A salvage goes on.
    pub async fn check(&self, since_opened: bool) -> Result<Checked, StoreError> {
        let metrics = self.metrics();
        let before = if since_opened { (0, 0) } else { (metrics.stores_salvaged.get(), metrics.messages_salvaged.get()) };
        let generation = self.shared().readers.generation();
        match self.read(whole).await {
            Err(StoreError::Database { source, .. }) if Fault::of(&source) == Fault::Damage => {
                self.shared().inbox.report_sought_damage(generation, source.to_string());
                let done = tokio::time::timeout(PATIENCE, self.repaired()).await;
                done.map_err(|_| StoreError::Unavailable)?;
                if metrics.stores_salvaged.get() == before.0 {
                    return Err(StoreError::Unavailable);
                }
            }
            read => read?,
        }
        if metrics.stores_salvaged.get() == before.0 {
            return Ok(Checked::Whole);
        }
        let messages = metrics.messages_salvaged.get().saturating_sub(before.1);
        Ok(Checked::Salvaged { messages, left_behind: metrics.messages_left_behind.get() })
    }

    /// Resolves when the store can be written (again).
    async fn repaired(&self) {
        // After one round of the writer it knows of the damage.
        while self.heartbeat().await && self.health().failing.is_some() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What is wrong with a database, all of which is read; `None` when nothing is.
///
/// # Errors
/// When it cannot be read.
pub fn damage_of(connection: &Connection) -> rusqlite::Result<Option<String>> {
    match whole(connection) {
        Err(error) if Fault::of(&error) == Fault::Damage => Ok(Some(error.to_string())),
        read => read.map(|()| None),
    }
}

/// An error as SQLite's own when it is damaged.
fn whole(connection: &Connection) -> rusqlite::Result<()> {
    // Its quicker check does not compare tables with their indexes: a message that no index shows is found by nobody.
    let answer: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if answer == "ok" { agreement::check_all(connection) } else { Err(damage(&answer)) }
}
