//! The start: opens everything, in an order in which each failure has a clear word and leaves nothing half done.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Daemon;
use super::signals::Signals;
use crate::clock::wall_clock;
use crate::config::{Loaded, Origin, Settings, Sources};
use crate::exit::Exit;
use crate::history::backup_task::{self, BackupRequests};
use crate::history::change::{Backups, Changes};
use crate::history::search::SearchIndex;
use crate::intake::{Intake, ListenError, Listener, ServerSocket, Surroundings};
use crate::lane;
use crate::manager_api::ManagerApi;
use crate::observe::Metrics;
use crate::observe::http::{self, Face};
use crate::observe::rates::{Rates, Sample};
use crate::observe::sampled::Sampled;
use crate::observe::status::{self, Overview};
use crate::session::Registry;
use crate::session::agents::AgentDirectory;
use crate::store::{Store, StoreError};
use crate::systemd;
use crate::upload::Uploader;

/// How much longer a start may take each time it says so.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// How long a start waits for the files of secret and authorities.
const FILES_PATIENCE: Duration = Duration::from_secs(3);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Socket(#[from] ListenError),
    #[error("cannot use a socket or start a thread: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("{0}")]
    ManagerApi(#[from] crate::manager_api::ManagerApiError),
}

impl StartError {
    /// How the process is to end.
    pub(super) const fn exit(&self) -> Exit {
        match self {
            Self::Store(StoreError::AlreadyRunning { .. }) | Self::Socket(ListenError::Live(_)) => Exit::AlreadyRunning,
            Self::Store(_) | Self::Socket(_) | Self::Runtime(_) => Exit::CannotCreate,
            Self::ManagerApi(_) => Exit::Configuration,
        }
    }
}

impl Daemon {
    /// Opens everything. `None`: a stop was asked for meanwhile.
    pub(super) async fn start(sources: &Sources, loaded: Loaded, signals: &mut Signals) -> Result<Option<Self>, StartError> {
        let Loaded { settings, origins, .. } = loaded;
        let metrics = Arc::new(Metrics::default());
        let Some(store) = open_store(&settings, Arc::clone(&metrics), signals).await? else { return Ok(None) };
        store.treat_all_as_delivered(settings.manager_api.url.is_none());
        let adopted = ServerSocket::adopt(&settings.socket.path)?;
        let (status_socket, status_path) = make_status_socket(&settings)?.into_listener()?;
        let http = match settings.status.http_listen {
            Some(address) => Some((http::listen(address, &metrics).await, address)),
            None => None,
        };
        let api = manager_api(&settings).await?;
        announce(sources, &settings, adopted.as_ref().map_or(&settings.socket.path, ServerSocket::path));
        if let Some(adopted) = &adopted {
            name_what_the_unit_overrules(adopted, &settings, &origins);
        }

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
        let around = Surroundings::new(registry.clone(), deliveries.clone(), settings.clone(), Arc::clone(&metrics));
        // Last of all: what a producer writes from here on is taken in, for nothing is left that could fail.
        let socket = match adopted {
            Some(adopted) => adopted,
            None => ServerSocket::make(&settings.borrow().socket)?,
        };
        let (listener, intake) = listen(&taking_in, socket, around)?;
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
            backups: Backups::Written(backups.clone(), settings.clone()),
            serving: true,
        };
        let idle = settings.borrow().session.idle_timeout;
        let left_over = registry.clone();
        let left_over_sessions = taking_in.spawn(async move { left_over.end_left_over_sessions(idle).await });
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
        if let Some((http, address)) = http {
            beside.push(tokio::spawn(http::serve(http, address, Face { overview: overview.clone(), intake: intake.clone() })));
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
                systemd::takes(START_EXTENSION);
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
    let (socket, path) = socket.into_parts();
    Listener::new(socket, path, around)
}

/// Who may connect to the one socket may connect to the other.
fn make_status_socket(settings: &Settings) -> Result<ServerSocket, ListenError> {
    ServerSocket::make_with_what_group_there_is(&crate::config::SocketSettings {
        path: settings.status.socket.clone(),
        ..settings.socket.clone()
    })
}

fn name_what_the_unit_overrules(adopted: &ServerSocket, settings: &Settings, origins: &BTreeMap<&'static str, Origin>) {
    // A default that the socket unit overrides is nobody's surprise.
    let is_set = |key: &str| origins.get(key).is_some_and(|origin| *origin != Origin::Default);
    for (key, has, decides) in adopted.unlike(&settings.socket).into_iter().filter(|(key, ..)| is_set(key)) {
        warn!(key, has, "the socket unit decides this, not the setting (set {decides} there, or leave the key out)");
    }
}

/// The client for these settings; `None` without a URL. What it needs from files is read beside the start, for a moment of
/// which the start waits: the gate is closed until it is there.
async fn manager_api(settings: &Settings) -> Result<Option<ManagerApi>, crate::manager_api::ManagerApiError> {
    if settings.manager_api.url.is_none() {
        return Ok(None);
    }
    let api = ManagerApi::unread(&settings.manager_api)?;
    let reading = api.clone();
    let _ = timeout(FILES_PATIENCE, tokio::task::spawn_blocking(move || reading.reload())).await;
    Ok(Some(api))
}

fn announce(sources: &Sources, settings: &Settings, socket: &Path) {
    let version = env!("CARGO_PKG_VERSION");
    let file = sources.file.as_deref().map(|file| file.display().to_string());
    info!(
        version,
        socket = %socket.display(),
        store = %settings.store.directory.display(),
        config = file.as_deref().unwrap_or("the usual places"),
        "starting"
    );
}
