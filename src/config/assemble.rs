//! The defaults of every setting, the range of every setting, and the settings that contradict each other.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::layers::Origin;
use super::parse::{self, Raw, Wrong};
use super::reader::Reader;
use super::secret::{InvalidSecret, Secret, SecretError, SecretSource};
use super::settings::{
    BackupSettings, Durability, LogFormat, LogLevel, LogSettings, ManagerApiSettings, OnLongContent, ReportTimeUnit,
    SessionSettings, Settings, SocketSettings, StatusSettings, StoreSettings, UploadSettings,
};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = seconds(60);
const HOUR: Duration = seconds(3_600);
const DAY: Duration = seconds(86_400);
const YEAR: Duration = seconds(365 * 86_400);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What is added to `manager_api.url` to report.
const REPORT: &str = "/agent/chat-history/report";

/// The settings when nothing is set.
pub(super) fn defaults(environment: &Environment) -> Settings {
    let socket = environment.socket_path();
    let directory = environment.state_directory().unwrap_or_default();
    Settings {
        status: StatusSettings { socket: socket.with_file_name("status.sock"), http_listen: None },
        socket: SocketSettings {
            path: socket,
            mode: 0o660,
            group: None,
            allowed_uids: Vec::new(),
            max_connections: 4_096,
            max_line_bytes: 4 << 20,
        },
        session: SessionSettings { batch_size: 5, send_interval: seconds(30), idle_timeout: MINUTE * 2, max_open: 20_000 },
        manager_api: ManagerApiSettings {
            url: None,
            secret: None,
            timeout: seconds(30),
            connect_timeout: seconds(5),
            report_time_unit: ReportTimeUnit::Auto,
            max_content: None,
            on_long_content: OnLongContent::Split,
            escape_html: true,
            send_audio: false,
            send_tools: false,
            ca_file: None,
            proxy: None,
        },
        upload: UploadSettings {
            concurrency: 4,
            retry_attempts: 3,
            backoff_initial: seconds(1),
            backoff_max: MINUTE,
            unknown_device_retry: MINUTE * 5,
            unknown_device_hold: DAY * 7,
            poison_attempts: 5,
            shutdown_grace: seconds(5),
        },
        backup: BackupSettings { enabled: true, directory: backup_in(&directory) },
        store: StoreSettings {
            directory,
            durability: Durability::Fsync,
            retention: DAY * 30,
            max_bytes: 2 * GIB,
            shelf_bytes: 8 * MIB,
        },
        log: LogSettings { level: LogLevel::Info, format: LogFormat::Auto },
    }
}

/// The default of `backup.directory`.
pub(super) fn backup_in(store_directory: &std::path::Path) -> PathBuf {
    if store_directory.as_os_str().is_empty() { PathBuf::new() } else { store_directory.join("backup") }
}

/// Lays what the reader was given over the defaults in `settings`, and checks it.
pub(super) fn settings(read: &mut Reader, settings: &mut Settings, environment: &Environment) {
    let Settings { socket, session, manager_api, upload, store, backup, status, log } = settings;

    read.read("socket.path", &mut socket.path, parse::socket_path);
    read.read("socket.mode", &mut socket.mode, parse::mode);
    read.read("socket.group", &mut socket.group, parse::optional_text);
    read.read("socket.allowed_uids", &mut socket.allowed_uids, parse::uids);
    read.read("socket.max_connections", &mut socket.max_connections, |raw| parse::count(raw, 1..=65_536));
    read.read("socket.max_line_bytes", &mut socket.max_line_bytes, |raw| bytes_in_memory(raw, KIB, 64 * MIB));
    if read.is_set("socket.path") {
        status.socket = socket.path.with_file_name("status.sock");
    }

    read.read("session.batch_size", &mut session.batch_size, |raw| parse::integer(raw, 1..=1_000));
    read.read("session.send_interval", &mut session.send_interval, |raw| parse::duration(raw, MILLISECOND * 100..=HOUR));
    read.read("session.idle_timeout", &mut session.idle_timeout, |raw| parse::duration(raw, seconds(1)..=DAY));
    read.read("session.max_open", &mut session.max_open, |raw| parse::count(raw, 1..=1_000_000));

    read.read("manager_api.url", &mut manager_api.url, parse::url);
    secret(read, manager_api, environment);
    read.read("manager_api.timeout", &mut manager_api.timeout, |raw| parse::duration(raw, seconds(1)..=MINUTE * 10));
    read.read("manager_api.connect_timeout", &mut manager_api.connect_timeout, |raw| {
        parse::duration(raw, MILLISECOND * 100..=MINUTE * 2)
    });
    read.read("manager_api.report_time_unit", &mut manager_api.report_time_unit, |raw| parse::word(raw, ReportTimeUnit::WORDS));
    read.read("manager_api.max_content", &mut manager_api.max_content, parse::max_content);
    read.read("manager_api.on_long_content", &mut manager_api.on_long_content, |raw| parse::word(raw, OnLongContent::WORDS));
    read.read("manager_api.escape_html", &mut manager_api.escape_html, parse::boolean);
    read.read("manager_api.send_audio", &mut manager_api.send_audio, parse::boolean);
    read.read("manager_api.send_tools", &mut manager_api.send_tools, parse::boolean);
    read.read("manager_api.ca_file", &mut manager_api.ca_file, parse::optional_path);
    read.read("manager_api.proxy", &mut manager_api.proxy, parse::proxy);

    read.read("upload.concurrency", &mut upload.concurrency, |raw| parse::count(raw, 1..=256));
    read.read("upload.retry_attempts", &mut upload.retry_attempts, |raw| parse::integer(raw, 1..=100));
    read.read("upload.backoff_initial", &mut upload.backoff_initial, |raw| parse::duration(raw, MILLISECOND * 10..=HOUR));
    read.read("upload.backoff_max", &mut upload.backoff_max, |raw| parse::duration(raw, MILLISECOND * 10..=DAY));
    read.read("upload.unknown_device_retry", &mut upload.unknown_device_retry, |raw| parse::duration(raw, seconds(1)..=DAY));
    read.read("upload.unknown_device_hold", &mut upload.unknown_device_hold, |raw| parse::duration(raw, seconds(1)..=YEAR));
    read.read("upload.poison_attempts", &mut upload.poison_attempts, |raw| parse::integer(raw, 1..=1_000));
    read.read("upload.shutdown_grace", &mut upload.shutdown_grace, |raw| parse::duration(raw, Duration::ZERO..=HOUR));

    read.read("store.directory", &mut store.directory, parse::path);
    read.read("store.durability", &mut store.durability, |raw| parse::word(raw, Durability::WORDS));
    read.read("store.retention", &mut store.retention, |raw| parse::duration(raw, DAY..=YEAR * 100));
    read.read("store.max_bytes", &mut store.max_bytes, |raw| parse::size(raw, 16 * MIB..=16_384 * GIB));
    read.read("store.shelf_bytes", &mut store.shelf_bytes, |raw| parse::size(raw, 64 * KIB..=4 * GIB));

    backup.directory = backup_in(&store.directory);
    read.read("backup.enabled", &mut backup.enabled, parse::boolean);
    read.read("backup.directory", &mut backup.directory, parse::path);

    read.read("status.socket", &mut status.socket, parse::socket_path);
    read.read("status.http_listen", &mut status.http_listen, parse::listen_address);
    read.read("log.level", &mut log.level, |raw| parse::word(raw, LogLevel::WORDS));
    read.read("log.format", &mut log.format, |raw| parse::word(raw, LogFormat::WORDS));

    fleeting_places(read, store, backup);
    contradictions(read, settings);
}

fn bytes_in_memory(raw: &Raw, low: u64, high: u64) -> Result<usize, Wrong> {
    parse::size(raw, low..=high).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Decides between `secret`, `secret_file` and the systemd credential.
fn secret(read: &mut Reader, manager_api: &mut ManagerApiSettings, environment: &Environment) {
    let mut file = None;
    let mut inline = None;
    read.read("manager_api.secret_file", &mut file, parse::optional_path);
    read.read("manager_api.secret", &mut inline, |raw| match raw {
        Raw::Text(text) | Raw::Loose(text) if text.is_empty() => Ok(None),
        Raw::Text(text) | Raw::Loose(text) => {
            Secret::check(text).map(Some).map_err(|reason| Wrong { message: reason.to_string(), hint: reason.hint().to_owned() })
        }
        // The value is never repeated here, whatever it is.
        _ => Err(Wrong { message: "is no text".to_owned(), hint: "write it in quotes".to_owned() }),
    });
    manager_api.secret = match (file, inline) {
        (Some(file), Some(_)) => {
            let other = read.origin("manager_api.secret_file");
            let message = format!("is set, and manager_api.secret_file too ({other})");
            read.problem("manager_api.secret", message, "keep one of the two, best secret_file");
            Some(SecretSource::File(file))
        }
        (Some(file), None) => Some(SecretSource::File(file)),
        (None, Some(secret)) => Some(SecretSource::Inline(secret)),
        (None, None) => environment.credential().filter(|file| file.exists() && !is_blank(file)).map(|file| {
            read.set_origin("manager_api.secret_file", Origin::Credential);
            SecretSource::Credential(file)
        }),
    };
}

/// A unit's fallback for a credential that does not exist is a blank one (`SetCredential=`): it counts as none.
fn is_blank(file: &std::path::Path) -> bool {
    matches!(SecretSource::Credential(file.to_owned()).read(), Err(SecretError::Unusable { reason: InvalidSecret::Empty, .. }))
}

/// Where nothing lasts: kept in memory, swept at a boot or when it is old, or a service's own and gone with it.
const FLEETING: [&str; 5] = ["/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run"];

/// History in a place that does not keep it: it would be lost later, without a word.
fn fleeting_places(read: &mut Reader, store: &StoreSettings, backup: &BackupSettings) {
    let mut look = |key: &'static str, directory: &PathBuf, lasting: &str| {
        if let Some(place) = FLEETING.into_iter().find(|place| directory.starts_with(place)) {
            let message = format!(
                "{} will not last: what is below {place} is swept when it is old or at a boot, and in a unit with PrivateTmp= or \
                 RuntimeDirectory= as soon as the service stops",
                directory.display()
            );
            read.warn(key, message, format!("set it to a directory on disk, like {lasting}"));
        }
    };
    look("store.directory", &store.directory, "/var/lib/chat-historyd");
    // One that only follows the store was told of with it.
    if backup.enabled && !backup.directory.starts_with(&store.directory) {
        look("backup.directory", &backup.directory, "/var/lib/chat-historyd/backup");
    }
}

/// Settings that are fine alone and not together.
fn contradictions(read: &mut Reader, settings: &Settings) {
    let Settings { socket, session: _, manager_api, upload, store, backup: _, status, log: _ } = settings;
    let mut at_most = |low: (&str, Duration), high: (&str, Duration)| {
        if low.1 > high.1 && !read.is_refused(low.0) && !read.is_refused(high.0) {
            // The complaint goes to the key that somebody set.
            let (key, message) = if read.is_set(low.0) || !read.is_set(high.0) {
                (low.0, format!("is longer than {}", high.0))
            } else {
                (high.0, format!("is shorter than {}", low.0))
            };
            let (short, long) = (super::rows::duration_text(low.1), super::rows::duration_text(high.1));
            let hint = format!("let {} ({short}) be at most {} ({long})", low.0, high.0);
            read.problem(key, message, hint);
        }
    };
    at_most(("upload.backoff_initial", upload.backoff_initial), ("upload.backoff_max", upload.backoff_max));
    at_most(
        ("upload.unknown_device_retry", upload.unknown_device_retry),
        ("upload.unknown_device_hold", upload.unknown_device_hold),
    );
    at_most(("manager_api.connect_timeout", manager_api.connect_timeout), ("manager_api.timeout", manager_api.timeout));

    if socket.path == status.socket && !read.is_refused("socket.path") && !read.is_refused("status.socket") {
        let key = if read.is_set("status.socket") { "status.socket" } else { "socket.path" };
        read.problem(key, "socket.path and status.socket are the same", "give each socket its own path");
    }
    if store.directory.as_os_str().is_empty() && !read.is_refused("store.directory") {
        read.problem(
            "store.directory",
            "there is no home directory to keep the history in",
            "set store.directory or $STATE_DIRECTORY",
        );
    }
    if store.shelf_bytes < socket.max_line_bytes as u64 {
        let key = if read.is_set("store.shelf_bytes") { "store.shelf_bytes" } else { "socket.max_line_bytes" };
        let message = "the longest line does not fit on the shelf while the disk fails";
        read.warn(key, message, "let store.shelf_bytes be at least socket.max_line_bytes");
    }
    if socket.mode & 0o007 != 0 && socket.allowed_uids.is_empty() {
        read.warn("socket.mode", "every local user may connect", "set socket.allowed_uids, or socket.group and mode \"0660\"");
    }
    if status.http_listen.is_some_and(|address| !address.ip().is_loopback()) {
        read.warn(
            "status.http_listen",
            "the metrics can be read from the network",
            "listen on 127.0.0.1, or keep a firewall before it",
        );
    }
    match &manager_api.url {
        None if !read.is_refused("manager_api.url") => {
            let message = "is not set: the history is only kept on this machine and leaves by store.retention";
            read.warn("manager_api.url", message, "set it to the Manager API, for example \"http://127.0.0.1:8080/toy\"");
        }
        Some(url) if reqwest::Url::parse(url).is_ok_and(|url| url.path() == "/") => {
            read.warn("manager_api.url", "has no path", "the Manager API usually lives under /toy or /xiaozhi: add that");
        }
        Some(url) if ["/agent/chat-history", REPORT].iter().any(|end| url.trim_end_matches('/').ends_with(end)) => {
            let hint = format!("end it with the context path: the daemon adds {REPORT}");
            read.warn("manager_api.url", "names an endpoint, not the Manager API", hint);
        }
        _ => {}
    }
    let secret_refused = read.is_refused("manager_api.secret") || read.is_refused("manager_api.secret_file");
    if manager_api.url.is_some() && manager_api.secret.is_none() && !secret_refused {
        let message = "there is no secret: the Manager API will refuse every message";
        read.warn("manager_api.secret_file", message, "set it, or give the systemd credential manager-api-secret");
    }
}
