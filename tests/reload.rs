//! SIGHUP: good settings are applied, bad ones kept out, and nothing is lost meanwhile.

use crate::support::{Daemon, Endpoint, ManagerApi, Oracle, Producer, Variant, soon};

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

#[test]
fn secret_rotation_in_the_file_itself() {
    let (api, mut daemon) = ground();
    daemon.set("session.send_interval", "'100ms'");
    daemon.hup();
    api.set_secret("rotated-secret");
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.agent().end();
    soon("refused", || api.count(Endpoint::Report) >= 2);
    std::fs::write(daemon.secret_file(), "rotated-secret").unwrap();
    daemon.hup();
    api.wait_for_rows("s", 1);
}

#[test]
fn many_reloads_under_load_lose_nothing() {
    let (api, mut daemon) = ground();
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..60 {
        producer.say(1, &format!("message {index}"));
        daemon.set("session.batch_size", &(1 + index % 7).to_string());
        daemon.hup();
        if index % 10 == 0 {
            producer.wait_until_acked();
        }
    }
    producer.wait_until_acked();
    producer.agent().end();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    assert_eq!(api.rows("s").len(), 60);
}
