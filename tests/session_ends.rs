//! The end of a session: what is said with it, and what is said right after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually::{SOON, always};
use crate::support::history::text;
use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, Fault, ManagerApi, Producer, Variant, eventually, soon};

const MAC: &str = "68:25:dd:ba:39:78";

/// All backups there are.
fn backups(daemon: &Daemon) -> Vec<Value> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let files = entries(&daemon.backups()).iter().flat_map(|date| entries(date)).collect::<Vec<PathBuf>>();
    // Not what is still being written.
    let files = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
}

fn contents(backup: &Value) -> Vec<&str> {
    backup["messages"].as_array().into_iter().flatten().filter_map(|message| message["content"].as_str()).collect()
}

/// Twice the largest number fits no column: the sum must not become something that the store can never write.
#[test]
fn counts_at_the_end_of_numbers_stop_nothing() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    for round in 0..3 {
        agent.say(1, &format!("message {round}"));
        agent.line(&json!({ "type": "session_end", "reason": "test", "dropped": i64::MAX }));
        assert_eq!(agent.flush("durable")["ok"], true, "round {round}");
    }
    agent.say(1, "and on");
    agent.end();
    assert_eq!(agent.flush("delivered")["ok"], true);
    assert_eq!(daemon.status()["store"]["failing"], Value::Null);
    assert_eq!(daemon.metric("producer_dropped"), u64::MAX);
    let backup = eventually(SOON, "the backup of all", || backups(&daemon).into_iter().find(|all| contents(all).len() == 4));
    assert_eq!(backup["producer_dropped"], i64::MAX);
    drop(agent);
    daemon.restart();
    assert_eq!(Agent::connect(&daemon).bind(MAC, "s")["type"], "ready");
    check_books(&daemon);
}

#[test]
fn a_session_that_goes_on_at_once_gets_its_backup_all_the_same() {
    let daemon = Daemon::builder().start();
    let message =
        |text: &str| json!({ "type": "message", "mac_address": MAC, "session_id": "s", "chat_type": 1, "content": text });
    let end = json!({ "type": "session_end", "mac_address": MAC, "session_id": "s", "reason": "hang-up" });
    // In one write, so that the end and the new beginning are one commit.
    let lines: String = [message("before the end"), end, message("after it")].iter().map(|line| format!("{line}\n")).collect();
    let mut agent = Agent::connect(&daemon);
    agent.text(lines.trim_end());
    let backup = eventually(SOON, "a backup of the end", || backups(&daemon).pop());
    assert_eq!(contents(&backup).first(), Some(&"before the end"));
    soon("and the session is open", || daemon.metric("sessions_ended") == 1 && daemon.metric("pending") == 2);
    check_books(&daemon);
}

#[test]
fn a_backup_that_could_not_be_written_is_made_up_for_after_a_kill() {
    let mut daemon = Daemon::builder().prepare();
    fs::write(daemon.backups(), "in the way").unwrap();
    daemon.start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "Hello");
    agent.end();
    soon("it is missed", || daemon.metric("backup_errors") >= 1 && daemon.metric("backups_due") == 1);
    daemon.kill9();
    fs::remove_file(daemon.backups()).unwrap();
    daemon.start();
    let backup = eventually(SOON, "its backup", || backups(&daemon).pop());
    assert_eq!(contents(&backup), ["Hello"]);
}

#[test]
fn a_backup_that_does_not_know_of_the_delivery_yet_learns_of_it_after_a_restart() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.stop();
    let mut daemon = Daemon::start_for(&api);
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "Hello");
    agent.end();
    let counts = |name: &str| backups(&daemon).first().and_then(|backup| backup["counts"][name].as_u64()).unwrap_or(0);
    soon("the backup of the end", || counts("pending") == 1);
    let aside = daemon.backups().with_extension("aside");
    fs::rename(daemon.backups(), &aside).unwrap();
    fs::write(daemon.backups(), "in the way").unwrap();
    api.start_again();
    soon("it is delivered", || daemon.metric("delivered") == 1 && daemon.metric("backup_errors") >= 1);
    drop(agent);
    assert!(daemon.term(SOON).success());
    fs::remove_file(daemon.backups()).unwrap();
    fs::rename(&aside, daemon.backups()).unwrap();
    daemon.start();
    soon("the backup tells of the delivery", || {
        backups(&daemon).first().is_some_and(|backup| backup["counts"]["delivered"] == 1)
    });
}

/// The file may be the last place on the host where they stand.
#[test]
fn a_message_tried_again_after_the_others_left_the_store_does_not_take_them_out_of_the_backup() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "one");
    assert_eq!(agent.flush("delivered")["ok"], true);
    api.fault(Fault::code(10034));
    agent.say(2, "two");
    soon("it is rejected", || daemon.metric("rejected") == 1);
    api.clear_faults();
    agent.say(1, "three");
    agent.end();
    assert_eq!(agent.flush("delivered")["ok"], true);
    let states = |backup: &Value| {
        let messages = backup["messages"].as_array().into_iter().flatten();
        messages.map(|message| message["state"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let is_settled = |backup: &Value| states(backup) == ["delivered", "rejected", "delivered"];
    soon("all are backed up", || backups(&daemon).iter().any(is_settled));
    drop(agent);
    assert!(daemon.term(SOON).success());
    // As retention does, a month later.
    let store = rusqlite::Connection::open(daemon.store().join("history.db")).unwrap();
    assert_eq!(store.execute("DELETE FROM messages WHERE id NOT IN (SELECT row FROM rejected)", []).unwrap(), 2);
    drop(store);
    daemon.start();
    text(&daemon, &["rejected", "retry", "--all"]);
    assert_eq!(api.wait_for_rows("s", 3).len(), 3);
    let backup = eventually(SOON, "the backup of its delivery", || {
        backups(&daemon).into_iter().find(|backup| backup["counts"]["rejected"] == 0 && backup["counts"]["pending"] == 0)
    });
    assert_eq!(contents(&backup), ["one", "two", "three"]);
    assert_eq!(backup["counts"]["delivered"], 3);
    let left: Vec<&Value> = backup["messages"].as_array().unwrap().iter().map(|message| &message["left_store"]).collect();
    assert_eq!(left, [&json!(true), &Value::Null, &json!(true)]);
}

/// What is held at the end becomes messages then, and those need room.
#[test]
fn last_words_for_which_the_store_has_no_room_are_delivered_when_it_has() {
    const OTHER_MAC: &str = "68:25:dd:ba:39:79";
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.register(OTHER_MAC);
    let daemon = Daemon::builder().api(&api).set("store.max_bytes", "'16 MiB'").set("session.idle_timeout", "'1s'").start();
    let words = json!({ "type": "user_input_transcribed", "is_final": true, "transcript": "my last words", "item_id": "i" });
    let [idle, mut ended] = ["idle", "ended"].map(|session| {
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, session);
        agent.line(&words);
        agent
    });
    soon("both are held", || daemon.metric("held") == 2);
    api.stop();
    let mut others = Producer::connected(&daemon, OTHER_MAC, "others");
    eventually(SOON, "the store is full", || {
        if others.is_connected() {
            others.say(1, &"x".repeat(300_000));
        }
        (daemon.status()["store"]["full"] == true && !others.is_connected()).then_some(())
    });
    drop(idle);
    ended.line(&json!({ "type": "session_end" }));
    ended.wait("there is no room for its last words", |reply| reply["code"] == "overloaded");
    drop(ended);
    always(Duration::from_secs(2), "they stay held", || daemon.metric("held") == 2);
    api.start_again();
    for session in ["idle", "ended"] {
        let rows = eventually(SOON * 3, "its last words", || Some(api.rows(session)).filter(|rows| !rows.is_empty()));
        assert_eq!(rows.len(), 1);
    }
    drop(others);
    soon("all have ended", || daemon.metric("sessions_open") == 0);
    assert_eq!(daemon.metric("sessions_ended"), 3, "an end that was refused is none");
    check_books(&daemon);
}
