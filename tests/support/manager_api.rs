//! A stand-in for the Manager API that answers as the real one does (both known servers), stores into a real MariaDB in
//! strict mode, records every request, and fails on demand in every way a network and a server can fail.
//!
//! Promises: no idempotency (like the real one: a repeated report adds a row), no sleep but where a fault asks for it,
//! the same port over [`ManagerApi::stop`] and [`ManagerApi::start_again`].

mod endpoints;
mod fault;
mod http;
mod rows;
mod serve;
pub mod xss;

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mysql::prelude::Queryable;
use sha2::Digest;

use super::eventually::soon;
use super::mariadb::{Columns, Database, MariaDb};
pub use endpoints::Report;
pub use fault::{Endpoint, Fault, Rule};
pub use http::Request;
pub use rows::Row;

/// The secret the stand-in begins with. A canary: no log, status or error may ever show it.
pub const SECRET: &str = "canary-secret-3f9c1e7a";

/// Which of the two known servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// Version 0.7.5: context `/toy`, seconds, narrow columns, any spelling of a MAC, agent lookup.
    Fork,
    /// Version 0.9.6: context `/xiaozhi`, milliseconds, TEXT, the exact MAC, no agent lookup.
    Upstream,
}

/// How the server behaves now.
#[allow(clippy::struct_excessive_bools, reason = "the two servers differ in just these ways")]
pub struct Server {
    context: &'static str,
    version: Option<String>,
    secret: String,
    milliseconds: bool,
    exact_mac: bool,
    has_agent_lookup: bool,
    accepts_secret_header: bool,
    behind_nginx: bool,
}

/// One request, as it arrived and as it ended.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When its head had arrived.
    pub at: Instant,
    /// When the answer began to be written, or the fault was over.
    pub finished: Option<Instant>,
    /// The number of its connection.
    pub connection: u64,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// Method, path, headers and body.
    pub request: Request,
    /// What the server understood, when it was a report.
    pub report: Option<Report>,
    /// `Idempotency-Key`.
    pub key: Option<String>,
    /// The HTTP status of the answer made (a fault may have kept it from the client).
    pub status: Option<u16>,
    /// `code` of the answer made.
    pub code: Option<i64>,
    /// The row stored for it.
    pub row: Option<u64>,
    /// A rule hit it.
    pub faulted: bool,
}

#[derive(Default)]
struct Running {
    sockets: HashMap<u64, TcpStream>,
    accepting: Option<std::thread::JoinHandle<()>>,
    stopping: bool,
    connections: u64,
}

struct Shared {
    port: u16,
    database: Database,
    tls: Option<Arc<rustls::ServerConfig>>,
    server: Mutex<Server>,
    rules: Mutex<Vec<Rule>>,
    recorded: Mutex<Vec<Recorded>>,
    running: Mutex<Running>,
}

/// The stand-in. Stops when dropped.
pub struct ManagerApi {
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

impl ManagerApi {
    /// Starts one on a free port, with no device registered.
    pub fn start(variant: Variant) -> Self {
        Self::start_with(variant, None)
    }

    /// The same behind TLS.
    pub fn start_tls(variant: Variant, config: Arc<rustls::ServerConfig>) -> Self {
        Self::start_with(variant, Some(config))
    }

    fn start_with(variant: Variant, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let fork = variant == Variant::Fork;
        let database = MariaDb::shared().create_database(if fork { Columns::Fork } else { Columns::Upstream });
        let server = Server {
            context: if fork { "/toy" } else { "/xiaozhi" },
            version: Some(if fork { "0.7.5" } else { "0.9.6" }.to_owned()),
            secret: SECRET.to_owned(),
            milliseconds: !fork,
            exact_mac: !fork,
            has_agent_lookup: fork,
            accepts_secret_header: fork,
            behind_nginx: false,
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            port,
            database,
            tls,
            server: Mutex::new(server),
            rules: Mutex::default(),
            recorded: Mutex::default(),
            running: Mutex::default(),
        });
        serve::accept(&shared, listener);
        Self { shared }
    }

    /// The base URL with the context path, as `manager_api.url` wants it.
    pub fn url(&self) -> String {
        let (scheme, host) = if self.shared.tls.is_some() { ("https", "localhost") } else { ("http", "127.0.0.1") };
        format!("{scheme}://{host}:{}{}", self.shared.port, lock(&self.shared.server).context)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// An outage: every connection is cut and the port refuses new ones.
    pub fn stop(&self) {
        serve::stop(&self.shared);
    }

    /// The end of the outage, on the same port.
    pub fn start_again(&self) {
        let listener = super::eventually::eventually(super::eventually::SOON, "the port is free again", || {
            std::net::TcpListener::bind(("127.0.0.1", self.shared.port)).ok()
        });
        serve::accept(&self.shared, listener);
    }

    // ---- the operator's side -------------------------------------------------------------------------------------

    /// Registers a device with an agent of its own that keeps text (`chat_history_conf` 1); the agent's id.
    pub fn register(&self, mac: &str) -> String {
        self.register_with_conf(mac, 1)
    }

    /// Registers a device whose agent keeps: 0 nothing (and still answers true), 1 text, 2 text and audio.
    pub fn register_with_conf(&self, mac: &str, conf: i8) -> String {
        let agent = uuid::Uuid::now_v7().simple().to_string();
        self.sql("INSERT INTO ai_agent (id, chat_history_conf) VALUES (?, ?)", (&agent, conf));
        self.sql("INSERT INTO ai_device (mac_address, agent_id) VALUES (?, ?)", (mac, &agent));
        agent
    }

    /// Registers a device that no agent was chosen for.
    pub fn register_without_agent(&self, mac: &str) {
        self.sql("INSERT INTO ai_device (mac_address, agent_id) VALUES (?, NULL)", (mac,));
    }

    /// Removes a device.
    pub fn unregister(&self, mac: &str) {
        self.sql("DELETE FROM ai_device WHERE mac_address = ?", (mac,));
    }

    /// Changes the server's secret; the old one is refused from now on.
    pub fn set_secret(&self, secret: &str) {
        secret.clone_into(&mut lock(&self.shared.server).secret);
    }

    /// What `user/pub-config` says; `None`: the server has no such endpoint (401 inside the envelope).
    pub fn set_version(&self, version: Option<&str>) {
        lock(&self.shared.server).version = version.map(str::to_owned);
    }

    /// The fork's operator moves to 0.9.6 in place: milliseconds, wide text, narrow session ids, same URL.
    pub fn upgrade(&self) {
        self.shared.database.alter(Columns::Upstream);
        let mut server = lock(&self.shared.server);
        server.version = Some("0.9.6".to_owned());
        server.milliseconds = true;
        server.exact_mac = true;
        server.has_agent_lookup = false;
    }

    /// As in the upstream image: nginx answers what is outside the context path.
    pub fn put_behind_nginx(&self) {
        lock(&self.shared.server).behind_nginx = true;
    }

    fn sql(&self, statement: &str, values: impl Into<mysql::Params>) {
        self.shared.database.connection().expect("MariaDB answers").exec_drop(statement, values).expect("sql");
    }

    // ---- faults --------------------------------------------------------------------------------------------------

    /// This fault for every report until [`Self::clear_faults`].
    pub fn fault(&self, fault: Fault) {
        self.rule(Rule::new(fault));
    }

    /// Adds a rule behind the others.
    pub fn rule(&self, rule: Rule) {
        if matches!(rule.fault, Fault::GzipBomb) {
            // Made before it is needed: an answer that is slow to come would be another fault.
            serve::gzip_bomb();
        }
        lock(&self.shared.rules).push(rule);
    }

    /// No faults from now on. (Requests that hang already go on hanging until their client gives up.)
    pub fn clear_faults(&self) {
        lock(&self.shared.rules).clear();
    }

    // ---- what arrived --------------------------------------------------------------------------------------------

    /// The stored messages of a session, read from MariaDB, in the order of storing.
    pub fn rows(&self, session_id: &str) -> Vec<Row> {
        rows::select(&self.shared.database, Some(session_id))
    }

    /// All stored messages.
    pub fn all_rows(&self) -> Vec<Row> {
        rows::select(&self.shared.database, None)
    }

    /// How many devices have this address.
    pub fn devices(&self, mac: &str) -> usize {
        rows::agents_of(&self.shared.database, mac, true).expect("MariaDB answers").len()
    }

    /// What the daemon has to send for this session id: itself, or, over the column's width, its first 33 characters,
    /// `-` and 16 hexadecimal digits of its SHA-256.
    pub fn stored_session_id(&self, session_id: &str) -> String {
        let limit = if lock(&self.shared.server).milliseconds { 50 } else { 100 };
        if session_id.chars().count() <= limit {
            return session_id.to_owned();
        }
        let head: String = session_id.chars().take(33).collect();
        let digest = sha2::Sha256::digest(session_id.as_bytes());
        digest[..8].iter().fold(head + "-", |text, byte| format!("{text}{byte:02x}"))
    }

    /// How many messages are stored.
    pub fn row_count(&self) -> u64 {
        rows::count(&self.shared.database)
    }

    /// Waits until a session has this many rows and returns them.
    #[track_caller]
    pub fn wait_for_rows(&self, session_id: &str, count: usize) -> Vec<Row> {
        super::eventually::eventually(super::eventually::SOON, &format!("{count} rows of a session stored"), || {
            Some(self.rows(session_id)).filter(|rows| rows.len() >= count)
        })
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.recorded).clone()
    }

    /// The requests with a report in them (no probes), in the order of arrival.
    pub fn reports(&self) -> Vec<Recorded> {
        lock(&self.shared.recorded).iter().filter(|request| request.report.is_some()).cloned().collect()
    }

    /// The `Idempotency-Key` under which each row was stored.
    pub fn keys(&self) -> HashMap<u64, String> {
        let recorded = lock(&self.shared.recorded);
        let stored = recorded.iter().filter_map(|request| Some((request.row?, request.key.clone())));
        stored.map(|(row, key)| (row, key.expect("every report carries an Idempotency-Key"))).collect()
    }

    /// How many requests an endpoint has had.
    pub fn count(&self, endpoint: Endpoint) -> usize {
        lock(&self.shared.recorded).iter().filter(|request| request.endpoint == endpoint).count()
    }

    /// Waits until an endpoint has had this many requests.
    #[track_caller]
    pub fn wait_for_requests(&self, endpoint: Endpoint, count: usize) {
        soon("the stand-in was asked", || self.count(endpoint) >= count);
    }

    /// How many connections were accepted, those without a request included.
    pub fn connections(&self) -> u64 {
        lock(&self.shared.running).connections
    }

    /// Most reports in flight at once, and whether two of one session ever were.
    pub fn overlap(&self) -> (usize, bool) {
        let mut reports = self.reports();
        reports.sort_by_key(|report| report.at);
        let mut in_flight: Vec<&Recorded> = Vec::new();
        let (mut most, mut same_session) = (0, false);
        for report in &reports {
            in_flight.retain(|other| other.finished.is_none_or(|finished| finished > report.at));
            let session = |of: &Recorded| of.report.as_ref().map(|said| said.session_id.clone());
            same_session |= in_flight.iter().any(|other| session(other) == session(report));
            in_flight.push(report);
            most = most.max(in_flight.len());
        }
        (most, same_session)
    }
}

impl Drop for ManagerApi {
    fn drop(&mut self) {
        serve::stop(&self.shared);
    }
}
