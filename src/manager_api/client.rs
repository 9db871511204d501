//! The HTTP client: the report, the probe, the profile and the agent lookup. No other request is ever made.
//!
//! Promises: every request ends within its timeout, whatever the server does; nothing is repeated, redirected or sent
//! without a secret; an attempt that may have reached the server says so.
//! Refuses: to decide what happens next — it returns verdicts.
//! Called by `upload` (reports, probes, profile), by the agent lookup and by `doctor`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Request, Url};
use tracing::debug;

use super::connection::Connection;
use super::credential::Credential;
use super::lookup::{self, AgentLookup};
use super::profile::{self, ProfileUnknown, ServerProfile};
use super::report;
use super::transport::{Taken, WatchedBody, describe, failure, read_body};
use super::verdict::{Answer, BodyEnd, Verdict, classify, operator, retry_after};
use crate::config::{ManagerApiSettings, MaxContent};
use crate::observe::metrics::Label;
use crate::protocol::MacAddress;

/// The most of an answer that is read. The API's own are a few hundred bytes; its public configuration some thousand.
pub const ANSWER_CAP_BYTES: usize = 64 * 1024;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Why there is no client, or not all that it needs.
#[derive(Debug, thiserror::Error)]
pub enum ManagerApiError {
    /// There is no URL: the daemon keeps history locally and needs no client.
    #[error("manager_api.url is not set")]
    NoUrl,
    /// The URL is none.
    #[error("manager_api.url is no plain http:// or https:// URL: host and path, without user, query or fragment")]
    Url,
    /// The CA file cannot be used.
    #[error("manager_api.ca_file {path} {reason} (it must be a PEM file with the authorities to trust)")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The proxy cannot be used.
    #[error("manager_api.proxy is no http:// or https:// URL")]
    Proxy,
    /// The secret cannot be read; a secret read before stays in use.
    #[error("cannot read the server secret: {0}")]
    Secret(String),
    /// The TLS machinery cannot start.
    #[error("cannot set up HTTP: {0} (install ca-certificates or set manager_api.ca_file)")]
    Setup(String),
}

/// Who answered an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnsweredBy {
    /// The server.
    Server,
    /// A proxy that has no server behind it, or a server with too much to do.
    Gateway,
    /// Nobody, connected or not: the server may be another one when it comes back.
    Nobody,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// What it means for the message.
    pub verdict: Verdict,
    /// How long it took.
    pub elapsed: Duration,
    /// The HTTP status, when there was an answer.
    pub status: Option<u16>,
}

impl Attempt {
    /// No connection came up, so nothing was sent: host, port, network or TLS.
    #[must_use]
    pub const fn never_connected(&self) -> bool {
        matches!((self.status, &self.verdict), (None, Verdict::Later { ambiguous: false, .. }))
    }

    /// Who answered, as far as it shows.
    #[must_use]
    pub const fn answered_by(&self) -> AnsweredBy {
        match (self.status, &self.verdict) {
            (None, Verdict::Later { .. }) => AnsweredBy::Nobody,
            (Some(502..=504), Verdict::Later { retry_after: None, .. }) => AnsweredBy::Gateway,
            _ => AnsweredBy::Server,
        }
    }
}

/// The Manager API, seen through one connection pool. Clones share pool, authorities and secret.
#[derive(Clone)]
pub struct ManagerApi(Arc<Inner>);

struct Inner {
    connection: Connection,
    credential: Credential,
    report_url: Url,
    profile_url: Url,
    agent_base: String,
    headers: HeaderMap,
    timeout: Duration,
    fixed_profile: Option<ServerProfile>,
    max_content: Option<MaxContent>,
}

/// What the server says of itself.
#[derive(Clone, Debug)]
pub struct ServerLook {
    /// What it can store, by its own word.
    pub profile: Result<ServerProfile, ProfileUnknown>,
    /// Its version, when it names one.
    pub version: Option<String>,
    /// Its clock (`Date`).
    pub date: Option<SystemTime>,
}

/// An answer as it came off the wire.
struct Received {
    status: u16,
    body: Vec<u8>,
    end: BodyEnd,
    retry_after: Option<Duration>,
    date: Option<SystemTime>,
}

impl Received {
    fn answer(&self) -> Answer<'_> {
        Answer { status: self.status, body: &self.body, end: self.end, retry_after: self.retry_after }
    }
}

impl ManagerApi {
    /// A client for these settings, ready for use. A secret or a CA file that cannot be read yet is no error: reports then
    /// answer [`Verdict::Operator`] until [`Self::reload`] finds it. Blocking, for it reads them.
    ///
    /// # Errors
    /// When there is no URL, or URL or proxy cannot be used.
    pub fn new(settings: &ManagerApiSettings) -> Result<Self, ManagerApiError> {
        let api = Self::unread(settings)?;
        let _ = api.reload();
        Ok(api)
    }

    /// As [`Self::new`], but without what stands in files: for that [`Self::reload`] is called.
    ///
    /// # Errors
    /// When there is no URL, or URL or proxy cannot be used.
    pub fn unread(settings: &ManagerApiSettings) -> Result<Self, ManagerApiError> {
        let base = settings.url.as_deref().ok_or(ManagerApiError::NoUrl)?.trim_end_matches('/');
        let parse = |path: &str| Url::parse(&format!("{base}{path}")).map_err(|_| ManagerApiError::Url);
        // Alone first: with a path behind it, `http://` would take the path's beginning for a host.
        let root = parse("")?;
        let plain =
            root.username().is_empty() && root.password().is_none() && root.query().is_none() && root.fragment().is_none();
        if !plain || !root.has_host() || !matches!(root.scheme(), "http" | "https") {
            return Err(ManagerApiError::Url);
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(report::CONTENT_TYPE));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Ok(Self(Arc::new(Inner {
            connection: Connection::new(settings, root)?,
            credential: Credential::new(settings.secret.clone()),
            report_url: parse("/agent/chat-history/report")?,
            profile_url: parse("/user/pub-config")?,
            agent_base: format!("{base}/agent/device"),
            headers,
            timeout: settings.timeout,
            fixed_profile: ServerProfile::fixed(settings),
            max_content: settings.max_content,
        })))
    }

    /// Reads the authorities and the secret from their files again. Blocking.
    ///
    /// # Errors
    /// When one of them cannot be read or used; what is in use stays.
    pub fn reload(&self) -> Result<(), ManagerApiError> {
        let connection = self.0.connection.reload();
        let secret = self.0.credential.reload().map_err(ManagerApiError::Secret);
        connection.and(secret.map(drop))
    }

    /// What [`Self::reload`] reads, for the operator.
    #[must_use]
    pub fn files(&self) -> &'static str {
        match (self.0.connection.has_file(), self.0.credential.has_file()) {
            (true, true) => "the file of the secret or that of the authorities",
            (true, false) => "the file of the authorities",
            (false, _) => "the secret's file",
        }
    }

    /// Why nothing can be asked of the server, for the operator; `None` when it can.
    #[must_use]
    pub fn unusable(&self) -> Option<String> {
        self.0.connection.client().err()
    }

    /// What it takes until a new secret, or authorities where they are missing, are used, for the operator.
    #[must_use]
    pub fn renewal(&self) -> &'static str {
        if self.unusable().is_some() { "the authorities are read anew at every probe" } else { self.0.credential.renewal() }
    }

    /// Sends one report. `idempotency_key` is the same at every attempt of the same message or part.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the request; the server may have stored it all the same.
    pub async fn report(&self, body: Bytes, idempotency_key: &str) -> Attempt {
        let started = Instant::now();
        let (verdict, status) = self.post(body, HeaderValue::from_str(idempotency_key).ok()).await;
        Attempt { verdict, elapsed: started.elapsed(), status }
    }

    /// Asks, without side effect, whether reports would be taken: an empty report, which the server refuses with
    /// [`Verdict::Rejected`] once path and secret are right (see [`Verdict::proves_open`]).
    ///
    /// # Cancel safety
    /// Nothing is stored, so nothing is lost.
    pub async fn probe(&self) -> Verdict {
        let started = Instant::now();
        let (verdict, status) = self.post(Bytes::from_static(b"{}"), None).await;
        debug!(outcome = verdict.outcome().as_str(), status, elapsed = ?started.elapsed(), "empty report");
        verdict
    }

    /// What the server can store. Without a request when `manager_api.report_time_unit` is fixed.
    ///
    /// # Errors
    /// When the server does not say it clearly.
    ///
    /// # Cancel safety
    /// Nothing is stored, so nothing is lost.
    pub async fn profile(&self) -> Result<ServerProfile, ProfileUnknown> {
        if let Some(profile) = self.0.fixed_profile {
            return Ok(profile);
        }
        let received =
            self.get("user/pub-config", self.0.profile_url.clone(), None).await.map_err(|reason| ProfileUnknown { reason })?;
        Ok(ServerProfile::from_answer(&received.answer())?.limited(self.0.max_content))
    }

    /// What the server says of itself, whatever is configured. For `doctor`.
    ///
    /// # Errors
    /// When there is no answer.
    ///
    /// # Cancel safety
    /// Nothing is stored, so nothing is lost.
    pub async fn look(&self) -> Result<ServerLook, String> {
        let received = self.get("user/pub-config", self.0.profile_url.clone(), None).await?;
        let answer = received.answer();
        Ok(ServerLook {
            profile: ServerProfile::from_answer(&answer),
            version: profile::named_version(&answer),
            date: received.date,
        })
    }

    /// The agent of a device. Delivery never waits for it.
    ///
    /// # Cancel safety
    /// Nothing is stored, so nothing is lost.
    pub async fn agent_id(&self, mac: MacAddress) -> AgentLookup {
        let authorization = match self.0.credential.header() {
            Ok(authorization) => authorization,
            Err(reason) => return AgentLookup::Failed { reason: no_secret(&reason) },
        };
        let Ok(url) = Url::parse(&format!("{}/{}/agent-id", self.0.agent_base, mac.bare())) else {
            return AgentLookup::Failed { reason: "manager_api.url makes no URL".to_owned() };
        };
        match self.get("agent-id", url, Some(authorization)).await {
            Ok(received) => lookup::from_answer(&received.answer()),
            Err(reason) => AgentLookup::Failed { reason },
        }
    }

    async fn post(&self, body: Bytes, idempotency_key: Option<HeaderValue>) -> (Verdict, Option<u16>) {
        let client = match self.0.connection.client() {
            Ok(client) => client,
            Err(reason) => return (operator(reason), None),
        };
        let authorization = match self.0.credential.header() {
            Ok(authorization) => authorization,
            Err(reason) => return (operator(no_secret(&reason)), None),
        };
        let taken = Taken::default();
        let mut request = Request::new(Method::POST, self.0.report_url.clone());
        *request.timeout_mut() = Some(self.0.timeout + time_for(body.len()));
        let headers = request.headers_mut();
        headers.clone_from(&self.0.headers);
        headers.insert(AUTHORIZATION, authorization);
        if let Some(key) = idempotency_key {
            headers.insert(IDEMPOTENCY_KEY, key);
        }
        *request.body_mut() = Some(reqwest::Body::wrap(WatchedBody::new(body, taken.clone())));
        match exchange(&client, request).await {
            Ok(received) => (classify(&received.answer()), Some(received.status)),
            Err(error) => (failure(&error, &taken), None),
        }
    }

    async fn get(&self, call: &'static str, url: Url, authorization: Option<HeaderValue>) -> Result<Received, String> {
        let client = self.0.connection.client()?;
        let mut request = Request::new(Method::GET, url);
        *request.timeout_mut() = Some(self.0.timeout);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let started = Instant::now();
        let received = exchange(&client, request).await.map_err(|error| describe(&error));
        let (status, error) = (received.as_ref().ok().map(|received| received.status), received.as_ref().err());
        debug!(call, status, error, elapsed = ?started.elapsed(), "question");
        received
    }
}

async fn exchange(client: &Client, request: Request) -> Result<Received, reqwest::Error> {
    let mut response = client.execute(request).await.map_err(reqwest::Error::without_url)?;
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after(value, SystemTime::now()));
    let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
    let date = date.and_then(|value| httpdate::parse_http_date(value).ok());
    let (body, end) = read_body(&mut response, ANSWER_CAP_BYTES).await;
    Ok(Received { status, body, end, retry_after, date })
}

fn no_secret(reason: &str) -> String {
    format!("there is no server secret, so nothing is sent: {reason}")
}

/// What a body's size adds to the timeout: 1 s per 100 kB.
fn time_for(body_bytes: usize) -> Duration {
    Duration::from_millis(u64::try_from(body_bytes / 100).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gets_a_second_for_every_hundred_kilobytes() {
        assert_eq!(time_for(250), Duration::from_millis(2));
        assert_eq!(time_for(2_700_000), Duration::from_secs(27));
    }
}
