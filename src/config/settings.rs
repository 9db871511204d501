//! The typed settings of the daemon, with their defaults. `chat-historyd.toml` documents each key; a test holds the two equal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::SecretSource;

/// Everything that can be set, after all layers were merged and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The producers' socket.
    pub socket: SocketSettings,
    /// Session actors and batching.
    pub session: SessionSettings,
    /// The remote.
    pub manager_api: ManagerApiSettings,
    /// Delivery.
    pub upload: UploadSettings,
    /// The durable store.
    pub store: StoreSettings,
    /// JSON backups of ended sessions.
    pub backup: BackupSettings,
    /// Status socket and HTTP face.
    pub status: StatusSettings,
    /// Logging.
    pub log: LogSettings,
}

/// `[socket]`
#[derive(Clone, Debug, PartialEq)]
pub struct SocketSettings {
    /// Where producers connect.
    pub path: PathBuf,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Group that owns the socket; the daemon's own group when absent.
    pub group: Option<String>,
    /// Peer uids that may connect; everybody the mode lets in when empty.
    pub allowed_uids: Vec<u32>,
    /// Connections at once.
    pub max_connections: usize,
    /// The longest line, without its newline.
    pub max_line_bytes: usize,
}

/// `[session]`
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSettings {
    /// Pending messages that make a session due.
    pub batch_size: u32,
    /// Age of the oldest pending message that makes a session due.
    pub send_interval: Duration,
    /// Silence after which a session without a connection ends.
    pub idle_timeout: Duration,
    /// Session actors at once.
    pub max_open: usize,
}

/// `[manager_api]`
#[derive(Clone, Debug, PartialEq)]
pub struct ManagerApiSettings {
    /// Base URL with its context path and without a trailing slash; `None`: history is only kept locally.
    pub url: Option<String>,
    /// Where the server secret comes from, read anew at every probe and on SIGHUP.
    pub secret: Option<SecretSource>,
    /// Total time of a report, before what its size adds (1 s per 100 kB).
    pub timeout: Duration,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Unit of `reportTime`.
    pub report_time_unit: ReportTimeUnit,
    /// Content limit; the server profile's when absent.
    pub max_content: Option<MaxContent>,
    /// What happens to longer text.
    pub on_long_content: OnLongContent,
    /// Escape what the server's XSS filter would rewrite.
    pub escape_html: bool,
    /// Send audio with the text.
    pub send_audio: bool,
    /// Send tool calls and results as type 3.
    pub send_tools: bool,
    /// PEM file with the only certificate authorities to trust; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// HTTP proxy; none when absent (the environment is not looked at).
    pub proxy: Option<String>,
}

/// `manager_api.report_time_unit`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportTimeUnit {
    /// Ask the server for its version.
    Auto,
    /// Servers before 0.9.3.
    Seconds,
    /// Servers from 0.9.3 on.
    Milliseconds,
}

/// `manager_api.max_content`: a number of code points (`1024`) or of UTF-8 bytes (`"65535B"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxContent {
    /// Unicode code points.
    Characters(usize),
    /// UTF-8 bytes.
    Bytes(usize),
}

/// `manager_api.on_long_content`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLongContent {
    /// Send it in parts, in order.
    Split,
    /// Cut it with `…`, counted.
    Truncate,
}

/// `[upload]`
#[derive(Clone, Debug, PartialEq)]
pub struct UploadSettings {
    /// Requests in flight at once; up to four times as many sessions take turns at them.
    pub concurrency: usize,
    /// Attempts in a row before a session goes to the back of the queue.
    pub retry_attempts: u32,
    /// First backoff.
    pub backoff_initial: Duration,
    /// Longest backoff.
    pub backoff_max: Duration,
    /// How often an unregistered device is tried again.
    pub unknown_device_retry: Duration,
    /// How long an unregistered device's messages are kept before they are rejected.
    pub unknown_device_hold: Duration,
    /// Strikes after which a message that the server alone refuses is rejected.
    pub poison_attempts: u32,
    /// How long delivery goes on after a stop was asked for.
    pub shutdown_grace: Duration,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// Holds `history.db`, `lock` and `corrupt/`.
    pub directory: PathBuf,
    /// What an ack stands for.
    pub durability: Durability,
    /// How long delivered messages are kept: at least a day, for that long they are the de-duplication keys.
    pub retention: Duration,
    /// Size of the store at which delivered history leaves early.
    pub max_bytes: u64,
    /// Memory for messages while the store cannot be written.
    pub shelf_bytes: u64,
}

/// `store.durability`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// An ack survives a power cut.
    Fsync,
    /// An ack survives a crash of the daemon, not of the machine.
    Os,
}

/// `[backup]`
#[derive(Clone, Debug, PartialEq)]
pub struct BackupSettings {
    /// Write a JSON file at each session end.
    pub enabled: bool,
    /// Where.
    pub directory: PathBuf,
}

/// `[status]`
#[derive(Clone, Debug, PartialEq)]
pub struct StatusSettings {
    /// The status socket.
    pub socket: PathBuf,
    /// Address of `/metrics`, `/healthz`, `/readyz`; off when absent.
    pub http_listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: LogLevel,
    /// Shape of a line.
    pub format: LogFormat,
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Journal prefixes when standard error is the journal, else text.
    Auto,
    /// One line of text with time and level.
    Text,
    /// `<N>` priority prefixes, no time: for the journal.
    Journal,
    /// One JSON object a line.
    Json,
}
