//! TLS: whom the client trusts, and what it says when it does not.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// An authority of our own, and its certificate in a file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca_file, _directory: directory }
    }

    /// A server for `name` that answers one request a connection with success.
    async fn server(&self, name: &str, until: i32) -> Server {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate: CertificateDer<'static> = params.signed_by(&key, &self.issuer).unwrap().into();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = Server::start(move |stream, _| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = read_request(&mut stream).await;
                    let _ = stream.write_all(SUCCESS.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        })
        .await;
        Server { url: server.url.replace("http:", "https:"), ..server }
    }
}

async fn trusting(authority: &Authority, url: &str) -> Attempt {
    let settings = ManagerApiSettings { ca_file: Some(authority.ca_file.clone()), ..settings(url) };
    report(&ManagerApi::new(&settings).unwrap(), "key").await
}

#[tokio::test]
async fn a_server_of_the_configured_authority_is_trusted() {
    let authority = Authority::new("our authority");
    let server = authority.server("127.0.0.1", 2999).await;
    assert_eq!(trusting(&authority, &server.url).await.verdict, Verdict::Delivered);
    let server = authority.server("localhost", 2999).await;
    assert_eq!(trusting(&authority, &server.url.replace("127.0.0.1", "localhost")).await.verdict, Verdict::Delivered);
}

#[tokio::test]
async fn what_is_not_trusted_is_named_and_nothing_was_sent() {
    let authority = Authority::new("our authority");
    let stranger = Authority::new("their authority");
    let namesake = Authority::new("our authority");
    for (server, expected) in [
        (stranger.server("127.0.0.1", 2999).await, "signed by an unknown authority"),
        (namesake.server("127.0.0.1", 2999).await, "signed by an unknown authority"),
        (authority.server("other.example", 2999).await, "for another host name"),
        (authority.server("127.0.0.1", 2002).await, "has expired"),
    ] {
        let attempt = trusting(&authority, &server.url).await;
        assert!(is_later(&attempt.verdict, false) && attempt.verdict.text().contains(expected), "{attempt:?}");
        assert!(!attempt.verdict.text().contains("127.0.0.1"), "{attempt:?}");
    }
}

#[tokio::test]
async fn a_port_without_tls_is_named() {
    let authority = Authority::new("our authority");
    let server = Server::start(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let attempt = trusting(&authority, &server.url.replace("http:", "https:")).await;
    assert!(is_later(&attempt.verdict, false) && attempt.verdict.text().contains("does not speak TLS"), "{attempt:?}");
}

#[tokio::test]
async fn a_handshake_that_hangs_or_breaks_is_not_ambiguous() {
    let authority = Authority::new("our authority");
    let silent = Server::start(|stream, _| hang(stream)).await;
    let closing = Server::start(|stream, _| async move { drop(stream) }).await;
    for server in [silent, closing] {
        let settings = ManagerApiSettings {
            ca_file: Some(authority.ca_file.clone()),
            connect_timeout: SHORT,
            ..settings(&server.url.replace("http:", "https:"))
        };
        let attempt = report(&ManagerApi::new(&settings).unwrap(), "key").await;
        assert!(attempt.never_connected() && attempt.elapsed < LONG, "{attempt:?}");
    }
}

#[tokio::test]
async fn the_total_timeout_ends_a_connection_that_never_comes_up_without_ambiguity() {
    let silent = Server::start(|stream, _| hang(stream)).await;
    let authority = Authority::new("our authority");
    let settings = ManagerApiSettings {
        ca_file: Some(authority.ca_file.clone()),
        timeout: SHORT,
        ..settings(&silent.url.replace("http:", "https:"))
    };
    let attempt = report(&ManagerApi::new(&settings).unwrap(), "key").await;
    assert!(is_later(&attempt.verdict, false) && attempt.elapsed < LONG, "{attempt:?}");
    assert_eq!(attempt.verdict.text(), "connecting timed out");
}
