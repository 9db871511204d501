//! The HTTP face, and that dashboard and alerts name only what there is.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::disk::SmallDisk;
use crate::support::eventually::{SOON, free_port};
use crate::support::{Agent, Daemon, ManagerApi, Producer, Variant, skipped, soon};

const MAC: &str = "68:25:dd:ba:39:78";
const CONTRIB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib");

/// What `promtool check metrics` complains about; `None` where there is none.
pub fn promtool_check(text: &str) -> Option<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() == complaints.trim().is_empty(), "{}: {complaints}", output.status);
    Some(complaints)
}

struct Face {
    address: SocketAddr,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Face {
    fn of(daemon: crate::support::daemon::Builder) -> (Daemon, Self) {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let daemon = daemon.set("status.http_listen", &format!("'{address}'")).start();
        (daemon, Self { address })
    }

    fn say(&self, request: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }

    fn get(&self, path: &str) -> Answer {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).expect("an answer")
    }
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().unwrap()
}

#[test]
fn metrics_are_clean_and_count_what_happened() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (daemon, face) = Face::of(Daemon::builder().api(&api));
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    for index in 0..4 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    producer.agent().text("no json");
    producer.agent().end();
    api.wait_for_rows("talk", 4);
    soon("all is booked", || {
        let text = face.get("/metrics").body;
        value(&text, "chat_historyd_delivered_total") == 4.0 && value(&text, "chat_historyd_conversation_messages_count") == 1.0
    });
    let answer = face.get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", answer.head);
    let text = &answer.body;
    for (series, expected) in [
        ("chat_historyd_received_total", 5.0),
        ("chat_historyd_pending", 0.0),
        ("chat_historyd_gate_open", 1.0),
        ("chat_historyd_store_failing", 0.0),
        ("chat_historyd_attempts_total{outcome=\"accepted\"}", 4.0),
        ("chat_historyd_attempts_total{outcome=\"later\"}", 0.0),
        ("chat_historyd_refusals_total{code=\"bad_json\"}", 1.0),
        ("chat_historyd_rejected_total{reason=\"invalid\"}", 0.0),
        ("chat_historyd_request_duration_seconds_count", 4.0),
        ("chat_historyd_request_duration_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("chat_historyd_conversation_messages_bucket{le=\"2.0\"}", 0.0),
        ("chat_historyd_conversation_messages_bucket{le=\"5.0\"}", 1.0),
        ("chat_historyd_conversation_messages_sum", 4.0),
        ("chat_historyd_retries_total", 0.0),
        ("chat_historyd_ambiguous_total", 0.0),
        ("chat_historyd_store_errors_total", 0.0),
    ] {
        assert!((value(text, series) - expected).abs() < f64::EPSILON, "{series} is not {expected}:\n{text}");
    }
    assert!(value(text, "chat_historyd_start_time_seconds") > 1.7e9);
    assert!(value(text, "chat_historyd_disk_free_bytes") > 0.0);
    assert!(!text.contains("39:78") && !text.contains("talk"), "no label names a device or a session");
    match promtool_check(text) {
        Some(complaints) => assert_eq!(complaints, ""),
        None => skipped("promtool is not installed (Debian package prometheus)"),
    }
}

#[test]
fn healthy_and_ready_even_behind_a_closed_gate_and_it_says_so() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (daemon, face) = Face::of(Daemon::builder().api(&api));
    assert_eq!((face.get("/healthz").status, face.get("/healthz").body.as_str()), (200, "ok\n"));
    assert_eq!((face.get("/readyz").status, face.get("/readyz").body.as_str()), (200, "ok\n"));
    api.set_secret("another");
    Producer::connected(&daemon, MAC, "talk").say(1, "Hello");
    soon("the gate closes", || daemon.metric("gate_closings") >= 1);
    let ready = face.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.body.starts_with("ok\nthe gate is closed, messages wait: operator: "), "{}", ready.body);
    assert_eq!(value(&face.get("/metrics").body, "chat_historyd_gate_open"), 0.0);
    assert!(!ready.body.contains(crate::support::manager_api::SECRET));
}

#[test]
fn a_store_that_cannot_be_written_is_not_ready_but_healthy() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let store = format!("'{}'", disk.path().join("store").display());
    let (daemon, face) = Face::of(Daemon::builder().wrapper(&disk.wrapper()).set("store.directory", &store));
    disk.fill();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "talk");
    soon("the store fails", || {
        agent.say(1, &"x".repeat(20_000));
        daemon.status()["store"]["failing"].is_object()
    });
    let ready = face.get("/readyz");
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert!(ready.body.starts_with("not ok\nthe store cannot be written for "), "{}", ready.body);
    assert_eq!(face.get("/healthz").status, 200);
    assert_eq!(value(&face.get("/metrics").body, "chat_historyd_store_failing"), 1.0);
}

#[test]
fn only_reading_is_allowed_and_only_what_there_is() {
    let (_daemon, face) = Face::of(Daemon::builder());
    assert_eq!(face.get("/nothing").status, 404);
    let post = face.say(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    assert_eq!(post.status, 405);
    assert!(post.head.contains("allow: get, head"), "{}", post.head);
    let head = face.say(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert!(face.say(long.as_bytes()).is_none_or(|answer| answer.status == 431));
    assert_eq!(face.get("/").status, 200);
}

#[test]
fn connections_that_say_nothing_take_a_bounded_room_and_are_let_go() {
    let (mut daemon, face) = Face::of(Daemon::builder());
    let silent: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(face.address).unwrap()).collect();
    let mut closed = 0;
    for mut stream in &silent {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        closed += usize::from(matches!(stream.read(&mut [0]), Ok(0)));
    }
    assert!(closed >= 44, "no more than sixteen are held: {closed} were closed at once");
    assert!(Agent::connect(&daemon).is_answered(), "the producers notice nothing");
    // None of these says anything, and yet there is room again.
    soon("the silent ones are let go", || face.say(b"GET / HTTP/1.0\r\n\r\n").is_some());
    assert!(daemon.is_running());
}

#[test]
fn an_address_that_is_taken_is_named_and_the_exit_code_is_73() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut daemon = Daemon::builder().set("status.http_listen", &format!("'{address}'")).prepare();
    daemon.spawn();
    assert_eq!(daemon.wait(SOON).code(), Some(73), "{}", daemon.log());
    assert!(daemon.log().contains("status.http_listen") && daemon.log().contains(&address), "{}", daemon.log());
}

/// Names of this daemon's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character: char| !word(character)).filter(|name| name.starts_with("chat_historyd_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_there_are() {
    let (_daemon, face) = Face::of(Daemon::builder());
    let there_are = names(&face.get("/metrics").body);
    assert!(there_are.len() > 50, "{there_are:?}");
    for file in ["grafana-dashboard.json", "prometheus-alerts.yml", "prometheus-alerts.test.yml"] {
        let text = std::fs::read_to_string(format!("{CONTRIB}/{file}")).unwrap();
        let unknown: Vec<String> = names(&text).difference(&there_are).cloned().collect();
        assert_eq!(unknown, Vec::<String>::new(), "{file}");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{CONTRIB}/grafana-dashboard.json")).unwrap()).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}

#[test]
fn every_alert_fires_for_its_trouble_and_is_silent_without_it() {
    let run = |arguments: &[&str]| Command::new("promtool").args(arguments).current_dir(CONTRIB).output();
    let Ok(checked) = run(&["check", "rules", "prometheus-alerts.yml"]) else {
        skipped("promtool is not installed (Debian package prometheus)");
        return;
    };
    assert!(checked.status.success(), "{checked:?}");
    let tested = run(&["test", "rules", "prometheus-alerts.test.yml"]).unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    let rules = std::fs::read_to_string(format!("{CONTRIB}/prometheus-alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(format!("{CONTRIB}/prometheus-alerts.test.yml")).unwrap();
    for name in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("\"{name}\"")), "{name} has no test");
    }
}
