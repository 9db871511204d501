//! How the client connects: every setting of the HTTP client, in one place.
//!
//! Promises: HTTP/1.1, no redirect, no repetition, no proxy unless configured, nothing from the environment, own CA
//! file trusted exclusively, connections idle for 25 s never used again.
//! Called by the client when it is made.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{ACCEPT_LANGUAGE, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Proxy, Url};

use super::client::ManagerApiError;
use super::transport::describe;
use crate::config::ManagerApiSettings;

/// Connections idle for longer are not used again. The server keeps them for 60 s, proxies before it may for less.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// The largest CA file that is read: a whole distribution's bundle has a quarter of a megabyte.
const CA_FILE_CAP_BYTES: u64 = 4 * 1024 * 1024;

/// An HTTP client for these settings and this target.
pub(super) fn open(settings: &ManagerApiSettings, target: &Url) -> Result<Client, ManagerApiError> {
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
    if let Some(path) = &settings.ca_file {
        builder = builder.tls_certs_only(certificates(path)?);
    } else if target.scheme() == "http" && settings.proxy.is_none() {
        // No TLS will be spoken: a machine without any CA certificates is fine.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| ManagerApiError::Setup(describe(&error.without_url())))
}

fn proxy_at(proxy: &str) -> Result<Proxy, ManagerApiError> {
    let url = Url::parse(proxy).map_err(|_| ManagerApiError::Proxy)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ManagerApiError::Proxy);
    }
    Proxy::all(url).map_err(|_| ManagerApiError::Proxy)
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, ManagerApiError> {
    use std::io::Read;
    let refused = |reason: String| ManagerApiError::CaFile { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| refused(error.kind().to_string()))?;
    let mut pem = Vec::new();
    file.take(CA_FILE_CAP_BYTES).read_to_end(&mut pem).map_err(|error| refused(error.kind().to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| refused("it is no PEM file".to_owned()))?;
    if certificates.is_empty() {
        return Err(refused("it holds no certificate in PEM".to_owned()));
    }
    Ok(certificates)
}
