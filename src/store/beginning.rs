//! Sessions and streams that begin while the database cannot be written: on the shelf, beside what the database is known to
//! hold of them; and while it is away to be salvaged they wait for it, for nobody can say then what that is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{BindError, StoreError};
use super::group;
use super::inbox::Job;
use super::rows;
use super::session_handle::SessionHandle;
use super::sessions;
use super::shelf::Shelved;
use super::types::{OpenedSession, StreamStand};
use super::writer::{Mode, Writer};
use crate::protocol::{SessionIdentity, UnixMillis};

/// How long a session that begins while a damaged database is salvaged may wait for it: before, nobody can say what is known
/// of the session, and its lines would be refused.
const SALVAGE_PATIENCE: Duration = Duration::from_secs(5);

impl Writer {
    /// A session or a stream begins: while the database is away to be salvaged, that waits.
    pub(super) fn begin_when_readable(&mut self, job: Job) {
        match &mut self.mode {
            Mode::Failing(episode) if episode.repair.holds_the_files() => {
                episode.beginning.push((Instant::now() + SALVAGE_PATIENCE, job));
            }
            _ => self.begin_on_shelf(job),
        }
    }

    fn begin_on_shelf(&mut self, job: Job) {
        match job {
            Job::Open { identity, now, reply } => drop(reply.send(self.open_on_shelf(&identity, now))),
            Job::Bind { session, stream, now, reply } => drop(reply.send(self.bind_on_shelf(session, &stream, now))),
            _ => {}
        }
    }

    fn bind_on_shelf(
        &mut self,
        session: Arc<SessionHandle>,
        stream: &Arc<str>,
        now: UnixMillis,
    ) -> Result<StreamStand, BindError> {
        let known = self.shared.shelf().stream(stream);
        let stored = self.shared.readers.run(|connection| rows::stream(connection, stream)).map_err(BindError::Store)?;
        let stored = stored.map(|(owner, seq)| (owner, StreamStand::durable(seq)));
        let known = match (stored, known) {
            (Some(stored), Some(known)) => Some((stored.0, stored.1.with(known.1))),
            (stored, known) => stored.or(known),
        };
        let stand = group::bind(&session, known)?;
        let begins = Shelved::Stream { handle: session, stream: Arc::clone(stream), now };
        self.put(begins).map_err(|_| StoreError::Overloaded)?;
        Ok(stand)
    }

    /// Answers those whose patience is over, and all when what is wrong now is no damage.
    pub(super) fn answer_beginning(&mut self) {
        let Mode::Failing(episode) = &mut self.mode else { return };
        let (now, damaged) = (Instant::now(), episode.repair.holds_the_files());
        let due = |(until, _): &mut (Instant, Job)| !damaged || *until <= now;
        let due: Vec<Job> = episode.beginning.extract_if(.., due).map(|(_, job)| job).collect();
        for job in due {
            self.begin_on_shelf(job);
        }
    }

    fn open_on_shelf(&mut self, identity: &SessionIdentity, now: UnixMillis) -> Result<OpenedSession, StoreError> {
        let created = self.shared.shelf().created(identity);
        let mut opened = if let Some(handle) = created {
            sessions::opened_new(handle)
        } else {
            let directory = &self.shared.directory;
            let loaded = self.shared.readers.run(|connection| sessions::load(directory, connection, identity, now))?;
            if let Some(opened) = loaded {
                opened
            } else {
                let handle = sessions::new_handle(directory, &mut self.next, identity);
                let create = Shelved::Create { handle: Arc::clone(&handle), now };
                self.put(create).map_err(|_| StoreError::Overloaded)?;
                sessions::opened_new(handle)
            }
        };
        let overlay = self.shared.shelf().overlay(opened.handle.key);
        sessions::overlay(&mut opened, overlay);
        Ok(opened)
    }
}
