//! The status from outside: the socket, the command, and what they show of sessions, reports and the store.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::daemon::binary;
use crate::support::{Agent, Daemon, Fault, ManagerApi, Producer, Variant, eventually, skipped, soon};

const MAC: &str = "68:25:dd:ba:39:78";

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
}

fn status(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("status").arg("--config").arg(daemon.config()).args(arguments).output().unwrap()
}

fn printed(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = status(daemon, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn session<'a>(status: &'a Value, id: &str) -> &'a Value {
    let listed = status["sessions"].as_array().unwrap();
    listed.iter().find(|session| session["session"] == id).unwrap_or_else(|| panic!("{id} is not in {listed:?}"))
}

#[test]
fn a_session_shows_its_length_what_waits_and_its_last_event_also_after_a_restart() {
    let mut daemon = Daemon::builder().set("session.send_interval", "'10m'").start();
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    for index in 0..3 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    let mut other = Agent::connect(&daemon);
    other.bind(MAC, "silent");
    let seen = daemon.status();
    let talk = session(&seen, "talk");
    assert_eq!((&talk["messages"], &talk["pending"], &talk["mac"]), (&json!(3), &json!(3), &json!("..39:78")));
    assert!(talk["last_event_seconds"].as_u64().unwrap() < 30 && talk["open_seconds"].as_u64().unwrap() < 30, "{talk}");
    assert_eq!(session(&seen, "silent")["messages"], 0);
    assert!(!seen.to_string().contains(MAC), "no whole MAC address");
    other.end();
    drop(other);
    soon("an ended session leaves the list", || {
        daemon.status()["sessions"].as_array().unwrap().iter().all(|session| session["session"] != "silent")
    });
    daemon.restart();
    producer.connect(&daemon);
    producer.say(2, "one more");
    producer.wait_until_acked();
    assert_eq!(session(&daemon.status(), "talk")["messages"], 4, "counted from the conversation's beginning");
}

#[test]
fn a_hundred_sessions_are_listed_the_latest_first() {
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    for index in 0..130 {
        agent.line(&json!({ "mac_address": MAC, "session_id": format!("s{index}"), "chat_type": 1, "content": "x" }));
    }
    soon("all are open", || daemon.status()["sessions_open"] == 130);
    agent.line(&json!({ "mac_address": MAC, "session_id": "s0", "chat_type": 1, "content": "again" }));
    soon("the latest is the first", || daemon.status()["sessions"][0]["session"] == "s0");
    let seen = daemon.status();
    assert_eq!(seen["sessions"].as_array().unwrap().len(), 100);
    assert!(printed(&daemon, &[]).ends_with("and 110 more\n"));
}

#[test]
fn the_text_says_how_everything_is() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    api.wait_for_rows("talk", 1);
    soon("it is booked", || daemon.metric("delivered") == 1);
    let text = printed(&daemon, &[]);
    for expected in [
        "gate       open\n",
        "store      sound, ",
        "sessions   1 open, 0 with undelivered messages",
        "messages   0 pending, 0 held, 1 delivered, 0 rejected, 0 skipped\n",
        "reports    1 sent (accepted 1), 0 repeated, 0 ambiguous; in the last ",
        "100.0 % accepted",
        "producers  1 connected",
        "..39:78   talk\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    api.set_secret("another");
    producer.say(1, "Hello again");
    soon("the gate closes", || daemon.metric("gate_closings") >= 1);
    let text = printed(&daemon, &[]);
    assert!(text.contains("gate       closed (operator: ") && text.contains("check secret"), "{text}");
    assert!(text.contains("1 pending (oldest "), "{text}");
}

#[test]
fn repeated_reports_are_counted_and_the_rates_tell_of_failures() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    api.rule(crate::support::Rule::new(Fault::status(503)).times(1));
    producer.say(1, "Hello");
    api.wait_for_rows("talk", 1);
    let seen = eventually(crate::support::eventually::SOON, "it is booked", || {
        let seen = daemon.status();
        (seen["metrics"]["delivered"] == 1).then_some(seen)
    });
    assert!(seen["metrics"]["retries"].as_u64().unwrap() >= 1, "{seen}");
    let share = seen["rates"]["success_ratio"].as_f64().unwrap();
    assert!(share > 0.0 && share < 1.0, "{share}");
    assert!(seen["rates"]["reports_per_minute"].as_f64().unwrap() > 0.0);
    let latency = &seen["metrics"]["request_duration_seconds"];
    assert_eq!(latency["count"], 2, "{latency}");
    let free = seen["store"]["disk_free_bytes"].as_u64().unwrap();
    assert!(free > 0 && seen["store"]["used_bytes"].as_u64().unwrap() > 0, "{seen}");
    assert_eq!(seen["store"]["max_bytes"], 2_u64 << 30);
}

#[test]
fn without_a_daemon_the_exit_code_is_69() {
    let daemon = Daemon::builder().prepare();
    std::fs::write(daemon.config(), format!("[status]\nsocket = '{}'\n", daemon.directory().join("none.sock").display()))
        .unwrap();
    let output = status(&daemon, &[]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no daemon answers at"), "{output:?}");
}

/// Waits for three more frames.
fn frames(lines: &mut impl Iterator<Item = String>, begin: &str) {
    for _ in 0..3 {
        let line = lines.find(|line| line.starts_with(begin)).expect("one more frame");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

#[test]
fn watching_shows_it_again_and_again_without_control_characters_in_a_pipe_and_survives_a_restart() {
    let mut daemon = Daemon::builder().start();
    for (format, begin) in [("text", "chat-historyd/"), ("json", "{")] {
        let mut child = Command::new(binary())
            .args(["status", "--watch=100ms", "--format", format, "--config"])
            .arg(daemon.config())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        frames(&mut lines, begin);
        daemon.kill9();
        if format == "text" {
            lines.find(|line| line.contains("no daemon answers")).expect("it says so");
        }
        daemon.start();
        frames(&mut lines, begin);
        drop(lines);
        let status = eventually(crate::support::eventually::SOON, "it ends with its reader", || child.try_wait().unwrap());
        assert!(status.code() == Some(0) || status.code().is_none(), "{status}");
    }
}

#[test]
fn a_client_that_does_not_read_or_says_nonsense_keeps_nobody_waiting() {
    use std::io::Write;
    let daemon = Daemon::builder().start();
    let path = daemon.directory().join("run/status.sock");
    let deaf: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let began = std::time::Instant::now();
    assert_eq!(daemon.status()["v"], 1);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
    // Sixteen at once are served; the deaf ones are let go, so a hundred one after the other all get an answer.
    drop(deaf);
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(&[0xff; 64]);
    }
    assert_eq!(daemon.status()["v"], 1);
}

#[test]
fn the_supervisor_gets_a_live_status_line() {
    let api = api();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let supervisor = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(crate::support::eventually::SOON)).unwrap();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let notes = std::sync::Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = supervisor.recv(&mut buffer) {
            notes.lock().unwrap().push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
    });
    let mut daemon = Daemon::builder().api(&api).environment("NOTIFY_SOCKET", &path.display().to_string()).start();
    let said = |what: &str| heard.lock().unwrap().iter().any(|note| note.lines().any(|line| line.contains(what)));
    soon("READY=1", || said("READY=1"));
    soon("a status line", || said("STATUS=delivering; 0 sessions, 0 pending, 0 delivered, 0 rejected"));
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    producer.say(1, "Hello");
    api.wait_for_rows("talk", 1);
    soon("the line follows what happens", || said("STATUS=delivering; 1 sessions, 0 pending, 1 delivered, 0 rejected"));
    api.set_secret("another");
    producer.say(1, "Hello again");
    soon("the line tells of the gate", || said("STATUS=gate closed (operator: "));
    daemon.hup();
    soon("RELOADING=1", || said("RELOADING=1"));
    api.stop();
    daemon.term(crate::support::eventually::SOON);
    assert!(said("STOPPING=1"));
}

#[test]
fn the_prometheus_format_of_the_command_is_what_promtool_calls_clean() {
    let daemon = Daemon::builder().start();
    let text = printed(&daemon, &["--format", "prometheus"]);
    assert!(text.contains("\nchat_historyd_received_total 0\n"), "{text}");
    match super::metrics::promtool_check(&text) {
        Some(complaints) => assert_eq!(complaints, ""),
        None => skipped("promtool is not installed (Debian package prometheus)"),
    }
}
