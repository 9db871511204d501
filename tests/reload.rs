//! SIGHUP: good settings are applied, bad ones kept out, and nothing is lost meanwhile.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::support::history::{CONVERSATION, bytes_are_in, converse, text};
use crate::support::manager_api::SECRET;
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Rule, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";

fn ground() -> (ManagerApi, Daemon) {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("session.send_interval", "'10m'").start();
    (api, daemon)
}

#[test]
fn a_good_file_is_applied() {
    let (api, mut daemon) = ground();
    let mut producer = Producer::connected(&daemon, MAC, "before");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    daemon.set("session.batch_size", "1");
    daemon.set("session.send_interval", "'100ms'");
    daemon.hup();
    soon("it says so", || daemon.log().to_lowercase().contains("reload") || daemon.log().contains("SIGHUP"));
    let mut producer = Producer::connected(&daemon, MAC, "after");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    api.wait_for_rows("after", 1);
}

#[test]
fn a_bad_file_changes_nothing_and_what_cannot_change_is_named() {
    let (api, mut daemon) = ground();
    daemon.set("session.batch_size", "'banana'");
    daemon.hup();
    soon("the key is named", || daemon.log().contains("session.batch_size"));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..5 {
        producer.say(1, &format!("message {index}"));
    }
    api.wait_for_rows("s", 5);
    daemon.set("session.batch_size", "5");
    let elsewhere = daemon.directory().join("elsewhere").display().to_string();
    daemon.set("store.directory", &format!("'{elsewhere}'"));
    daemon.hup();
    soon("what needs a restart is named", || daemon.log().contains("store.directory"));
    producer.say(1, "still the old place");
    producer.wait_until_acked();
    assert!(!std::path::Path::new(&elsewhere).exists());
}

/// Reloads and waits until it was done.
fn reload(daemon: &Daemon) {
    let before = daemon.log().matches("configuration reloaded").count();
    daemon.hup();
    soon("the reload is done", || daemon.log().matches("configuration reloaded").count() > before);
}

#[test]
fn the_log_level_follows_the_file() {
    let mut daemon = Daemon::builder().set("log.level", "'info'").start();
    let opened = |daemon: &Daemon| daemon.log().matches("session opened").count();
    Agent::connect(&daemon).bind(MAC, "quiet");
    daemon.set("log.level", "'debug'");
    // The log comes through a pipe: what it lacks is only known once something later has come.
    reload(&daemon);
    assert_eq!(opened(&daemon), 0);
    Agent::connect(&daemon).bind(MAC, "loud");
    soon("debug lines are written", || opened(&daemon) == 1);
    daemon.set("log.level", "'error'");
    let changed = |daemon: &Daemon| {
        daemon.log().lines().filter(|line| line.contains("setting changed") && line.contains("log.level")).count()
    };
    daemon.hup();
    soon("the last word of the old level", || changed(&daemon) == 2);
    // A file that is refused is told of at every level, and only after the reload before it was done.
    daemon.set("log.level", "'banana'");
    let refused = |daemon: &Daemon| daemon.log().matches("the old settings stay").count();
    daemon.hup();
    soon("the level is in force", || refused(&daemon) == 1);
    Agent::connect(&daemon).bind(MAC, "quiet again");
    daemon.hup();
    soon("something later has come", || refused(&daemon) == 2);
    assert_eq!(opened(&daemon), 1, "{}", daemon.log());
}

#[test]
fn a_url_that_appears_delivers_the_backlog_and_one_that_goes_keeps_the_history_here() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().start();
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    let say = |producers: &mut [Producer], what: &str| {
        for producer in producers {
            for index in 0..7 {
                producer.say(1, &format!("{what} {index}"));
            }
            producer.wait_until_acked();
        }
    };
    say(&mut producers, "before there was a URL");
    fs::write(daemon.directory().join("secret"), SECRET).unwrap();
    let secret = format!("'{}'", daemon.directory().join("secret").display());
    daemon.set("manager_api.secret_file", &secret);
    daemon.set("manager_api.url", &format!("'{}'", api.url()));
    reload(&daemon);
    say(&mut producers, "with a URL");
    api.wait_for_rows("s2", 14);
    daemon.unset("manager_api.url");
    daemon.unset("manager_api.secret_file");
    reload(&daemon);
    soon("it has no server", || daemon.status()["gate"]["state"] == "no_url");
    let requests = api.requests().len();
    say(&mut producers, "without it again");
    assert_eq!(api.requests().len(), requests);
    daemon.set("manager_api.secret_file", &secret);
    daemon.set("manager_api.url", &format!("'{}'", api.url()));
    reload(&daemon);
    for producer in &producers {
        oracle.owe(producer);
    }
    oracle.check(&daemon, &api);
}

/// Such a session stands in no database yet, where the backlog would be found.
#[test]
fn a_url_that_appears_while_the_store_fails_delivers_what_is_kept_in_memory() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::builder().start();
    fs::write(daemon.directory().join("secret"), SECRET).unwrap();
    let database = rusqlite::Connection::open(daemon.store().join("history.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..3 {
        producer.say(1, &format!("message {index}"));
    }
    soon("all of it is kept in memory", || daemon.status()["store"]["shelf_messages"] == 3);
    daemon.set("manager_api.secret_file", &format!("'{}'", daemon.directory().join("secret").display()));
    daemon.set("manager_api.url", &format!("'{}'", api.url()));
    reload(&daemon);
    api.wait_for_rows("s", 3);
    assert!(!daemon.status()["store"]["failing"].is_null());
    drop(database);
    let mut oracle = Oracle::new(&daemon);
    producer.wait_until_acked();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

#[test]
fn a_bad_file_is_kept_out_whole() {
    let (api, mut daemon) = ground();
    let before = daemon.log().len();
    // One good change among bad ones: none of them is applied.
    daemon.set("session.batch_size", "1");
    daemon.set("upload.concurrency", "'many'");
    daemon.set("nonsense.key", "7");
    daemon.hup();
    soon("it says that nothing was applied", || daemon.log()[before..].contains("the old settings stay"));
    let log = daemon.log()[before..].to_owned();
    assert!(log.contains("upload.concurrency") && log.contains("nonsense"), "every problem is named: {log}");
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "one");
    producer.wait_until_acked();
    crate::support::eventually::always(std::time::Duration::from_secs(1), "the batch size is still 5", || api.row_count() == 0);
    fs::write(daemon.config(), "this is no TOML [").unwrap();
    daemon.hup();
    soon("it says so", || daemon.log()[before..].matches("the old settings stay").count() == 2);
    fs::remove_file(daemon.config()).unwrap();
    daemon.hup();
    soon("it says so", || daemon.log()[before..].matches("the old settings stay").count() == 3);
    daemon.unset("nonsense.key");
    daemon.unset("upload.concurrency");
    reload(&daemon);
    producer.say(1, "two");
    api.wait_for_rows("s", 2);
}

#[test]
fn what_cannot_change_is_named_and_stays() {
    let (_api, mut daemon) = ground();
    let inode = fs::metadata(daemon.socket()).unwrap().ino();
    let old_socket = daemon.socket();
    let elsewhere = |name: &str| format!("'{}'", daemon.directory().join(name).display());
    let fixed = [
        ("socket.path", elsewhere("run/other.sock")),
        ("socket.mode", "'0600'".to_owned()),
        ("store.durability", "'os'".to_owned()),
        ("status.socket", elsewhere("run/other-status.sock")),
        ("log.format", "'json'".to_owned()),
    ];
    for (key, value) in &fixed {
        daemon.set(key, value);
    }
    daemon.set("session.batch_size", "2");
    let before = daemon.log().len();
    reload(&daemon);
    let log = daemon.log()[before..].to_owned();
    for (key, _) in &fixed {
        let named = log.lines().any(|line| line.contains("needs a restart") && line.contains(key));
        assert!(named, "{key} is not named: {log}");
    }
    assert!(log.lines().any(|line| line.contains("setting changed") && line.contains("session.batch_size")), "{log}");
    let metadata = fs::metadata(&old_socket).unwrap();
    assert_eq!((metadata.ino(), metadata.mode() & 0o777), (inode, 0o660));
    assert!(!daemon.directory().join("run/other.sock").exists());
    assert!(Agent::dial(&old_socket).unwrap().is_answered());
}

#[test]
fn secret_rotation() {
    // By the file alone: it is read again at each probe, nobody says anything to the daemon.
    let (api, mut daemon) = ground();
    daemon.set("session.batch_size", "1");
    reload(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "under the first");
    api.wait_for_rows("s", 1);
    api.set_secret("rotated-in-place");
    producer.say(1, "under the second");
    soon("the gate closes", || daemon.status()["gate"]["state"] == "closed");
    fs::write(daemon.secret_file(), "rotated-in-place\n").unwrap();
    api.wait_for_rows("s", 2);
    soon("the gate opens", || daemon.status()["gate"]["state"] == "open");
    // Inline, with SIGHUP.
    daemon.unset("manager_api.secret_file");
    daemon.set("manager_api.secret", "'inline-secret-one'");
    api.set_secret("inline-secret-one");
    reload(&daemon);
    producer.say(1, "inline");
    api.wait_for_rows("s", 3);
    api.set_secret("inline-secret-two");
    daemon.set("manager_api.secret", "'inline-secret-two'");
    reload(&daemon);
    producer.say(1, "inline again");
    api.wait_for_rows("s", 4);
    let log = daemon.log();
    for secret in [SECRET, "rotated-in-place", "inline-secret-one", "inline-secret-two"] {
        assert!(!log.contains(secret), "{secret} in the log");
    }
    assert!(log.contains("manager_api.secret"), "that it changed is said");
}

#[test]
fn a_new_server_takes_over_what_the_old_one_did_not_take() {
    let (old, mut daemon) = ground();
    let new = ManagerApi::start(Variant::Upstream);
    new.register(MAC);
    old.fault(Fault::HangBeforeHeaders);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..6 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    soon("the old one was asked", || old.count(Endpoint::Report) >= 1);
    daemon.set("manager_api.url", &format!("'{}'", new.url()));
    reload(&daemon);
    producer.agent().end();
    let times: Vec<i64> = new.wait_for_rows("s", 6).into_iter().map(|row| row.created_at_ms).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "its time unit was asked for: {times:?}");
}

/// Two reports hang, and a third session has its turn but waits until it may send.
#[test]
fn what_hangs_at_the_old_server_holds_up_nobody_at_the_new_one() {
    let old = ManagerApi::start(Variant::Upstream);
    old.register(MAC);
    let new = ManagerApi::start(Variant::Upstream);
    new.register(MAC);
    old.fault(Fault::HangBeforeHeaders);
    let mut daemon = Daemon::builder().api(&old).set("upload.concurrency", "2").set("manager_api.timeout", "'120s'").start();
    for session in ["hangs", "hangs too", "waits"] {
        let mut producer = Producer::connected(&daemon, MAC, session);
        producer.say(1, "Hello");
        producer.wait_until_acked();
        producer.agent().end();
    }
    soon("two hang", || old.count(Endpoint::Report) == 2);
    daemon.set("manager_api.url", &format!("'{}'", new.url()));
    reload(&daemon);
    new.wait_for_rows("waits", 1);
    assert_eq!(old.count(Endpoint::Report), 2, "the third never asked the old server");
}

#[test]
fn no_reload_lets_more_requests_in_flight_than_the_larger_of_two_settings() {
    let (api, mut daemon) = ground();
    daemon.set("upload.concurrency", "4");
    reload(&daemon);
    let mut oracle = Oracle::new(&daemon);
    api.fault(Fault::Delay(Duration::from_millis(200)));
    let mut producers: Vec<Producer> = (0..20).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for producer in &mut producers {
        for index in 0..10 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    for concurrency in [1, 4, 2, 4, 1, 4] {
        let before = api.reports().len();
        daemon.set("upload.concurrency", &concurrency.to_string());
        reload(&daemon);
        soon("a few more", || api.reports().len() >= before + 3);
    }
    let before = api.reports().len();
    soon("a few more", || api.reports().len() >= before + 20);
    api.clear_faults();
    for producer in &mut producers {
        producer.agent().end();
    }
    oracle.check(&daemon, &api);
    assert_eq!(api.overlap(), (4, false));
}

#[test]
fn a_thousand_reloads_under_load_lose_nothing() {
    let (api, mut daemon) = ground();
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..5).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    for index in 0..1000 {
        if index % 20 == 0 {
            daemon.set("session.batch_size", &(1 + index / 20 % 7).to_string());
            daemon.set("upload.concurrency", &(1 + index / 20 % 4).to_string());
        }
        producers[index % 5].say(1 + (index % 2) as u8, &format!("message {index}"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    }
    for producer in &mut producers {
        producer.wait_until_acked();
        producer.agent().end();
        oracle.owe(producer);
    }
    oracle.check(&daemon, &api);
    assert_eq!(api.row_count(), 1001);
    assert!(daemon.log().matches("configuration reloaded").count() >= 10, "it did reload meanwhile");
}

#[test]
fn a_connection_keeps_the_limit_it_was_told() {
    let (_api, mut daemon) = ground();
    let mut old = Agent::connect(&daemon);
    assert_eq!(old.bind(MAC, "s")["max_line_bytes"], 4 << 20);
    daemon.set("socket.max_line_bytes", "'1 KiB'");
    reload(&daemon);
    old.say(1, &"x".repeat(2_000));
    old.line(&serde_json::json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "another" }));
    old.line(&serde_json::json!({ "type": "ping", "id": 1 }));
    old.wait_for("pong");
    let told: Vec<_> = old.replies().into_iter().filter(|reply| reply["type"] == "ready").collect();
    assert!(told.len() == 2 && told.iter().all(|ready| ready["max_line_bytes"] == 4 << 20), "{told:?}");
    assert_eq!(old.errors(), Vec::<serde_json::Value>::new());
    let mut new = Agent::connect(&daemon);
    assert_eq!(new.bind(MAC, "s")["max_line_bytes"], 1 << 10);
    new.say(1, &"x".repeat(2_000));
    assert_eq!(new.wait_for("error")["code"], "line_too_long");
}

#[test]
fn a_message_that_began_in_parts_goes_on_in_parts_when_long_text_is_to_be_cut_from_now_on() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("manager_api.max_content", "500").start();
    let text = (0..200).map(|index| format!("word{index}")).collect::<Vec<_>>().join(" ");
    api.rule(Rule::new(Fault::status(503)).content("word199"));
    api.rule(Rule::new(Fault::status(503)).content("word80").after(1));
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(2, &text);
    producer.wait_until_acked();
    oracle.owe(&producer);
    api.wait_for_rows("s", 2);
    daemon.set("manager_api.on_long_content", "'truncate'");
    reload(&daemon);
    api.clear_faults();
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("messages_truncated"), 0);
}

#[test]
fn backups_are_forgotten_where_they_are_written_by_now_and_the_old_place_is_named() {
    let (api, mut daemon) = ground();
    let old = daemon.backups();
    let elsewhere = format!("'{}'", daemon.directory().join("elsewhere").display());
    daemon.set("backup.directory", &elsewhere);
    reload(&daemon);
    let named = |line: &str| line.contains("WARN") && line.contains("by hand") && line.contains(&old.display().to_string());
    soon("the old place is named", || daemon.log().lines().any(named));
    converse(&daemon, MAC, "s");
    api.wait_for_rows("s", CONVERSATION.len());
    soon("it is backed up", || bytes_are_in(&daemon.backups(), CONVERSATION[0].1));
    soon("the daemon knows that it is delivered", || daemon.metric("pending") == 0);
    let said = text(&daemon, &["history", "forget", "--mac", MAC, "--yes"]);
    assert!(said.contains("1 backup files") && said.contains("checked: none of"), "{said}");
    assert!(!bytes_are_in(&daemon.backups(), CONVERSATION[0].1));
    reload(&daemon);
    assert_eq!(daemon.log().lines().filter(|line| named(line)).count(), 1);
}
