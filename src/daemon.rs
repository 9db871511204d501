//! Knows everybody: wires the parts together (`start`), watches over them, takes new settings (`reload`), and ends them in
//! the order that loses nothing.

mod reload;
mod signals;
mod start;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::reload::Reading;
use self::signals::{Signals, Wish};
use crate::config::{self, Loaded, Settings, Sources};
use crate::exit::Exit;
use crate::history::backup_task::BackupRequests;
use crate::intake::Intake;
use crate::manager_api::ManagerApi;
use crate::observe::logging::{self, LogHandle};
use crate::observe::status::Overview;
use crate::observe::{Episode, Mention};
use crate::session::Registry;
use crate::store::Store;
use crate::systemd;
use crate::upload::Deliveries;

/// How often the supervisor's status line is renewed.
const STATUS_LINE_EVERY: Duration = Duration::from_secs(5);

/// How long a core task may take to go round before the watchdog is left hungry.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(5);

/// What a stop may take besides the grace for delivery, and the same again for backups: clients, a store that fails, a slow disk.
const STOP_BESIDES: Duration = Duration::from_secs(15);

/// Loads the settings, serves until a signal, and tells how the process is to end.
#[must_use]
pub fn run(sources: &Sources) -> Exit {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(problems) => {
            logging::complain(&problems.to_string(), &sources.environment);
            return Exit::Configuration;
        }
    };
    let log = match logging::init(&loaded.settings.log, &sources.environment) {
        Ok(log) => log,
        Err(failure) => {
            eprintln!("chat-historyd: {failure}");
            return Exit::CoreTask;
        }
    };
    raise_descriptor_limit();
    // The main thread has its own: signals, watchdog, status and backups wait for no line and no report.
    let runtime = match Builder::new_current_thread().max_blocking_threads(8).enable_all().build() {
        Ok(runtime) => runtime,
        Err(failure) => {
            error!(%failure, "the runtime cannot be started");
            return Exit::CoreTask;
        }
    };
    let exit = runtime.block_on(serve(sources, loaded, &log));
    // A salvage that was interrupted by a stop still runs on its thread: it is not waited for.
    runtime.shutdown_background();
    exit
}

/// Every connection is a descriptor: the soft limit is raised to the hard one.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

async fn serve(sources: &Sources, loaded: Loaded, log: &LogHandle) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(failure) => {
            error!(%failure, "signals cannot be listened to");
            return Exit::CoreTask;
        }
    };
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    match Daemon::start(sources, loaded, &mut signals).await {
        Ok(Some(daemon)) => daemon.run(sources, log, &mut signals).await,
        Ok(None) => Exit::Success,
        Err(failure) => {
            error!("{failure}");
            failure.exit()
        }
    }
}

struct Daemon {
    settings: watch::Sender<Arc<Settings>>,
    store: Store,
    registry: Registry,
    deliveries: Deliveries,
    intake: Intake,
    stop_intake: CancellationToken,
    api: watch::Sender<Option<ManagerApi>>,
    backups: BackupRequests,
    overview: Overview,
    listener: JoinHandle<()>,
    uploader: JoinHandle<()>,
    backup_writer: JoinHandle<()>,
    left_over_sessions: JoinHandle<()>,
    beside: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Serves until a signal or until a core task ends.
    async fn run(mut self, sources: &Sources, log: &LogHandle, signals: &mut Signals) -> Exit {
        systemd::ready();
        info!("ready");
        self.overview.metrics.config_last_reload_successful.set(1);
        let mut stuck = Episode::new();
        let mut reading = Reading::default();
        let mut status_line = interval(STATUS_LINE_EVERY);
        // A status that is slow to come must not take the turns of the watchdog.
        status_line.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let watchdog_every = systemd::watchdog().map_or(Duration::from_secs(10), |limit| limit / 3);
        let mut watchdog = interval(watchdog_every.max(Duration::from_millis(100)));
        watchdog.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // What may take long is asked beside the signals: a stop is heard whatever hangs.
            let wish = tokio::select! {
                wish = signals.next() => Some(wish),
                _ = &mut self.listener => return died("the accept loop"),
                _ = &mut self.uploader => return died("the uploader"),
                _ = &mut self.backup_writer => return died("the backup writer"),
                (read, once_more) = reading.over() => {
                    self.reloaded(read, log).await;
                    once_more.then_some(Wish::Reload)
                }
                _ = status_line.tick() => tokio::select! {
                    wish = signals.next() => Some(wish),
                    line = timeout(HEARTBEAT_PATIENCE, self.overview.line()) => {
                        let _ = line.map(|line| systemd::status(&line));
                        None
                    }
                },
                _ = watchdog.tick() => tokio::select! {
                    wish = signals.next() => Some(wish),
                    beat = self.heartbeat() => {
                        match beat {
                            Some(true) => {
                                systemd::alive();
                                if let Some(ended) = stuck.ends(std::time::Instant::now()) {
                                    info!(after = ?ended.lasted, "all core tasks make progress again");
                                }
                            }
                            Some(false) => {
                                if stuck.occurs(std::time::Instant::now()) != Mention::Silent {
                                    // Not here: it may be the log that hangs, and status and signals live on this thread.
                                    tokio::task::spawn_blocking(|| warn!("a core task makes no progress: the watchdog is not fed"));
                                }
                            }
                            None => return died("the store's writer"),
                        }
                        None
                    }
                },
            };
            match wish {
                Some(Wish::Stop) => return self.shut_down(signals).await,
                Some(Wish::Reload) => reading.begin(sources, self.settings.borrow().clone()),
                None => {}
            }
        }
    }

    /// Whether store, uploader and accept loop all go round; `None`: the store's writer is gone.
    async fn heartbeat(&self) -> Option<bool> {
        let round = async {
            let (store, uploader, intake) =
                tokio::join!(self.store.heartbeat(), self.deliveries.heartbeat(), self.intake.heartbeat());
            store.then_some(uploader.is_ok() && intake.is_ok())
        };
        timeout(HEARTBEAT_PATIENCE, round).await.unwrap_or(Some(false))
    }

    /// Intake ends, actors flush, and from then on nothing acked can be lost; the uploader uses its grace; the store is
    /// closed. A second signal skips the grace.
    async fn shut_down(self, signals: &mut Signals) -> Exit {
        systemd::stopping();
        info!("stopping");
        let grace = self.settings.borrow().upload.shutdown_grace;
        systemd::takes(grace + STOP_BESIDES);
        let waiting = self.overview.metrics.pending.get();
        systemd::status(&format!("stopping: {waiting} messages pending, delivery goes on for {} s at most", grace.as_secs()));
        self.stop_intake.cancel();
        let _ = self.listener.await;
        // Nothing may open a session after its actor was told to leave.
        self.left_over_sessions.abort();
        let _ = self.left_over_sessions.await;
        self.registry.close().await;
        // What was said last may still be on its way into the store, where the uploader finds it.
        let delivered = async {
            let began = Instant::now();
            if timeout(grace, self.store.caught_up()).await.is_err() && !grace.is_zero() {
                warn!("the store takes long to write what was said last: what it has by the end is sent after the next start");
            }
            self.deliveries.stop(grace.saturating_sub(began.elapsed())).await;
        };
        let at_once = tokio::select! {
            () = delivered => false,
            () = signals.stop() => true,
        };
        if at_once {
            info!("stopping at once: what is undelivered stands in the store");
            self.uploader.abort();
            self.backup_writer.abort();
        }
        for task in &self.beside {
            task.abort();
        }
        self.backups.finish();
        systemd::takes(grace + STOP_BESIDES);
        tokio::select! {
            _ = self.backup_writer => {}
            () = signals.stop() => {}
            () = sleep(grace.max(Duration::from_secs(1))) => warn!("some backups were not written in time: they are written after the next start"),
        }
        let report = self.store.close().await;
        let pending = self.overview.metrics.pending.get();
        if report.messages_lost > 0 {
            error!(
                messages = report.messages_lost,
                "the store could not be written to the last: these messages were never acknowledged and are lost here"
            );
        }
        systemd::status(&format!("stopped: {pending} messages pending in the store"));
        info!(pending, "stopped");
        Exit::Success
    }
}

fn died(what: &str) -> Exit {
    error!("{what} ended by itself: the daemon ends, so that its supervisor starts it anew from the store");
    Exit::CoreTask
}
