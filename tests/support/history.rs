//! The `history` and `rejected` commands of the real binary, and conversations in several scripts to read back.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::agent::Agent;
use super::daemon::{Daemon, binary};

/// A device of these tests.
pub const MAC: &str = "68:25:dd:ba:39:78";
/// Another one.
pub const OTHER_MAC: &str = "aa:bb:cc:dd:ee:ff";
/// 2025-09-24T08:19:33Z
pub const SAID_AT: i64 = 1_758_701_973;

/// What was said in the conversation of [`converse`]: chat type, text.
pub const CONVERSATION: [(u8, &str); 8] = [
    (1, "नमस्ते, मुझे हाथी की कहानी सुनाओ"),
    (2, "ज़रूर! एक बार एक बड़ा हाथी था। 🐘"),
    (1, "我想听大象的故事"),
    (2, "从前有一只大象,它很喜欢吃西瓜。🍉"),
    (1, "=HYPERLINK(\"http://x\",\"click\")"),
    (2, "Say \"hi\", <b>bold</b> & *stars*;\nand a second line"),
    (1, "👨‍👩‍👧‍👦 family and café"),
    (2, "Goodbye, little one"),
];

/// Plays the conversation of these tests into a session, and ends it.
#[track_caller]
pub fn converse(daemon: &Daemon, mac: &str, session: &str) {
    let mut agent = Agent::connect(daemon);
    let start = json!({"type": "session_start", "v": 1, "mac_address": mac, "session_id": session, "agent_id": "story-teller"});
    agent.line(&start);
    agent.wait_for("ready");
    for (second, (chat_type, content)) in (0..).zip(CONVERSATION) {
        let interrupted = content.starts_with("Goodbye");
        agent.line(&json!({
            "type": "message", "chat_type": chat_type, "content": content, "timestamp": SAID_AT + second,
            "interrupted": interrupted, "id": format!("item-{second}"),
        }));
    }
    agent.line(&json!({"type": "session_end", "reason": "hang-up"}));
    agent.flush("durable");
}

/// Runs a command of the binary with the configuration of a daemon.
pub fn command(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(words)
        .args(["--config", &daemon.config().display().to_string()])
        .env_clear()
        .env("HOME", daemon.directory())
        .current_dir(daemon.directory())
        .stdin(Stdio::null());
    command
}

/// What it did.
pub fn run(daemon: &Daemon, words: &[&str]) -> Output {
    command(daemon, words).output().expect("the binary runs")
}

/// What it did where nobody reads its standard output (`… | true`).
pub fn run_unread(daemon: &Daemon, words: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command(daemon, words).stdout(writer).output().expect("the binary runs")
}

/// What it did with this on its standard input.
pub fn run_with_input(daemon: &Daemon, words: &[&str], input: &[u8]) -> Output {
    let mut child = command(daemon, words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that refuses its input reads none of it.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// Its standard output, after success.
#[track_caller]
pub fn text(daemon: &Daemon, words: &[&str]) -> String {
    let output = run(daemon, words);
    assert!(output.status.success(), "{words:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Its standard output as JSON, after success.
#[track_caller]
pub fn json_of(daemon: &Daemon, words: &[&str]) -> Value {
    serde_json::from_str(&text(daemon, words)).expect("JSON")
}

/// Its standard error, after the failure with this code.
#[track_caller]
pub fn refusal(daemon: &Daemon, words: &[&str], code: i32) -> String {
    let output = run(daemon, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{words:?}");
    said
}

/// Whether any file below `directory` holds these bytes.
pub fn bytes_are_in(directory: &Path, needle: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return bytes_are_in(&path, needle);
        }
        std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle.as_bytes()))
    })
}

/// Puts a session of so many messages beside the others into the stored database, as the daemon would have written it.
#[track_caller]
pub fn fill(daemon: &Daemon, messages: usize) {
    fill_with(daemon, 1, messages as i64, true);
}

/// Puts so many sessions of two undelivered messages each beside the others into the stored database.
#[track_caller]
pub fn fill_undelivered(daemon: &Daemon, sessions: usize) {
    fill_with(daemon, sessions as i64, 2, false);
}

fn fill_with(daemon: &Daemon, sessions: i64, messages: i64, delivered: bool) {
    use chat_historyd::store::checksum::{RowFields, of_message};
    let mut connection = rusqlite::Connection::open(daemon.store().join("history.db")).expect("the database");
    connection.busy_timeout(std::time::Duration::from_secs(20)).expect("a timeout");
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).expect("the lock");
    let number = |sql| transaction.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number far from the daemon's own");
    let first_session = number("SELECT coalesce(max(id), 0) + 1000000 FROM sessions");
    let mut row = number("SELECT coalesce(max(id), 0) + 100000000 FROM messages");
    let mut insert = transaction
        .prepare("INSERT INTO messages VALUES (?1, ?2, ?3, ?4, 0, ?5, ?5, ?6, NULL, NULL, NULL, ?7)")
        .expect("the table");
    for session in first_session..first_session + sessions {
        transaction
            .execute(
                "INSERT INTO sessions (id, mac, session_id, started_ms, ended_ms) VALUES (?1, ?2, ?3, ?4, ?4)",
                rusqlite::params![session, OTHER_MAC, format!("filled-{session}"), SAID_AT * 1000],
            )
            .expect("a session");
        for number in 0..messages {
            let fields = RowFields {
                id: row,
                session,
                uuid: &[7; 16],
                chat_type: 1 + number % 2,
                flags: 0,
                time_ms: SAID_AT * 1000 + number,
                recorded_ms: SAID_AT * 1000 + number,
                content: &format!("filler number{number}: the quick brown fox jumps over the lazy dog, हाथी 大象"),
                event_id: None,
                extra: None,
                audio: None,
            };
            let RowFields { id, uuid, chat_type, time_ms, content, .. } = fields;
            insert
                .execute(rusqlite::params![id, session, uuid, chat_type, time_ms, content, of_message(&fields)])
                .expect("a message");
            row += 1;
        }
        if delivered {
            transaction.execute("INSERT INTO cursors VALUES (?1, ?2, 0, 0)", [session, row - 1]).expect("a cursor");
        }
    }
    drop(insert);
    transaction.commit().expect("written");
}
