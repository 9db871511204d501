//! The end of a session: what is said with it, and what is said right after it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::eventually::SOON;
use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, ManagerApi, Variant, eventually, soon};

const MAC: &str = "68:25:dd:ba:39:78";

/// All backups there are.
fn backups(daemon: &Daemon) -> Vec<Value> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let files = entries(&daemon.backups()).iter().flat_map(|date| entries(date)).collect::<Vec<PathBuf>>();
    files.iter().filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
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
