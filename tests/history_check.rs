//! `history check`: damage that nothing the daemon does has met yet is found, and the store salvaged, when a person asks.

use std::fs;

use serde_json::json;

use crate::support::database::{page_bytes, root_page};
use crate::support::eventually::SOON;
use crate::support::history::{MAC, run, text};
use crate::support::{Agent, Daemon, Producer, oracle, soon};

const MESSAGES: usize = 300;

/// A stopped daemon whose store has a page of random bytes in the middle of its messages.
fn with_a_damaged_page() -> Daemon {
    let mut daemon = Daemon::builder().set("backup.enabled", "false").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..MESSAGES {
        producer.say(1, &format!("{index} {}", "x".repeat(200)));
    }
    producer.wait_until_acked();
    assert!(daemon.term(SOON).success());
    let path = daemon.store().join("history.db");
    let mut database = fs::read(&path).unwrap();
    let at = database.windows(8).position(|bytes| bytes == b"150 xxxx").expect("the message");
    let page = at / 4096 * 4096;
    for (index, byte) in database[page..page + 3000].iter_mut().enumerate() {
        *byte = (index * 151 + 89) as u8 ^ (index >> 3) as u8;
    }
    fs::write(&path, database).unwrap();
    daemon
}

fn doctor(daemon: &Daemon) -> String {
    let output = run(daemon, &["doctor"]);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn damage_is_salvaged_by_the_running_daemon_and_the_remedy_of_doctor_is_true() {
    let mut daemon = with_a_damaged_page();
    daemon.start();
    assert_eq!(daemon.metric("stores_salvaged"), 0, "no start reads every page");
    let told = doctor(&daemon);
    assert!(told.contains("is damaged") && told.contains("chat-historyd history check"), "{told}");
    let said = text(&daemon, &["history", "check"]);
    assert!(said.contains("was damaged") && said.contains("corrupt"), "{said}");
    assert_eq!(daemon.metric("stores_salvaged"), 1);
    let saved = daemon.metric("messages_salvaged");
    assert!((200..MESSAGES as u64).contains(&saved), "{saved}");
    assert!(said.contains(&saved.to_string()), "{said}");
    let told = doctor(&daemon);
    assert!(told.contains("is whole") && !told.contains("is damaged"), "{told}");
    // Asked once more, it is whole, and stays as it is.
    assert!(text(&daemon, &["history", "check"]).contains("is whole"));
    assert_eq!(daemon.metric("stores_salvaged"), 1);
    let mut producer = Producer::connected(&daemon, MAC, "t");
    producer.say(1, "still there?");
    producer.wait_until_acked();
    oracle::check_books(&daemon);
}

#[test]
fn damage_is_salvaged_by_the_command_when_no_daemon_runs() {
    let mut daemon = with_a_damaged_page();
    let said = text(&daemon, &["history", "check"]);
    assert!(said.contains("was damaged"), "{said}");
    assert!(doctor(&daemon).contains("is whole"));
    assert!(text(&daemon, &["history", "check"]).contains("is whole"));
    daemon.start();
    assert_eq!(daemon.metric("stores_salvaged"), 0);
    assert!(daemon.metric("pending_at_start") > 200);
}

/// Every page of it can be read, and none of them is wrong in itself.
#[test]
fn a_message_that_its_index_does_not_show_is_found() {
    let mut daemon = Daemon::builder().set("backup.enabled", "false").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for content in ["the first", "the second", "the third"] {
        producer.say(1, content);
    }
    producer.wait_until_acked();
    assert!(daemon.term(SOON).success());
    let path = daemon.store().join("history.db");
    let mut database = fs::read(&path).unwrap();
    // The last bytes of its page are those of the entry that came first, of row 1. It becomes row 0, after which nobody asks.
    let end = root_page(&database, "messages_by_session") * page_bytes(&database);
    database[end - 2] ^= 1;
    fs::write(&path, database).unwrap();
    assert!(doctor(&daemon).contains("is damaged"));
    let said = text(&daemon, &["history", "check"]);
    assert!(said.contains("was damaged") && said.contains("3 messages were salvaged"), "{said}");
    assert!(text(&daemon, &["history", "check"]).contains("is whole"));
    daemon.start();
    assert_eq!(daemon.metric("pending_at_start"), 3);
}

/// It failed every listing of the store, and the remedy that was advised found nothing.
#[test]
fn a_held_transcript_whose_checksum_fails_is_found_and_what_a_salvage_leaves_of_it_is_counted() {
    let mut daemon = Daemon::builder().set("backup.enabled", "false").start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(2, "a message");
    agent.line(&json!({"type": "user_input_transcribed", "transcript": "only heard", "is_final": true}));
    agent.flush("durable");
    assert_eq!(daemon.metric("held"), 1);
    assert!(daemon.term(SOON).success());
    let connection = rusqlite::Connection::open(daemon.store().join("history.db")).unwrap();
    assert_eq!(connection.execute("UPDATE held SET text = 'only herd'", []).unwrap(), 1);
    connection.close().unwrap();
    assert!(doctor(&daemon).contains("is damaged: the checksum of a held transcript fails"));
    let output = run(&daemon, &["history", "check"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(70) && said.contains("1 messages stand only there"), "{said}");
    assert!(text(&daemon, &["history", "list"]).contains("1 pending"));
    daemon.start();
    assert_eq!(daemon.metric("messages_left_behind"), 1);
}

/// By itself the daemon leaves alone for a while what a salvage has just not cured, lest it salvages for ever.
#[test]
fn damage_of_the_same_kind_is_salvaged_again_at_once_when_a_person_asks() {
    let daemon = Daemon::builder().set("backup.enabled", "false").start();
    for session in ["first", "second", "third"] {
        let mut producer = Producer::connected(&daemon, MAC, session);
        producer.say(1, "Hello");
        producer.wait_until_acked();
        producer.agent().end();
        producer.agent().flush("durable");
    }
    let damage = |session: &str| {
        let connection = rusqlite::Connection::open(daemon.store().join("history.db")).unwrap();
        let sql = "UPDATE sessions SET mac = 'nobody' WHERE session_id = ?1";
        assert_eq!(connection.execute(sql, [session]).unwrap(), 1);
    };
    damage("first");
    assert_eq!(run(&daemon, &["history", "check"]).status.code(), Some(70));
    assert_eq!(daemon.metric("stores_salvaged"), 1);
    damage("second");
    assert_eq!(run(&daemon, &["history", "check"]).status.code(), Some(70));
    assert_eq!(daemon.metric("stores_salvaged"), 2);
    assert!(text(&daemon, &["history", "list"]).contains("third"));
}

#[test]
fn damage_that_is_met_again_right_after_a_salvage_is_left_alone_for_a_while() {
    let daemon = Daemon::builder().start();
    let mut agents: Vec<(Agent, &str)> = Vec::new();
    for session in ["first", "second"] {
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, session);
        agent.say(1, "Hello");
        agent.flush("durable");
        agents.push((agent, session));
    }
    for (agent, session) in &mut agents {
        let connection = rusqlite::Connection::open(daemon.store().join("history.db")).unwrap();
        let sql = "UPDATE sessions SET mac = 'nobody' WHERE session_id = ?1";
        assert_eq!(connection.execute(sql, [*session]).unwrap(), 1);
        connection.close().unwrap();
        // Its backup reads the row.
        agent.end();
        soon("the damage is met", || match *session {
            "first" => daemon.metric("stores_salvaged") == 1,
            _ => daemon.log().contains("the store stays as it is for now"),
        });
    }
    assert_eq!(daemon.metric("stores_salvaged"), 1);
    let mut producer = Producer::connected(&daemon, MAC, "third");
    producer.say(1, "still there?");
    producer.wait_until_acked();
}
