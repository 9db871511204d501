//! What the Manager API and the network between do wrong, and what the daemon makes of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::eventually::always;
use crate::support::oracle::{check_books, check_fresh};
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Rule, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";
const OTHER_MAC: &str = "00:16:3e:ac:b5:38";

fn ground(variant: Variant) -> (ManagerApi, Daemon) {
    let api = ManagerApi::start(variant);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    (api, daemon)
}

/// One acknowledged message in a session of its own.
#[track_caller]
fn say(daemon: &Daemon, mac: &str, session: &str, text: &str) {
    let mut producer = Producer::connected(daemon, mac, session);
    producer.say(1, text);
    producer.wait_until_acked();
}

/// How often a session was tried.
fn attempts(api: &ManagerApi, session: &str) -> usize {
    api.reports().iter().filter(|sent| sent.report.as_ref().is_some_and(|report| report.session_id == session)).count()
}

#[test]
fn two_hundred_is_not_enough() {
    let (api, daemon) = ground(Variant::Fork);
    let answers = [
        r#"{"code":500,"msg":"x","data":null}"#,
        r#"{"code":401,"msg":"x","data":null}"#,
        r#"{"code":403,"msg":"x","data":true}"#,
        r#"{"code":10053,"msg":"x","data":null}"#,
        r#"{"code":0,"msg":"success","data":false}"#,
        r#"{"code":0,"msg":"success"}"#,
        r#"{"code":0,"data":"true"}"#,
        r#"{"code":0,"data":1}"#,
        r#"{"code":"0","data":true}"#,
        r#"{"data":true}"#,
        r#"{"code":0,"da"#,
        "true",
        "[]",
        "",
        "<!doctype html><title>Welcome to nginx!</title>",
    ];
    for (index, answer) in answers.iter().enumerate() {
        let session = format!("session-{index}");
        api.fault(Fault::json(answer));
        let before = api.count(Endpoint::Report);
        say(&daemon, MAC, &session, "Hello");
        soon(&format!("{answer}: tried and tried again"), || api.count(Endpoint::Report) >= before + 2);
        assert_eq!(daemon.metric("delivered"), index as u64, "{answer} is no success");
        assert_eq!(daemon.metric("rejected"), 0, "{answer} rejects nothing");
        api.clear_faults();
        api.wait_for_rows(&session, 1);
        soon(&format!("{answer}: delivered in the end"), || daemon.metric("delivered") == index as u64 + 1);
        assert_eq!(api.rows(&session).len(), 1, "{answer}");
    }
    check_books(&daemon);
}

#[test]
fn wrong_secret_parks_everything() {
    let (api, daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    api.set_secret("the-new-secret");
    let mut producers: Vec<Producer> =
        (0..6).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    for producer in &mut producers {
        for index in 0..6 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    soon("the gate closes", || daemon.metric("gate_closings") == 1);
    soon("probes", || api.count(Endpoint::Report) >= 8);
    let probe = |body: &[u8]| body == b"{}";
    let others = api.requests().iter().filter(|sent| sent.endpoint == Endpoint::Report && !probe(&sent.request.body)).count();
    assert!(others <= 4, "behind a closed gate only probes are sent, not {others} reports");
    assert_eq!((daemon.metric("rejected"), daemon.metric("delivered"), api.row_count()), (0, 0, 0));
    std::fs::write(daemon.secret_file(), "the-new-secret\n").unwrap();
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("gate_closings"), 1, "closed once");
    let log = daemon.log();
    for secret in ["the-new-secret", crate::support::manager_api::SECRET] {
        assert!(!log.contains(secret), "a secret in the log");
    }
}

#[test]
fn an_operators_error_holds_everything_and_follows_nobody() {
    let trap = ManagerApi::start(Variant::Fork);
    let (api, daemon) = ground(Variant::Fork);
    let faults = [
        Fault::status(401),
        Fault::status(403),
        Fault::status(404),
        Fault::status(405),
        Fault::redirect(&format!("{}/user/pub-config", trap.url())),
        Fault::code(403),
        Fault::code(404),
        Fault::html(),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let session = format!("session-{index}");
        api.fault(fault.clone());
        say(&daemon, MAC, &session, "Hello");
        soon(&format!("{fault:?} closes the gate"), || daemon.metric("gate_closings") as usize == index + 1);
        assert_eq!(daemon.metric("rejected"), 0, "{fault:?}");
        api.clear_faults();
        assert_eq!(api.wait_for_rows(&session, 1).len(), 1, "{fault:?}");
    }
    assert!(trap.requests().is_empty(), "a redirect was followed");
    check_books(&daemon);
}

#[test]
fn unknown_device_waits_alone() {
    let (api, daemon) = ground(Variant::Upstream);
    let mut unknown = Producer::connected(&daemon, OTHER_MAC, "unknown");
    for index in 0..4 {
        unknown.say(1, &format!("message {index}"));
    }
    unknown.wait_until_acked();
    soon("it is tried", || attempts(&api, "unknown") >= 1);
    let mut oracle = Oracle::new(&daemon);
    let mut known = Producer::connected(&daemon, MAC, "known");
    for index in 0..20 {
        known.say(2, &format!("message {index}"));
    }
    known.wait_until_acked();
    api.wait_for_rows("known", 20);
    soon("the wait goes on", || attempts(&api, "unknown") >= 3);
    assert_eq!((daemon.metric("pending"), daemon.metric("rejected"), daemon.metric("gate_closings")), (4, 0, 0));
    api.register(OTHER_MAC);
    oracle.owe(&known);
    oracle.owe(&unknown);
    oracle.check(&daemon, &api);
    assert_eq!(api.rows("unknown").len(), 4);
}

#[test]
fn an_unknown_device_is_given_up_after_the_hold() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon =
        Daemon::builder().api(&api).set("upload.unknown_device_retry", "'1s'").set("upload.unknown_device_hold", "'2s'").start();
    say(&daemon, OTHER_MAC, "unknown", "Hello");
    soon("rejected", || daemon.labelled("rejected", "device_not_registered") == 1);
    assert_eq!(daemon.metric("pending"), 0);
    check_fresh(&daemon, &api);
    check_books(&daemon);
}

#[test]
fn poison_is_isolated() {
    let (api, daemon) = ground(Variant::Fork);
    api.rule(Rule::new(Fault::code(500)).content("poison"));
    let mut poisoned = Producer::connected(&daemon, MAC, "poisoned");
    for text in ["first", "poison", "last"] {
        poisoned.say(1, text);
    }
    poisoned.wait_until_acked();
    api.wait_for_rows("poisoned", 1);
    soon("alone, it is tried and not given up", || attempts(&api, "poisoned") >= 9);
    assert_eq!(daemon.metric("rejected"), 0, "nobody else got through since: it may be an outage");
    let mut oracle = Oracle::new(&daemon);
    let mut other = Producer::connected(&daemon, MAC, "other");
    let mut said = 0;
    soon("others get through, and the poison is rejected", || {
        if api.rows("other").len() == said {
            other.say(1, &format!("message {said}"));
            said += 1;
        }
        daemon.labelled("rejected", "refused_by_server") == 1
    });
    other.wait_until_acked();
    oracle.owe(&other);
    let rest: Vec<String> = api.wait_for_rows("poisoned", 2).into_iter().map(|row| row.content).collect();
    assert_eq!(rest, ["first", "last"]);
    assert!(said >= 5, "rejected after the success of only {said} others");
    oracle.check(&daemon, &api);
}

#[test]
fn outage_rejects_nothing() {
    let (api, daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    api.fault(Fault::database_down());
    let mut producers: Vec<Producer> =
        (0..10).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    for producer in &mut producers {
        for index in 0..5 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    soon("it is an outage, probed again and again", || api.count(Endpoint::Report) >= 20);
    assert_eq!((daemon.metric("rejected"), daemon.metric("delivered")), (0, 0));
    api.clear_faults();
    oracle.check(&daemon, &api);
    assert_eq!(api.row_count(), 51);
    assert_eq!(daemon.metric("rejected"), 0);
}

#[test]
fn what_the_validator_refuses_is_rejected_at_once() {
    let (api, daemon) = ground(Variant::Fork);
    api.rule(Rule::new(Fault::code(10034)).content("refused"));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for text in ["first", "refused", "last"] {
        producer.say(1, text);
    }
    producer.wait_until_acked();
    let texts: Vec<String> = api.wait_for_rows("s", 2).into_iter().map(|row| row.content).collect();
    assert_eq!(texts, ["first", "last"]);
    assert_eq!((daemon.metric("rejected"), attempts(&api, "s")), (1, 3));
    check_books(&daemon);
}

#[test]
fn retry_after_is_honoured() {
    let seconds = || "2".to_owned();
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4));
    let cases: [(u16, &dyn Fn() -> String); 3] = [(503, &seconds), (429, &seconds), (503, &date)];
    for (status, value) in cases {
        let (api, daemon) = ground(Variant::Fork);
        let value = value();
        api.rule(Rule::new(Fault::status_with(status, "Retry-After", &value)).times(1));
        say(&daemon, MAC, "s", "Hello");
        api.wait_for_rows("s", 1);
        let times: Vec<Instant> = api.reports().iter().map(|sent| sent.at).collect();
        let gap = times[1] - times[0];
        assert!(gap >= Duration::from_millis(1900), "{status} Retry-After {value}: tried again after {gap:?}");
        assert!(gap < Duration::from_secs(12), "{status} Retry-After {value}: tried again only after {gap:?}");
    }
}

#[test]
fn a_bad_answer_costs_bounded_time_and_memory() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon =
        Daemon::builder().api(&api).set("manager_api.timeout", "'1s'").set("manager_api.connect_timeout", "'1s'").start();
    check_fresh(&daemon, &api);
    let memory = daemon.rss();
    let faults = [
        Fault::HangBeforeHeaders,
        Fault::HangAfterHeaders,
        Fault::Trickle(Duration::from_millis(100)),
        Fault::EndlessBody,
        Fault::GzipBomb,
        Fault::Garbage,
        Fault::HalfClose,
        Fault::ResetMidBody,
        Fault::ResetAfterCommit,
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let session = format!("session-{index}");
        api.clear_faults();
        api.rule(Rule::new(fault.clone()).times(1));
        let began = Instant::now();
        say(&daemon, MAC, &session, "Hello");
        soon(&format!("{fault:?}: delivered"), || daemon.metric("delivered") == index as u64 + 2);
        assert!(began.elapsed() < Duration::from_secs(15), "{fault:?} cost {:?}", began.elapsed());
        assert!(matches!(api.rows(&session).len(), 1 | 2), "{fault:?}");
    }
    let grown = daemon.rss().saturating_sub(memory);
    assert!(grown < 48 * 1024 * 1024, "{grown} bytes more after the faults");
    check_books(&daemon);
}

#[test]
fn time_unit_follows_the_server() {
    let (api, daemon) = ground(Variant::Fork);
    let at = |session: &str, millis: i64| {
        let mut agent = Agent::connect(&daemon);
        agent.line(&serde_json::json!({ "mac_address": MAC, "session_id": session, "chat_type": 1, "content": "x", "timestamp": millis }));
        let rows = api.wait_for_rows(session, 1);
        rows[0].created_at_ms
    };
    assert_eq!(at("before", 1_758_701_973_250), 1_758_701_973_000);
    api.stop();
    api.upgrade();
    let mut agent = Agent::connect(&daemon);
    agent.line(&serde_json::json!({ "mac_address": MAC, "session_id": "meanwhile", "chat_type": 1, "content": "x" }));
    soon("the outage is noticed", || daemon.metric("gate_closings") >= 1);
    api.start_again();
    api.wait_for_rows("meanwhile", 1);
    assert_eq!(at("after", 1_758_701_973_250), 1_758_701_973_250);
    assert!(api.all_rows().iter().all(|row| row.created_at_ms > 1_700_000_000_000), "nothing stands in January 1970");
}

#[test]
fn nothing_is_sent_to_a_server_of_unknown_kind() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    api.rule(Rule::new(Fault::status(503)).on(Endpoint::PubConfig));
    let daemon = Daemon::start_for(&api);
    say(&daemon, MAC, "s", "Hello");
    soon("it asks for the version", || api.count(Endpoint::PubConfig) >= 2);
    assert_eq!(api.reports().len(), 0, "a wrong unit would be stored as January 1970");
    api.clear_faults();
    let rows = api.wait_for_rows("s", 1);
    assert!(rows[0].created_at_ms > 1_700_000_000_000);
    check_books(&daemon);
}

#[test]
fn a_server_without_a_version_takes_seconds() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.set_version(None);
    let daemon = Daemon::start_for(&api);
    say(&daemon, MAC, "s", "Hello");
    assert!(api.wait_for_rows("s", 1)[0].created_at_ms > 1_700_000_000_000);
}

#[test]
fn delivery_never_waits_for_the_agent_lookup() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.rule(Rule::new(Fault::HangBeforeHeaders).on(Endpoint::AgentId));
    let daemon = Daemon::start_for(&api);
    let began = Instant::now();
    say(&daemon, MAC, "s", "Hello");
    api.wait_for_rows("s", 1);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn only_the_documented_requests_are_ever_made() {
    let (api, daemon) = ground(Variant::Fork);
    for index in 0..5 {
        say(&daemon, MAC, &format!("session-{index}"), "Hello");
    }
    soon("all delivered", || daemon.metric("delivered") == 5);
    assert_eq!(api.count(Endpoint::Other), 0);
    assert!(api.count(Endpoint::PubConfig) >= 1);
    for sent in api.reports() {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&sent.request.body).unwrap();
        let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["audioBase64", "chatType", "content", "macAddress", "reportTime", "sessionId"]);
        assert_eq!(object["macAddress"], MAC);
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { issuer: Issuer::new(params, key), pem }
}

fn server_config(authority: &Authority, name: &str, expired: bool) -> Arc<rustls::ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if expired {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
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

/// A daemon that trusts this authority alone, for a stand-in at this URL.
fn daemon_trusting(authority: &Authority, url: &str) -> Daemon {
    let directory = tempfile::tempdir().unwrap().keep();
    crate::support::guard::remove_at_end(&directory);
    let file = directory.join("ca.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    Daemon::builder()
        .set("manager_api.url", &format!("'{url}'"))
        .set("manager_api.ca_file", &format!("'{}'", file.display()))
        .start()
}

#[test]
fn tls_with_a_private_authority_delivers() {
    let ours = authority();
    let api = ManagerApi::start_tls(Variant::Upstream, server_config(&ours, "localhost", false));
    api.register(MAC);
    let daemon = daemon_trusting(&ours, &api.url());
    say(&daemon, MAC, "s", "Hello");
    api.wait_for_rows("s", 1);
}

#[test]
fn tls_that_cannot_be_trusted_is_retried_and_never_given_up_for_plain_text() {
    let ours = authority();
    let cases = [
        ("expired", server_config(&ours, "localhost", true)),
        ("wrong host", server_config(&ours, "elsewhere.example", false)),
        ("unknown authority", server_config(&authority(), "localhost", false)),
    ];
    for (what, config) in cases {
        let api = ManagerApi::start_tls(Variant::Fork, config);
        api.register(MAC);
        let daemon = daemon_trusting(&ours, &api.url());
        say(&daemon, MAC, "s", "Hello");
        soon(&format!("{what}: retried"), || api.connections() >= 3);
        assert!(api.requests().is_empty(), "{what}: a request got through");
        assert_eq!((daemon.metric("pending"), daemon.metric("rejected")), (1, 0), "{what}");
        let log = daemon.log().to_lowercase();
        assert!(log.contains("certificate"), "{what}: the log does not say why:\n{log}");
    }
}

#[test]
fn tls_and_plain_text_mixed_up_is_retried() {
    let ours = authority();
    let secure = ManagerApi::start_tls(Variant::Fork, server_config(&ours, "localhost", false));
    let plain = ManagerApi::start(Variant::Fork);
    for (api, url) in [
        (&secure, secure.url().replace("https://", "http://")),
        (&plain, plain.url().replace("http://127.0.0.1", "https://localhost")),
    ] {
        api.register(MAC);
        let daemon = daemon_trusting(&ours, &url);
        say(&daemon, MAC, "s", "Hello");
        soon(&format!("{url}: retried"), || api.connections() >= 3);
        always(Duration::from_millis(100), "nothing is thought delivered", || daemon.metric("delivered") == 0);
        assert_eq!((api.row_count(), daemon.metric("pending"), daemon.metric("rejected")), (0, 1, 0), "{url}");
    }
}
