//! Wires the parts together, knows everybody, and orders start, reload and shutdown.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::wall_clock;
use crate::config::{self, ConfigError, Loaded, Purpose, Settings, Sources};
use crate::exit::Exit;
use crate::history::backup_task::{self, BackupRequests};
use crate::history::change::{Backups, Changes};
use crate::history::search::SearchIndex;
use crate::intake::connection::Surroundings;
use crate::intake::{Intake, ListenError, Listener, ServerSocket};
use crate::lane;
use crate::manager_api::ManagerApi;
use crate::observe::http::{self, Face};
use crate::observe::logging::{self, LogHandle};
use crate::observe::rates::{Rates, Sample};
use crate::observe::sampled::Sampled;
use crate::observe::status::{self, Overview};
use crate::observe::{Episode, Mention, Metrics};
use crate::session::Registry;
use crate::session::agents::AgentDirectory;
use crate::store::{Store, StoreError};
use crate::systemd;
use crate::upload::{Deliveries, Server, Uploader};

/// How often the supervisor's status line is renewed.
const STATUS_LINE_EVERY: Duration = Duration::from_secs(5);

/// How much longer a start may take each time it says so.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// How long a core task may take to go round before the watchdog is left hungry.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(5);

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

/// The signals the daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

enum Wish {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }

    async fn stop(&mut self) {
        while !matches!(self.next().await, Wish::Stop) {}
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
    match Daemon::start(sources, loaded.settings, &mut signals).await {
        Ok(Some(daemon)) => daemon.run(sources, log, &mut signals).await,
        Ok(None) => Exit::Success,
        Err(failure) => {
            error!("{failure}");
            failure.exit()
        }
    }
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Socket(#[from] ListenError),
    #[error("cannot use a socket or start a thread: {0}")]
    Runtime(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] http::CannotListen),
    #[error("{0}")]
    ManagerApi(#[from] crate::manager_api::ManagerApiError),
}

impl StartError {
    const fn exit(&self) -> Exit {
        match self {
            Self::Store(StoreError::AlreadyRunning { .. }) | Self::Socket(ListenError::Live(_)) => Exit::AlreadyRunning,
            Self::Store(_) | Self::Socket(_) | Self::Runtime(_) | Self::Http(_) => Exit::CannotCreate,
            Self::ManagerApi(_) => Exit::Configuration,
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
    /// Opens everything. `None`: a stop was asked for meanwhile.
    async fn start(sources: &Sources, settings: Settings, signals: &mut Signals) -> Result<Option<Self>, StartError> {
        let metrics = Arc::new(Metrics::default());
        let Some(store) = open_store(&settings, Arc::clone(&metrics), signals).await? else { return Ok(None) };
        store.treat_all_as_delivered(settings.manager_api.url.is_none());
        let socket = match ServerSocket::adopt(&settings.socket.path)? {
            Some(adopted) => adopted,
            None => ServerSocket::make(&settings.socket)?,
        };
        let status_socket = make_status_socket(&settings)?;
        let http = match settings.status.http_listen {
            Some(address) => Some(http::listen(address).await?),
            None => None,
        };
        let api = manager_api(&settings)?;
        announce(sources, &settings, &socket);

        let settings = Arc::new(settings);
        let (settings_sender, settings) = watch::channel(Arc::clone(&settings));
        let (api_sender, api_receiver) = watch::channel(api.clone());
        let backups = BackupRequests::default();
        let finished = backups.clone();
        let (uploader, deliveries, gate_open) = Uploader::new(
            store.clone(),
            settings.clone(),
            Arc::clone(&metrics),
            api,
            Box::new(move |session| finished.request(session)),
        );
        let (taking_in, sending) = (lane::start("intake")?, lane::start("upload")?);
        let (agents, lookups) = AgentDirectory::new();
        let registry = Registry::new(store.clone(), settings.clone(), Arc::clone(&metrics), agents);
        let around = Surroundings {
            registry: registry.clone(),
            deliveries: deliveries.clone(),
            settings: settings.clone(),
            metrics: Arc::clone(&metrics),
            refused_lines: Arc::default(),
            refused_sessions: Arc::default(),
            draining: CancellationToken::new(),
            cut_off: CancellationToken::new(),
        };
        let (listener, intake) = listen(&taking_in, socket, around)?;
        let (status_socket, status_path) = status_socket.into_listener()?;
        let stop_intake = CancellationToken::new();
        let overview = Overview {
            store: store.clone(),
            deliveries: deliveries.clone(),
            registry: registry.clone(),
            rates: Arc::new(Mutex::new(Rates::new(Instant::now().into_std(), Sample::of(&metrics)))),
            metrics: Arc::clone(&metrics),
            settings: settings.clone(),
            sampled: Sampled::default(),
            started: Instant::now(),
            started_at: wall_clock(),
            stopping: stop_intake.clone(),
        };

        let status = overview.clone();
        let index = SearchIndex::of(&settings.borrow().store.directory);
        let changes = Changes {
            store: store.clone(),
            index: index.clone(),
            backups: Backups { directory: settings.borrow().backup.directory.clone(), writer: Some(backups.clone()) },
            serving: true,
        };
        let idle = settings.borrow().session.idle_timeout;
        let left_over_sessions = taking_in.spawn(end_left_over_sessions(registry.clone(), idle));
        let mut beside = vec![
            tokio::spawn(async move {
                let _path = status_path;
                status::serve(status_socket, status, changes).await;
            }),
            tokio::spawn(overview.clone().sample_rates()),
            tokio::spawn(overview.sampled.clone().keep(store.clone(), settings.clone())),
            tokio::spawn(index.keep(Arc::clone(&metrics), stop_intake.clone())),
            sending.spawn(lookups.run(store.clone(), api_receiver, gate_open)),
        ];
        if let Some(http) = http {
            beside.push(tokio::spawn(http::serve(http, Face { overview: overview.clone(), intake: intake.clone() })));
        }
        Ok(Some(Self {
            listener: taking_in.spawn(listener.run(stop_intake.clone())),
            uploader: sending.spawn(uploader.run()),
            backup_writer: tokio::spawn(backup_task::run(backups.clone(), store.clone(), settings, metrics)),
            settings: settings_sender,
            store,
            registry,
            deliveries,
            intake,
            stop_intake,
            api: api_sender,
            backups,
            overview,
            left_over_sessions,
            beside,
        }))
    }

    /// Serves until a signal or until a core task ends.
    async fn run(mut self, sources: &Sources, log: &LogHandle, signals: &mut Signals) -> Exit {
        systemd::ready();
        info!("ready");
        self.overview.metrics.config_last_reload_successful.set(1);
        let mut stuck = Episode::new();
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
                Some(Wish::Reload) => self.reload(sources, log).await,
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

    async fn reload(&self, sources: &Sources, log: &LogHandle) {
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
            match manager_api(&new) {
                Ok(api) => server = Server::Changed(api),
                Err(failure) => {
                    error!(%failure, "the configuration was not reloaded: the old settings stay");
                    return false;
                }
            }
        }
        for change in &changes {
            if change.applies {
                info!(key = change.key, "setting changed");
            } else {
                warn!(key = change.key, "this setting needs a restart: the old value stays");
            }
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
            let api = self.api.borrow().clone();
            if let Some(Err(failure)) = api.map(|api| api.reload_secret()) {
                warn!(%failure, "the secret cannot be read: the old one stays");
            }
        }
        self.deliveries.reload(server).await;
        info!(changes = changes.len(), has_url, "configuration reloaded");
        true
    }

    /// Intake ends, actors flush, and from then on nothing acked can be lost; the uploader uses its grace; the store is
    /// closed. A second signal skips the grace.
    async fn shut_down(self, signals: &mut Signals) -> Exit {
        systemd::stopping();
        info!("stopping");
        let grace = self.settings.borrow().upload.shutdown_grace;
        let waiting = self.overview.metrics.pending.get();
        systemd::status(&format!("stopping: {waiting} messages pending, delivery goes on for {} s at most", grace.as_secs()));
        self.stop_intake.cancel();
        let _ = self.listener.await;
        // Nothing may open a session after its actor was told to leave.
        self.left_over_sessions.abort();
        let _ = self.left_over_sessions.await;
        self.registry.close().await;
        let at_once = tokio::select! {
            () = self.deliveries.stop(grace) => false,
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
        tokio::select! {
            _ = self.backup_writer => {}
            () = signals.stop() => {}
            () = sleep(grace.max(Duration::from_secs(1))) => warn!("some backups were not written in time: they are written at the sessions' next end"),
        }
        let pending = self.overview.metrics.pending.get();
        let report = self.store.close().await;
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

/// Opens the store on a thread of its own, for a damaged one is salvaged first, which takes time. `None`: a stop was
/// asked for meanwhile.
async fn open_store(settings: &Settings, metrics: Arc<Metrics>, signals: &mut Signals) -> Result<Option<Store>, StoreError> {
    let store_settings = settings.store.clone();
    systemd::status("starting: the store is being opened");
    let began = Instant::now();
    let mut opening = tokio::task::spawn_blocking(move || Store::open(&store_settings, metrics));
    let mut extend = interval(START_EXTENSION / 3);
    loop {
        tokio::select! {
            opened = &mut opening => return opened.map_err(|_| StoreError::Unavailable)?.map(Some),
            _ = extend.tick() => {
                systemd::starting_takes(START_EXTENSION);
                // Only a damaged one takes so long.
                if began.elapsed() >= START_EXTENSION / 3 {
                    systemd::status(&format!("starting: the store is being salvaged, for {} s", began.elapsed().as_secs()));
                }
            }
            () = signals.stop() => {
                info!("stopped while starting");
                return Ok(None);
            }
        }
    }
}

/// The socket is watched by the thread that takes in.
fn listen(taking_in: &Handle, socket: ServerSocket, around: Surroundings) -> std::io::Result<(Listener, Intake)> {
    let _on_its_lane = taking_in.enter();
    let (socket, path) = socket.into_listener()?;
    Ok(Listener::new(socket, path, around))
}

async fn end_left_over_sessions(registry: Registry, idle: Duration) {
    if let Err(failure) = registry.end_left_over_sessions(idle).await {
        warn!(%failure, "sessions left open by the last run cannot be read: they stay open");
    }
}

/// Who may connect to the one socket may connect to the other.
fn make_status_socket(settings: &Settings) -> Result<ServerSocket, ListenError> {
    ServerSocket::make(&crate::config::SocketSettings { path: settings.status.socket.clone(), ..settings.socket.clone() })
}

fn manager_api(settings: &Settings) -> Result<Option<ManagerApi>, crate::manager_api::ManagerApiError> {
    if settings.manager_api.url.is_none() {
        return Ok(None);
    }
    ManagerApi::new(&settings.manager_api).map(Some)
}

fn announce(sources: &Sources, settings: &Settings, socket: &ServerSocket) {
    let version = env!("CARGO_PKG_VERSION");
    let file = sources.file.as_deref().map(|file| file.display().to_string());
    info!(
        version,
        socket = %socket.path().display(),
        store = %settings.store.directory.display(),
        config = file.as_deref().unwrap_or("the usual places"),
        "starting"
    );
}

fn died(what: &str) -> Exit {
    error!("{what} ended by itself: the daemon ends, so that its supervisor starts it anew from the store");
    Exit::CoreTask
}
