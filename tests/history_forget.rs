//! A history that is forgotten while it is still in somebody's hands: a connection, the uploader, the look through the
//! backlog at the start.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::support::eventually::SOON;
use crate::support::history::{MAC, OTHER_MAC, fill_undelivered, run_with_input, text};
use crate::support::{Agent, Daemon, Fault, ManagerApi, Rule, Variant, eventually, oracle, soon};

fn say_and_end(daemon: &Daemon, mac: &str, session: &str) -> Agent {
    let mut agent = Agent::connect(daemon);
    agent.bind(mac, session);
    agent.say(1, "Hello");
    agent.end();
    agent.flush("durable");
    agent
}

fn forget(daemon: &Daemon, words: &[&str]) -> String {
    text(daemon, &[&["history", "forget", "--yes", "--including-undelivered"], words].concat())
}

fn upload(daemon: &Daemon, number: &str) -> u64 {
    daemon.status()["upload"][number].as_u64().expect("a number")
}

/// No row id had ever been given out: nothing seemed to be forgotten, and the session was not made again.
#[test]
fn what_is_said_after_an_empty_session_was_forgotten_in_a_new_store_survives_a_kill() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("backup.enabled", "false").start();
    api.stop();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.end();
    agent.flush("durable");
    forget(&daemon, &["--session", "s"]);
    agent.say(1, "afterwards");
    agent.flush("durable");
    daemon.kill9();
    api.start_again();
    daemon.start();
    assert_eq!(api.wait_for_rows("s", 1)[0].content, "afterwards");
}

/// The connection knew the session before it was forgotten, and goes on in the one that was read back.
#[test]
fn what_is_said_on_an_old_connection_after_a_history_was_forgotten_and_read_back_survives_a_kill() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut agent = say_and_end(&daemon, MAC, "s");
    soon("it is delivered", || text(&daemon, &["history", "list"]).contains("1 delivered"));
    let export = text(&daemon, &["history", "export"]);
    forget(&daemon, &["--session", "s"]);
    let output = run_with_input(&daemon, &["history", "import", "-"], export.as_bytes());
    assert!(output.status.success(), "{output:?}");
    api.fault(Fault::database_down());
    for index in 0..3 {
        agent.say(1, &format!("later {index}"));
    }
    assert_eq!(agent.flush("durable")["ok"], true);
    daemon.kill9();
    api.clear_faults();
    daemon.start();
    let rows = api.wait_for_rows("s", 4);
    assert!(rows[1..].iter().map(|row| row.content.as_str()).eq(["later 0", "later 1", "later 2"]), "{rows:?}");
    let shown = text(&daemon, &["history", "show", "s"]);
    assert!(shown.contains("Hello") && shown.contains("later 2"), "{shown}");
    assert_eq!(text(&daemon, &["history", "list"]).lines().count(), 2);
}

#[test]
fn a_forgotten_device_that_waited_to_be_registered_leaves_the_status_at_once() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon = Daemon::builder().api(&api).set("upload.unknown_device_retry", "'10m'").start();
    for session in ["first", "second"] {
        say_and_end(&daemon, OTHER_MAC, session);
    }
    soon("both wait", || upload(&daemon, "devices_waiting") == 1 && upload(&daemon, "sessions_pending") == 2);
    forget(&daemon, &["--mac", OTHER_MAC]);
    soon("nobody waits", || upload(&daemon, "devices_waiting") == 0 && upload(&daemon, "sessions_pending") == 0);
    oracle::check_books(&daemon);
}

#[test]
fn when_the_session_that_tries_for_a_waiting_device_is_forgotten_another_one_tries() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    for session in ["tries", "waits"] {
        say_and_end(&daemon, OTHER_MAC, session);
    }
    soon("both wait", || upload(&daemon, "sessions_pending") == 2);
    api.rule(Rule::new(Fault::status_with(503, "retry-after", "600")).session("tries"));
    soon("one of them backs off for long", || upload(&daemon, "backing_off") == 1);
    api.register(OTHER_MAC);
    forget(&daemon, &["--session", "tries"]);
    api.wait_for_rows("waits", 1);
    oracle::check_books(&daemon);
}

/// A page of the backlog may have been read before its sessions were forgotten.
#[test]
fn a_backlog_that_is_forgotten_while_it_is_looked_through_leaves_nothing_to_send() {
    const SESSIONS: usize = 6_000;
    let api = ManagerApi::start(Variant::Fork);
    api.register(OTHER_MAC);
    let mut daemon = Daemon::builder().api(&api).set("store.durability", "'os'").set("log.level", "'info'").start();
    assert!(daemon.term(SOON).success());
    fill_undelivered(&daemon, SESSIONS);
    daemon.spawn();
    let socket = daemon.directory().join("run/status.sock");
    let mut stream = eventually(SOON, "somebody listens", || UnixStream::connect(&socket).ok());
    let wish = json!({"forget": {"mac": OTHER_MAC, "session_id": null, "including_undelivered": true}});
    stream.write_all(format!("{wish}\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((&answer["ok"], &answer["sessions"]), (&json!(true), &json!(SESSIONS)), "{answer}");
    soon("nothing is left in the books", || daemon.metric("pending") == 0);
    soon("nor in the queue", || upload(&daemon, "sessions_pending") == 0);
    oracle::check_books(&daemon);
}
