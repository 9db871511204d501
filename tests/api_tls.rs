//! TLS that cannot be trusted: a clear word, tried again, and never given up for plain text.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::api_faults::{MAC, say};
use crate::support::daemon::Builder;
use crate::support::eventually::always;
use crate::support::{Daemon, ManagerApi, Producer, Variant, soon};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let directory = tempfile::tempdir().unwrap().keep();
    crate::support::guard::remove_at_end(&directory);
    let file = directory.join("ca.pem");
    std::fs::write(&file, pem).unwrap();
    Authority { issuer: Issuer::new(params, key), file }
}

#[derive(Clone, Copy)]
enum Valid {
    Now,
    InThePast,
    InTheFuture,
}

fn server_config(authority: &Authority, name: &str, valid: Valid) -> Arc<rustls::ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let years = match valid {
        Valid::Now => None,
        Valid::InThePast => Some((2020, 2021)),
        Valid::InTheFuture => Some((2090, 2091)),
    };
    if let Some((from, to)) = years {
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
    }
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

fn trusting(authority: &Authority, url: &str) -> Builder {
    Daemon::builder()
        .set("manager_api.url", &format!("'{url}'"))
        .set("manager_api.ca_file", &format!("'{}'", authority.file.display()))
}

#[test]
fn a_private_authority_delivers() {
    let ours = authority();
    let api = ManagerApi::start_tls(Variant::Upstream, server_config(&ours, "localhost", Valid::Now));
    api.register(MAC);
    let daemon = trusting(&ours, &api.url()).start();
    say(&daemon, MAC, "s", "Hello");
    api.wait_for_rows("s", 1);
}

#[test]
fn what_cannot_be_trusted_is_named_retried_and_never_given_up_for_plain_text() {
    let ours = authority();
    let cases = [
        ("has expired", server_config(&ours, "localhost", Valid::InThePast)),
        ("is not valid yet", server_config(&ours, "localhost", Valid::InTheFuture)),
        ("is for another host name", server_config(&ours, "elsewhere.example", Valid::Now)),
        ("is signed by an unknown authority", server_config(&authority(), "localhost", Valid::Now)),
    ];
    for (words, config) in cases {
        let api = ManagerApi::start_tls(Variant::Fork, config);
        api.register(MAC);
        let daemon = trusting(&ours, &api.url()).start();
        say(&daemon, MAC, "s", "Hello");
        soon(&format!("{words}: retried"), || api.connections() >= 3);
        assert!(api.requests().is_empty(), "{words}: a request got through");
        assert_eq!((daemon.metric("pending"), daemon.metric("rejected"), daemon.metric("ambiguous")), (1, 0, 0), "{words}");
        let gate = &daemon.status()["gate"];
        assert!(gate["reason"].as_str().is_some_and(|reason| reason.contains(words)), "{words}: {gate}");
        assert!(daemon.log().contains(words), "the log does not say why: {words}");
    }
}

#[test]
fn the_ca_file_is_trusted_instead_of_the_systems_authorities_not_beside_them() {
    let (ours, systems) = (authority(), authority());
    let api = ManagerApi::start_tls(Variant::Fork, server_config(&systems, "localhost", Valid::Now));
    api.register(MAC);
    let system_roots = systems.file.display().to_string();
    // Without a ca_file the authority of the system is trusted: the variable does what this test stands on.
    let daemon = Daemon::builder().api(&api).environment("SSL_CERT_FILE", &system_roots).start();
    say(&daemon, MAC, "before", "Hello");
    api.wait_for_rows("before", 1);
    drop(daemon);
    let (connections, requests) = (api.connections(), api.requests().len());
    let daemon = trusting(&ours, &api.url()).environment("SSL_CERT_FILE", &system_roots).start();
    say(&daemon, MAC, "after", "Hello");
    soon("retried", || api.connections() >= connections + 3);
    assert_eq!(api.requests().len(), requests, "an authority that is not in ca_file was trusted");
    assert_eq!((daemon.metric("pending"), daemon.metric("rejected")), (1, 0));
    assert!(daemon.log().contains("signed by an unknown authority"), "the log says why");
}

#[test]
fn a_certificate_that_is_renewed_ends_the_outage() {
    let ours = authority();
    let expired = ManagerApi::start_tls(Variant::Fork, server_config(&ours, "localhost", Valid::InThePast));
    let mut daemon = trusting(&ours, &expired.url()).start();
    say(&daemon, MAC, "s", "Hello");
    soon("the gate is closed", || daemon.status()["gate"]["state"] == "closed");
    let renewed = ManagerApi::start_tls(Variant::Fork, server_config(&ours, "localhost", Valid::Now));
    renewed.register(MAC);
    daemon.set("manager_api.url", &format!("'{}'", renewed.url()));
    daemon.hup();
    renewed.wait_for_rows("s", 1);
    assert_eq!(daemon.status()["gate"]["state"], "open");
}

#[test]
fn plain_text_where_tls_belongs_and_tls_where_plain_text_does_are_retried() {
    let ours = authority();
    let secure = ManagerApi::start_tls(Variant::Fork, server_config(&ours, "localhost", Valid::Now));
    let plain = ManagerApi::start(Variant::Fork);
    for (api, url) in [
        (&secure, secure.url().replace("https://", "http://")),
        (&plain, plain.url().replace("http://127.0.0.1", "https://localhost")),
    ] {
        api.register(MAC);
        let daemon = trusting(&ours, &url).start();
        say(&daemon, MAC, "s", "Hello");
        soon(&format!("{url}: retried"), || api.connections() >= 3);
        always(Duration::from_millis(100), "nothing is thought delivered", || daemon.metric("delivered") == 0);
        assert_eq!((api.row_count(), daemon.metric("pending"), daemon.metric("rejected")), (0, 1, 0), "{url}");
    }
}

/// The neighbour of a secret that is late: only delivery needs it, so everybody is heard.
#[test]
fn authorities_that_are_missing_or_garbled_at_a_start_hold_up_delivery_alone_until_they_are_mended() {
    let ours = authority();
    let pem = std::fs::read(&ours.file).unwrap();
    let api = ManagerApi::start_tls(Variant::Fork, server_config(&ours, "localhost", Valid::Now));
    api.register(MAC);
    let garbled = "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n";
    for (session, content) in [("missing", None), ("nothing", Some("nothing")), ("garbled", Some(garbled))] {
        let mut daemon = trusting(&ours, &api.url()).prepare();
        std::fs::remove_file(&ours.file).unwrap();
        if let Some(content) = content {
            std::fs::write(&ours.file, content).unwrap();
        }
        daemon.start();
        let gate = || daemon.status()["gate"].clone();
        soon("the gate is closed before anybody says a word", || gate()["kind"] == "operator");
        assert!(gate()["reason"].as_str().is_some_and(|reason| reason.contains("manager_api.ca_file")), "{session}: {}", gate());
        let mut producer = Producer::connected(&daemon, MAC, session);
        producer.say(1, "Hello");
        producer.wait_until_acked();
        std::fs::write(&ours.file, &pem).unwrap();
        api.wait_for_rows(session, 1);
        soon("the gate is open", || daemon.status()["gate"]["state"] == "open");
    }
}

#[test]
fn authorities_that_are_replaced_are_trusted_after_a_reload_and_bad_ones_are_kept_out() {
    let (ours, next) = (authority(), authority());
    let api = ManagerApi::start_tls(Variant::Fork, server_config(&next, "localhost", Valid::Now));
    api.register(MAC);
    let mut daemon = trusting(&ours, &api.url()).start();
    say(&daemon, MAC, "s", "Hello");
    soon("the gate is closed", || daemon.status()["gate"]["state"] == "closed");
    std::fs::copy(&next.file, &ours.file).unwrap();
    daemon.hup();
    api.wait_for_rows("s", 1);
    let garbled = daemon.directory().join("garbled.pem");
    std::fs::write(&garbled, "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n").unwrap();
    daemon.set("manager_api.ca_file", &format!("'{}'", garbled.display()));
    daemon.hup();
    soon("it says so", || daemon.log().contains("the configuration was not reloaded"));
    say(&daemon, MAC, "after", "Hello");
    api.wait_for_rows("after", 1);
}
