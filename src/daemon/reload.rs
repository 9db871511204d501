//! The reload: settings that can change while the daemon runs do, and the old ones stay when the new ones are wrong.
//!
//! Promises: files are read beside everything else; one that does not answer holds up the reload (the secret and the
//! authorities for a moment, the configuration itself until it answers), and neither the watchdog nor a stop.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info, warn};

use super::Daemon;
use crate::config::{self, Loaded, ManagerApiSettings, Purpose, Settings, Sources};
use crate::manager_api::{FILES_DO_NOT_ANSWER, ManagerApi};
use crate::observe::logging::LogHandle;
use crate::patience::within;
use crate::systemd;
use crate::upload::Server;

/// How long the files of a changed secret or of changed authorities may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was read, or everything that is wrong with it.
type Read = Result<(Loaded, Server), Vec<String>>;

/// The configuration while it is read again.
#[derive(Default)]
pub(super) struct Reading {
    under_way: Option<JoinHandle<Read>>,
    /// A reload was asked for meanwhile: the files may have changed behind the reader.
    once_more: bool,
}

impl Reading {
    /// Begins to read, or remembers to when the reading that is under way is over.
    pub(super) fn begin(&mut self, sources: &Sources, old: Arc<Settings>) {
        if self.under_way.is_some() {
            self.once_more = true;
            return;
        }
        systemd::reloading();
        let sources = Sources { purpose: Purpose::Reload, ..sources.clone() };
        self.under_way = Some(spawn_blocking(move || read(&sources, &old)));
    }

    /// What was read, and whether to read once more. Never, while nothing is read.
    ///
    /// # Cancel safety
    /// The reading goes on.
    pub(super) async fn over(&mut self) -> (Read, bool) {
        let Some(reading) = &mut self.under_way else { return pending().await };
        let read = reading.await.unwrap_or_else(|failure| Err(vec![failure.to_string()]));
        self.under_way = None;
        (read, std::mem::take(&mut self.once_more))
    }
}

fn read(sources: &Sources, old: &Settings) -> Read {
    let loaded = config::load(sources).map_err(|error| error.problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let new = &loaded.settings.manager_api;
    let server = if *new == old.manager_api {
        Server::Unchanged
    } else {
        Server::Changed(server(new.clone()).map_err(|problem| vec![problem])?)
    };
    Ok((loaded, server))
}

/// The client for changed settings, which must be of use at once; `None` without a URL.
fn server(settings: ManagerApiSettings) -> Result<Option<ManagerApi>, String> {
    if settings.url.is_none() {
        return Ok(None);
    }
    let opened = within(PATIENCE, move || ManagerApi::new(&settings));
    let api = opened.ok_or(FILES_DO_NOT_ANSWER)?.map_err(|failure| failure.to_string())?;
    api.unusable().map_or(Ok(Some(api)), Err)
}

impl Daemon {
    /// Takes what was read, or leaves everything as it is.
    pub(super) async fn reloaded(&self, read: Read, log: &LogHandle) {
        let taken = read.is_ok();
        match read {
            Ok((loaded, server)) => self.apply(loaded, server, log).await,
            Err(problems) => {
                for problem in problems {
                    error!("{problem}");
                }
                error!("the configuration was not reloaded: the old settings stay");
            }
        }
        self.overview.metrics.config_last_reload_successful.set(u64::from(taken));
        systemd::ready();
    }

    async fn apply(&self, loaded: Loaded, server: Server, log: &LogHandle) {
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        let old = self.settings.borrow().clone();
        let (new, changes) = config::apply(&old, loaded.settings);
        for change in &changes {
            if change.applies {
                info!(key = change.key, "setting changed");
            } else {
                warn!(key = change.key, "this setting needs a restart: the old value stays");
            }
        }
        if new.backup.directory != old.backup.directory {
            let left = old.backup.directory.display();
            warn!(%left, "backups stay where they were: history forget does not look there any more (move them, or delete them by hand)");
        }
        log.set_level(new.log.level);
        for key in self.store.reconfigure(&new.store) {
            warn!(key, "this setting needs a restart: the old value stays");
        }
        self.store.treat_all_as_delivered(new.manager_api.url.is_none());
        let has_url = new.manager_api.url.is_some();
        self.settings.send_replace(Arc::new(new));
        if let Server::Changed(api) = &server {
            self.api.send_replace(api.clone());
        } else {
            // The secret's file may hold another server's: whoever remembers what the last one said is told.
            self.api.send_modify(|_| ());
        }
        self.deliveries.reload(server).await;
        info!(changes = changes.len(), has_url, "configuration reloaded");
    }
}
