//! Finding what was said: in every script, before and after it is indexed, with and without a daemon.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::history::{CONVERSATION, MAC, OTHER_MAC, bytes_are_in, converse, fill, json_of, refusal, run, text};
use crate::support::{Agent, Daemon, ManagerApi, Variant, clock, soon};

const IN_TIME: Duration = Duration::from_secs(20);

fn found(daemon: &Daemon, words: &[&str]) -> Vec<String> {
    let words = [&["history", "search", "--format", "json"], words].concat();
    let found = json_of(daemon, &words);
    found.as_array().expect("an array").iter().map(|one| one["message"]["content"].as_str().expect("text").to_owned()).collect()
}

/// Up to which row the index goes; 0 while there is none.
fn watermark(daemon: &Daemon) -> i64 {
    let Ok(index) =
        rusqlite::Connection::open_with_flags(daemon.store().join("search.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
    else {
        return 0;
    };
    index.query_row("SELECT value FROM state WHERE name = 'watermark'", [], |row| row.get(0)).unwrap_or(0)
}

fn check_every_script(daemon: &Daemon) {
    let said = |index: usize| CONVERSATION[index].1.to_owned();
    for (words, expected) in [
        ("हाथी", vec![said(1), said(0)]),
        ("कहानी", vec![said(0)]),
        ("大象", vec![said(3), said(2)]),
        ("象", vec![said(3), said(2)]),
        ("故事", vec![said(2)]),
        ("🐘", vec![said(1)]),
        ("🍉", vec![said(3)]),
        ("👨‍👩‍👧‍👦", vec![said(6)]),
        ("cafe", vec![said(6)]),
        ("GOODBYE", vec![said(7)]),
        ("good one", vec![said(7)]),
        ("\"little one\"", vec![said(7)]),
        ("\"one little\"", vec![]),
        ("AND OR NOT NEAR( * \"", vec![]),
        ("nowhere", vec![]),
    ] {
        assert_eq!(found(daemon, &[words]), expected, "{words}");
    }
}

#[test]
fn every_script_is_found_before_and_after_it_is_indexed() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    // Whether the index is there yet or not.
    check_every_script(&daemon);
    soon("all is indexed", || watermark(&daemon) >= 8);
    check_every_script(&daemon);
    assert!(daemon.term(IN_TIME).success());
    check_every_script(&daemon);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(daemon.store().join(format!("search.db{suffix}")));
    }
    check_every_script(&daemon);
}

#[test]
fn what_is_found_is_shown_with_its_surroundings() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let shown = text(&daemon, &["history", "search", "大象"]);
    assert!(shown.contains("从前有一只[大象],它很喜欢吃西瓜"), "{shown}");
    assert!(shown.contains("2025-09-24 08:19:35  user   68:25:dd:ba:39:78  s\n"), "{shown}");
    let found = json_of(&daemon, &["history", "search", "little", "--format", "json"]);
    assert_eq!(found[0]["snippet"], "Goodbye, [little] one");
    assert_eq!((&found[0]["session_id"], &found[0]["agent_id"]), (&Value::from("s"), &Value::from("story-teller")));
    let output = run(&daemon, &["history", "search", "nowhere"]);
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(refusal(&daemon, &["history", "search", "?!"], 64).contains("no word"));
}

#[test]
fn a_search_is_filtered_and_limited_youngest_first() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "first");
    converse(&daemon, OTHER_MAC, "second");
    assert_eq!(found(&daemon, &["हाथी"]).len(), 4);
    assert_eq!(found(&daemon, &["हाथी", "--mac", MAC]).len(), 2);
    assert_eq!(found(&daemon, &["हाथी", "--session", "second"]).len(), 2);
    assert_eq!(found(&daemon, &["हाथी", "--agent", "nobody"]).len(), 0);
    assert_eq!(found(&daemon, &["हाथी", "--to", "2025-09-24T08:19:34Z"]).len(), 2);
    assert_eq!(found(&daemon, &["हाथी", "--state", "delivered"]).len(), 0);
    assert_eq!(found(&daemon, &["हाथी", "--limit", "1"]), [CONVERSATION[1].1]);
}

#[test]
fn what_left_the_store_leaves_the_index() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    converse(&daemon, MAC, "s");
    soon("all is delivered", || daemon.metric("pending") == 0);
    soon("all is indexed", || watermark(&daemon) >= 8);
    assert!(bytes_are_in(&daemon.store(), "goodbye"));
    text(&daemon, &["history", "forget", "--mac", MAC, "--yes", "--including-undelivered"]);
    assert!(!bytes_are_in(&daemon.store(), "goodbye"));
    assert!(found(&daemon, &["goodbye"]).is_empty());
}

#[test]
fn what_retention_took_leaves_the_index_of_a_quiet_host() {
    // A clock that runs thirty times as fast: the first pass is due a minute after the start.
    let Some(fast) = clock::faketime("+0 x30") else { return };
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(IN_TIME).success());
    fill(&daemon, 50);
    let fast = fast.iter().filter(|(name, _)| name != "FAKETIME_DONT_FAKE_MONOTONIC");
    fast.for_each(|(name, value)| daemon.set_environment(name, value));
    daemon.start();
    soon("all is indexed", || watermark(&daemon) > 100_000_000);
    soon("the old ones have left", || daemon.metric("messages_pruned") == 50);
    let index = daemon.store().join("search.db");
    soon("they have left the index", || {
        !std::fs::read(&index).is_ok_and(|bytes| memchr::memmem::find(&bytes, b"filler").is_some())
    });
    assert_eq!(found(&daemon, &["goodbye"]).len(), 1);
}

#[test]
fn a_damaged_index_is_made_anew_and_never_in_the_way() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    soon("all is indexed", || watermark(&daemon) >= 8);
    assert!(daemon.term(IN_TIME).success());
    // Its words are damaged, its watermark is not.
    let index = rusqlite::Connection::open(daemon.store().join("search.db")).expect("the index");
    index
        .execute_batch("UPDATE words_data SET block = zeroblob(9) WHERE id > 10; PRAGMA wal_checkpoint(TRUNCATE)")
        .expect("done");
    drop(index);
    check_every_script(&daemon);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(daemon.store().join(format!("search.db{suffix}")));
    }
    std::fs::write(daemon.store().join("search.db"), vec![b'x'; 8192]).expect("it is ours");
    check_every_script(&daemon);
    daemon.start();
    converse(&daemon, OTHER_MAC, "t");
    soon("all is indexed again", || watermark(&daemon) >= 16);
    assert_eq!(found(&daemon, &["goodbye"]).len(), 2);
}

fn put(from: &Path, to: &Path) {
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(to.join(format!("history.db{suffix}")));
    }
    std::fs::copy(from.join("history.db"), to.join("history.db")).expect("a copy");
}

#[test]
fn what_is_said_after_an_older_store_was_put_back_is_found_and_indexed() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "kept");
    assert!(daemon.term(IN_TIME).success());
    let copy = daemon.directory().join("copy");
    std::fs::create_dir(&copy).expect("a directory");
    put(&daemon.store(), &copy);
    daemon.start();
    converse(&daemon, MAC, "lost");
    soon("all is indexed", || watermark(&daemon) >= 16);
    assert!(daemon.term(IN_TIME).success());
    put(&copy, &daemon.store());
    // The index has words of rows that are not there any more.
    check_every_script(&daemon);
    daemon.start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "after");
    agent.say(1, "A Pumpkin, after all");
    agent.end();
    agent.flush("durable");
    let pumpkin = ["A Pumpkin, after all"];
    assert_eq!(found(&daemon, &["pumpkin"]), pumpkin);
    soon("it is indexed", || bytes_are_in(&daemon.store(), "a pumpkin after all"));
    assert_eq!(found(&daemon, &["pumpkin"]), pumpkin);
    assert_eq!(found(&daemon, &["goodbye"]).len(), 1);
    // And the copy went on without its index: as many rows, others.
    converse(&daemon, OTHER_MAC, "more");
    soon("all is indexed", || watermark(&daemon) >= 17);
    assert!(daemon.term(IN_TIME).success());
    let ahead = daemon.directory().join("ahead");
    std::fs::create_dir(&ahead).expect("a directory");
    put(&daemon.store(), &ahead);
    std::fs::rename(daemon.store().join("search.db"), ahead.join("search.db")).expect("the index");
    put(&copy, &daemon.store());
    daemon.start();
    converse(&daemon, OTHER_MAC, "others");
    converse(&daemon, OTHER_MAC, "and more");
    assert!(daemon.term(IN_TIME).success());
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(daemon.store().join(format!("search.db{suffix}")));
    }
    std::fs::rename(ahead.join("search.db"), daemon.store().join("search.db")).expect("the index");
    assert_eq!(found(&daemon, &["goodbye", "--session", "others"]).len(), 1);
    assert_eq!(found(&daemon, &["pumpkin"]).len(), 0);
}

#[test]
fn a_search_in_many_messages_is_quick_once_they_are_indexed() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(IN_TIME).success());
    fill(&daemon, 5_000);
    daemon.start();
    soon("all is indexed", || watermark(&daemon) > 100_000_000 + 4_500);
    let began = std::time::Instant::now();
    assert_eq!(found(&daemon, &["number4999"]).len(), 1);
    assert_eq!(found(&daemon, &["हाथी", "--session", "s"]).len(), 2);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
