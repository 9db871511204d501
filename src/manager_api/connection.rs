//! How the client connects: every setting of the HTTP client, in one place.
//!
//! Promises: HTTP/1.1, no redirect, no repetition, no proxy unless configured, nothing from the environment, own CA
//! file trusted exclusively, connections idle for 25 s never used again. What is in use stays until new authorities
//! were read whole. Called by the client.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::{ACCEPT_LANGUAGE, HeaderMap, HeaderValue};
use reqwest::{Client, Proxy, Url};

use super::client::ManagerApiError;
use super::transport::describe;
use crate::config::{ManagerApiSettings, authorities};

/// Connections idle for longer are not used again. The server keeps them for 60 s, proxies before it may for less.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// The HTTP client, or why there is none: its authorities are read from a file, which may be gone, wrong or replaced.
pub(super) struct Connection {
    settings: ManagerApiSettings,
    target: Url,
    open: RwLock<Result<Open, String>>,
}

struct Open {
    client: Client,
    /// What the CA file held; nothing without one.
    authorities: Option<Vec<u8>>,
}

impl Connection {
    /// A connection for these settings and this target, missing until [`Self::reload`] succeeds.
    ///
    /// # Errors
    /// When the proxy cannot be used.
    pub(super) fn new(settings: &ManagerApiSettings, target: Url) -> Result<Self, ManagerApiError> {
        settings.proxy.as_deref().map(proxy_at).transpose()?;
        let unread = "the file of the authorities does not answer".to_owned();
        Ok(Self { settings: settings.clone(), target, open: RwLock::new(Err(unread)) })
    }

    /// Whether its authorities come from a file of their own.
    pub(super) const fn has_file(&self) -> bool {
        self.settings.ca_file.is_some()
    }

    /// The client, or why there is none, for the operator.
    pub(super) fn client(&self) -> Result<Client, String> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|open| open.client.clone()).map_err(|reason| format!("nothing can be sent: {reason}"))
    }

    /// Reads the authorities again. Those that cannot be read now do not replace those that could, and the connections that
    /// are up stay when nothing has changed.
    pub(super) fn reload(&self) -> Result<(), ManagerApiError> {
        let new = open(&self.settings, &self.target);
        let mut current = self.open.write().unwrap_or_else(PoisonError::into_inner);
        match (new, &*current) {
            (Ok(new), Ok(old)) if new.authorities == old.authorities => {}
            (Ok(new), _) => *current = Ok(new),
            (Err(error), Ok(_)) => return Err(error),
            (Err(error), Err(_)) => {
                *current = Err(error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }
}

fn open(settings: &ManagerApiSettings, target: &Url) -> Result<Open, ManagerApiError> {
    let refused = |reason: String| ManagerApiError::CaFile { path: settings.ca_file.clone().unwrap_or_default(), reason };
    let authorities = settings.ca_file.as_deref().map(authorities::read).transpose().map_err(refused)?;
    // One provider for the process. An error means that there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    // The server translates its messages; ours are logged, so the language is fixed.
    headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static("en-US"));
    let mut builder = Client::builder()
        .user_agent(concat!("chat-historyd/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        // What stays below: a request that found its kept connection closed before its first byte takes a new one.
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(settings.connect_timeout)
        .timeout(settings.timeout)
        .pool_idle_timeout(POOL_IDLE);
    if let Some(proxy) = &settings.proxy {
        builder = builder.proxy(proxy_at(proxy)?);
    }
    if let Some(pem) = &authorities {
        builder = builder.tls_certs_only(authorities::certificates(pem).map_err(refused)?);
    } else if target.scheme() == "http" && settings.proxy.is_none() {
        // No TLS will be spoken: a machine without any CA certificates is fine.
        builder = builder.tls_certs_only([]);
    }
    let client = builder.build().map_err(|error| ManagerApiError::Setup(describe(&error.without_url())))?;
    Ok(Open { client, authorities })
}

fn proxy_at(proxy: &str) -> Result<Proxy, ManagerApiError> {
    let url = Url::parse(proxy).map_err(|_| ManagerApiError::Proxy)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ManagerApiError::Proxy);
    }
    Proxy::all(url).map_err(|_| ManagerApiError::Proxy)
}
