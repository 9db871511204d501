//! The secret: read again by every knock, so that nobody needs to restart anything; never lost to a bad file.

use crate::api_faults::{MAC, ground, say};
use crate::support::manager_api::SECRET;
use crate::support::oracle::check_books;
use crate::support::{Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Rule, Variant, soon};

#[test]
fn a_secret_file_that_is_gone_while_the_gate_is_closed_is_read_when_it_is_there_again() {
    let (api, daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    api.set_secret("the-new-secret");
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    soon("the gate is closed", || daemon.status()["gate"]["kind"] == "operator");
    std::fs::remove_file(daemon.secret_file()).unwrap();
    soon("a knock finds no file", || daemon.log().contains("the secret cannot be read"));
    // As careful tools write it: beside, then renamed into place.
    let beside = daemon.directory().join("secret.new");
    std::fs::write(&beside, "the-new-secret").unwrap();
    std::fs::rename(&beside, daemon.secret_file()).unwrap();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

#[test]
fn a_secret_file_that_is_garbled_or_gone_changes_nothing_while_the_old_secret_is_good() {
    let (api, daemon) = ground(Variant::Fork);
    for (index, garbage) in [&b""[..], b"\n", b"two\nlines", b"\xff\xfe", b"x".repeat(100_000).as_slice()].into_iter().enumerate()
    {
        std::fs::write(daemon.secret_file(), garbage).unwrap();
        daemon.hup();
        soon("it says so", || daemon.log().matches("the configuration was not reloaded").count() == index + 1);
        say(&daemon, MAC, &format!("session-{index}"), "Hello");
        api.wait_for_rows(&format!("session-{index}"), 1);
    }
    std::fs::remove_file(daemon.secret_file()).unwrap();
    daemon.hup();
    say(&daemon, MAC, "gone", "Hello");
    api.wait_for_rows("gone", 1);
    assert_eq!(daemon.metric("gate_closings"), 0);
}

#[test]
fn a_rotation_under_load_loses_nothing_and_shows_neither_secret() {
    let (api, mut daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> =
        (0..8).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    let secrets = ["canary-secret-second-5d1b", "canary-secret-third-77aa"];
    for (round, secret) in secrets.into_iter().enumerate() {
        for index in 0..30 {
            for producer in &mut producers {
                producer.say(1, &format!("round {round}, message {index}"));
            }
            if index == 10 {
                api.set_secret(secret);
            }
        }
        soon("the gate closes", || daemon.status()["gate"]["kind"] == "operator");
        std::fs::write(daemon.secret_file(), format!("{secret}\n")).unwrap();
        soon("all is through", || daemon.metric("pending") == 0);
    }
    for mut producer in producers {
        producer.wait_until_acked();
        oracle.owe(&producer);
    }
    oracle.check(&daemon, &api);
    assert_eq!((daemon.metric("rejected"), api.row_count()), (0, 8 * 60 + 1));
    let status = daemon.status().to_string();
    assert!(daemon.term(crate::support::eventually::SOON).success());
    for secret in [SECRET, secrets[0], secrets[1]] {
        assert!(!daemon.log().contains(secret) && !status.contains(secret), "a secret in log or status");
    }
}

#[test]
fn who_waits_at_the_gate_is_told_what_a_new_secret_takes() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let credentials = tempfile::tempdir().unwrap();
    std::fs::write(credentials.path().join("manager-api-secret"), "yesterdays").unwrap();
    let directory = credentials.path().display().to_string();
    let builder = Daemon::builder().api(&api).set("manager_api.secret_file", "''");
    let daemon = builder.environment("CREDENTIALS_DIRECTORY", &directory).start();
    say(&daemon, MAC, "s", "Hello");
    soon("the gate is closed", || daemon.status()["gate"]["kind"] == "operator");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the gate is closed")).unwrap();
    assert!(line.contains("a new one needs a restart"), "{line}");
}

#[test]
fn a_secret_file_that_is_not_there_yet_keeps_nobody_from_being_heard() {
    let (api, _) = ground(Variant::Fork);
    let mut daemon = Daemon::builder().api(&api).prepare();
    let secret = std::fs::read(daemon.secret_file()).unwrap();
    std::fs::remove_file(daemon.secret_file()).unwrap();
    daemon.spawn();
    soon("it is there", || daemon.try_status().is_some());
    let mut producer = Producer::connected(&daemon, MAC, "early");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    soon("the gate is closed", || daemon.status()["gate"]["kind"] == "operator");
    std::fs::write(daemon.secret_file(), secret).unwrap();
    soon("the message is delivered", || daemon.metric("delivered") == 1);
    api.wait_for_rows("early", 1);
}

/// A knock that hangs with the old secret must not cost the wish of whoever reloads meanwhile.
#[test]
fn a_reload_while_a_knock_is_under_way_is_not_forgotten() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    // Left to itself it knocks in half an hour at the earliest.
    let daemon = Daemon::builder()
        .api(&api)
        .set("upload.backoff_initial", "'1h'")
        .set("upload.backoff_max", "'1h'")
        .set("manager_api.timeout", "'3s'")
        .set("manager_api.connect_timeout", "'3s'")
        .start();
    api.set_secret("another");
    say(&daemon, MAC, "s", "Hello");
    soon("the gate closes", || daemon.status()["gate"]["kind"] == "operator");
    api.rule(Rule::new(Fault::HangBeforeHeaders).on(Endpoint::Report).times(1));
    let knocks = api.count(Endpoint::Report);
    daemon.hup();
    soon("it knocks, and the knock hangs", || api.count(Endpoint::Report) > knocks);
    std::fs::write(daemon.secret_file(), "another").unwrap();
    daemon.hup();
    assert_eq!(api.wait_for_rows("s", 1)[0].content, "Hello");
    check_books(&daemon);
}
