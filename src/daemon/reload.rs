//! The reload: settings that can change while the daemon runs do, and the old ones stay when the new ones are wrong.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::Daemon;
use super::start::manager_api;
use crate::config::{self, ConfigError, Loaded, Purpose, Sources};
use crate::manager_api::ManagerApi;
use crate::observe::logging::LogHandle;
use crate::systemd;
use crate::upload::Server;

impl Daemon {
    /// Reads the configuration again.
    pub(super) async fn reload(&self, sources: &Sources, log: &LogHandle) {
        systemd::reloading();
        let sources = Sources { purpose: Purpose::Reload, ..sources.clone() };
        let taken = match config::load(&sources) {
            Ok(loaded) => self.apply(loaded, log).await,
            Err(ConfigError { problems, .. }) => {
                for problem in problems {
                    error!("{problem}");
                }
                error!("the configuration was not reloaded: the old settings stay");
                false
            }
        };
        self.overview.metrics.config_last_reload_successful.set(u64::from(taken));
        systemd::ready();
    }

    /// `false`: the settings could not be used after all.
    async fn apply(&self, loaded: Loaded, log: &LogHandle) -> bool {
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        let old = self.settings.borrow().clone();
        let (new, changes) = config::apply(&old, loaded.settings);
        let mut server = Server::Unchanged;
        if new.manager_api != old.manager_api {
            let api = match manager_api(&new) {
                Ok(api) => api,
                Err(failure) => {
                    error!(%failure, "the configuration was not reloaded: the old settings stay");
                    return false;
                }
            };
            if let Some(reason) = api.as_ref().and_then(ManagerApi::unusable) {
                error!(reason, "the configuration was not reloaded: the old settings stay");
                return false;
            }
            server = Server::Changed(api);
        }
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
        }
        self.deliveries.reload(server).await;
        info!(changes = changes.len(), has_url, "configuration reloaded");
        true
    }
}
