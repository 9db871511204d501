//! The history from the shell: listed, read, filtered, beside a running daemon and without one.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::history::{CONVERSATION, MAC, OTHER_MAC, SAID_AT, command, converse, json_of, refusal, run, text};
use crate::support::{Agent, Daemon, ManagerApi, Variant, soon};

fn contents(document: &Value) -> Vec<String> {
    let sessions = document["sessions"].as_array().expect("sessions").iter();
    let messages = sessions.flat_map(|session| session["messages"].as_array().expect("messages").clone());
    messages.map(|message| message["content"].as_str().expect("content").to_owned()).collect()
}

#[test]
fn sessions_are_listed_beside_a_daemon_and_without_one() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "first");
    converse(&daemon, OTHER_MAC, "कहानी-二");
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "third");
    agent.say(1, "hello");
    agent.flush("durable");
    for running in [true, false] {
        if !running {
            assert!(daemon.term(Duration::from_secs(20)).success());
        }
        let list = text(&daemon, &["history", "list"]);
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 4, "{list}");
        assert!(lines[0].starts_with("start (UTC)"), "{list}");
        assert!(lines[1].ends_with("third") && lines[1].contains("open") && lines[1].contains("1 pending"), "{list}");
        assert!(lines[2].ends_with("कहानी-二") && lines[2].contains(OTHER_MAC) && lines[2].contains("story-teller"), "{list}");
        assert!(lines[3].ends_with("first") && lines[3].contains("8 pending"), "{list}");
        let list = json_of(&daemon, &["history", "list", "--format", "json"]);
        assert_eq!(list.as_array().expect("an array").len(), 3);
        assert_eq!(list[2]["messages"], 8);
        assert_eq!(list[2]["states"], json!({"pending": 8, "delivered": 0, "rejected": 0, "kept": 0, "held": 0}));
        assert_eq!(list[2]["end_reason"], "hang-up");
        assert_eq!(list[0]["ended_ms"], Value::Null);
    }
}

#[test]
fn a_transcript_is_readable_in_every_script_and_plain_in_a_pipe() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let shown = text(&daemon, &["history", "show", "s"]);
    for (_, content) in CONVERSATION {
        for line in content.lines() {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
    }
    assert!(shown.contains("08:19:33  user   pending    नमस्ते"), "{shown}");
    assert!(shown.contains("Goodbye, little one [interrupted]"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "colour went into a pipe");
    let document = json_of(&daemon, &["history", "show", "s", "--format", "json"]);
    assert_eq!(contents(&document), CONVERSATION.map(|(_, content)| content.to_owned()));
    assert_eq!(document["sessions"][0]["messages"][7]["interrupted"], true);
    assert_eq!(document["sessions"][0]["messages"][0]["event_id"], "item-0");
}

#[test]
fn a_transcript_is_coloured_on_a_terminal_unless_that_is_unwanted() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let on_terminal = |environment: &str| {
        let words =
            format!("{} history show s --config {}", crate::support::daemon::binary().display(), daemon.config().display());
        let output = std::process::Command::new("script")
            .args(["--quiet", "--return", "--command", &format!("{environment} {words}"), "/dev/null"])
            .env("TERM", "xterm")
            .output()
            .expect("script(1) runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = on_terminal("env");
    assert!(shown.contains("\u{1b}[36muser \u{1b}[0m") && shown.contains("\u{1b}[33mpending"), "{shown}");
    let shown = on_terminal("env NO_COLOR=1");
    assert!(shown.contains("user   pending") && !shown.contains("\u{1b}["), "{shown}");
}

#[test]
fn what_is_uncommitted_or_held_is_marked() {
    let mut daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.line(&json!({"type": "user_input_transcribed", "transcript": "only heard", "is_final": true, "created_at": SAID_AT}));
    agent.flush("durable");
    let shown = text(&daemon, &["history", "show", "s"]);
    assert!(shown.contains("user   held       only heard"), "{shown}");
    let listed = text(&daemon, &["history", "list", "--state", "held"]);
    assert!(listed.contains("1 held"), "{listed}");
    agent.end();
    agent.flush("durable");
    let shown = text(&daemon, &["history", "show", "s"]);
    assert!(shown.contains("only heard [uncommitted]"), "{shown}");
    assert!(daemon.term(Duration::from_secs(20)).success());
}

#[test]
fn states_are_those_of_the_delivery() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    converse(&daemon, MAC, "s");
    api.wait_for_rows("s", CONVERSATION.len());
    soon("all is delivered", || text(&daemon, &["history", "list"]).contains("8 delivered"));
    assert!(text(&daemon, &["history", "show", "s"]).contains("agent  delivered  Goodbye"));
    assert_eq!(text(&daemon, &["history", "list", "--state", "pending"]).lines().count(), 1);
}

#[test]
fn of_a_damaged_message_nothing_is_invented() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    converse(&daemon, OTHER_MAC, "t");
    assert!(daemon.term(Duration::from_secs(20)).success());
    let database = rusqlite::Connection::open(daemon.store().join("history.db")).expect("the database");
    database.execute("UPDATE messages SET crc = crc + 1 WHERE id = (SELECT min(id) FROM messages)", []).expect("damaged");
    let shown = text(&daemon, &["history", "show", "s"]);
    assert!(shown.contains("--:--:--  unknown  damaged") && !shown.contains("1970"), "{shown}");
    for format in ["csv", "html", "markdown", "json", "jsonl"] {
        let export = text(&daemon, &["history", "export", "--format", format, "--state", "damaged"]);
        assert!(export.contains("unknown") && !export.contains("1970"), "{export}");
    }
    assert!(refusal(&daemon, &["history", "list", "--state", "damaged"], 64).contains("history export --state damaged"));
}

#[test]
fn a_copy_in_a_directory_that_cannot_be_written_is_refused_with_the_remedy() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(Duration::from_secs(20)).success());
    let copy = daemon.directory().join("copy");
    std::fs::create_dir(&copy).expect("a directory");
    std::fs::copy(daemon.store().join("history.db"), copy.join("history.db")).expect("a copy");
    daemon.set("store.directory", &format!("'{}'", copy.display()));
    let words = ["history", "list"];
    let mut reading = command(&daemon, &words);
    if nix::unistd::geteuid().is_root() {
        // Root may write everywhere: somebody else owns and reads the copy.
        chown(copy.join("history.db"), Some(65534), None).expect("chown");
        for (path, mode) in [(daemon.directory(), 0o755), (&daemon.config(), 0o644)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
        }
        reading = std::process::Command::new("setpriv");
        reading
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(crate::support::daemon::binary())
            .args(words)
            .arg("--config")
            .arg(daemon.config());
    }
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o555)).expect("chmod");
    let output = reading.output().expect("it runs");
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("chmod");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("copy it to a directory that you can write to"), "{said}");
}

#[test]
fn filters_choose_by_device_agent_session_time_and_state() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "first");
    converse(&daemon, OTHER_MAC, "second");
    let count = |words: &[&str]| {
        let words = [&["history", "list", "--format", "json"], words].concat();
        json_of(&daemon, &words).as_array().expect("an array").len()
    };
    assert_eq!(count(&[]), 2);
    assert_eq!(count(&["--mac", "68-25-DD-BA-39-78"]), 1);
    assert_eq!(count(&["--agent", "story-teller"]), 2);
    assert_eq!(count(&["--agent", "nobody"]), 0);
    assert_eq!(count(&["--session", "second"]), 1);
    assert_eq!(count(&["--from", "1h"]), 2);
    assert_eq!(count(&["--to", "yesterday"]), 0);
    assert_eq!(count(&["--from", "yesterday", "--to", "today"]), 2);
    assert_eq!(count(&["--state", "delivered"]), 0);
    assert_eq!(count(&["--limit", "1"]), 1);
    let said = |words: &[&str]| contents(&json_of(&daemon, &[&["history", "export"], words].concat())).len();
    assert_eq!(said(&[]), 16);
    assert_eq!(said(&["--mac", MAC, "--from", "2025-09-24T08:19:34Z", "--to", "2025-09-24T08:19:36Z"]), 2);
    assert_eq!(said(&["--from", "2025-09-24", "--to", "2025-09-24"]), 16);
    assert_eq!(said(&["--to", "2025-09-23"]), 0);
    assert_eq!(said(&["--state", "pending", "--limit", "5"]), 5);
    assert_eq!(said(&["--state", "rejected"]), 0);
}

#[test]
fn what_is_not_there_or_makes_no_sense_is_said_with_the_remedy() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    converse(&daemon, OTHER_MAC, "s");
    assert!(refusal(&daemon, &["history", "show", "nobody"], 64).contains("there is no session \"nobody\""));
    let said = refusal(&daemon, &["history", "show", "s"], 64);
    assert!(said.contains("--mac") && said.contains(MAC) && said.contains(OTHER_MAC), "{said}");
    assert_eq!(json_of(&daemon, &["history", "show", "s", "--mac", MAC, "--format", "json"])["sessions"][0]["mac"], MAC);
    for command in [["history", "list"].as_slice(), &["history", "export"], &["history", "search", "हाथी"]] {
        let refused = |words: &[&str]| refusal(&daemon, &[command, words].concat(), 64);
        assert!(refused(&["--session", "nobody"]).contains("there is no session \"nobody\""), "{command:?}");
        assert!(refused(&["--session", "s", "--mac", "00:00:00:00:00:01"]).contains("there is no session \"s\""), "{command:?}");
        assert!(refused(&["--from", "today", "--to", "yesterday"]).contains("--from is not before --to"), "{command:?}");
    }
    assert!(refusal(&daemon, &["history", "show", "s", "--mac", MAC, "--from", "1h", "--to", "2h"], 64).contains("not before"));
    assert!(refusal(&daemon, &["history", "list", "--from", "24.09.2025"], 64).contains("2025-09-24"));
    assert!(refusal(&daemon, &["history", "list", "--mac", "12"], 64).contains("is no MAC address"));
    assert!(refusal(&daemon, &["history", "export", "--bom"], 64).contains("--format csv"));
    assert!(daemon.term(Duration::from_secs(20)).success());
    let database = daemon.store().join("history.db");
    let mut bytes = std::fs::read(&database).expect("the database");
    bytes[..1000].fill(b'x');
    std::fs::write(&database, bytes).expect("it is ours");
    let said = refusal(&daemon, &["history", "list"], 73);
    assert!(said.contains("is damaged") && said.contains("chat-historyd history check"), "{said}");
    std::fs::remove_dir_all(daemon.store()).expect("it is ours");
    assert!(refusal(&daemon, &["history", "list"], 73).contains("there is no history at"));
    let newer = daemon.store();
    std::fs::create_dir_all(&newer).expect("a directory");
    let newer = rusqlite::Connection::open(newer.join("history.db")).expect("a database");
    newer.execute_batch("CREATE TABLE t (a); PRAGMA user_version = 99;").expect("a table");
    assert!(refusal(&daemon, &["history", "list"], 73).contains("has schema version 99"));
}

#[test]
fn what_chooses_nothing_says_so() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    for (words, expected) in [
        (["history", "list"].as_slice(), "there is no such session"),
        (&["history", "export", "--format", "csv"], "the export is empty"),
        (&["history", "search", "हाथी"], "nothing was found"),
    ] {
        let output = run(&daemon, &[words, &["--mac", OTHER_MAC]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(expected), "{words:?}: {output:?}");
    }
    assert!(text(&daemon, &["history", "forget", "--mac", OTHER_MAC, "--yes"]).contains("there is nothing of device"));
}

#[test]
fn nobody_has_to_listen_to_remarks_and_errors() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "first");
    converse(&daemon, MAC, "second");
    for (words, code) in [
        (["history", "list", "--limit", "1"].as_slice(), 0),
        (&["history", "show", "first", "--limit", "1"], 0),
        (&["history", "search", "nowhere"], 0),
        (&["history", "show", "nobody"], 64),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let status = crate::support::history::command(&daemon, words)
            .stdout(std::process::Stdio::null())
            .stderr(writer)
            .status()
            .expect("it runs");
        assert_eq!(status.code(), Some(code), "{words:?}: {status}");
    }
}

#[test]
fn a_reader_that_hangs_up_ends_the_output_quietly() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let words = ["history", "export", "--format", "html"];
    let mut child = crate::support::history::command(&daemon, &words)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(run(&daemon, &["history", "list"]).status.success());
}
