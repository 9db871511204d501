//! Starting, stopping, and what else may stand at the daemon's place.

use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Variant, clock, soon};

const MAC: &str = "68:25:dd:ba:39:78";
/// `upload.shutdown_grace` is 5 s; the rest is for a busy machine.
const IN_TIME: Duration = Duration::from_secs(12);

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
}

#[test]
fn a_stop_when_idle_is_quick_and_leaves_no_socket() {
    let api = api();
    let mut daemon = Daemon::start_for(&api);
    let agent = Agent::connect(&daemon);
    let began = Instant::now();
    assert_eq!(daemon.term(IN_TIME).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    agent.wait_for("draining");
    agent.wait_for_close();
    assert!(!daemon.socket().exists());
}

#[test]
fn a_stop_ends_in_time_whatever_the_api_does_and_keeps_what_was_acked() {
    let faults: [(&str, Option<Fault>); 5] = [
        ("is gone", None),
        ("hangs", Some(Fault::HangBeforeHeaders)),
        ("is in trouble", Some(Fault::status(503))),
        ("asks for an hour", Some(Fault::status_with(503, "Retry-After", "3600"))),
        ("refuses the secret", Some(Fault::code(401))),
    ];
    for (what, fault) in faults {
        let api = api();
        let mut daemon = Daemon::start_for(&api);
        let mut oracle = Oracle::new(&daemon);
        match fault {
            Some(fault) => api.fault(fault),
            None => api.stop(),
        }
        let mut producer = Producer::connected(&daemon, MAC, "s");
        for index in 0..12 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
        if what != "is gone" {
            soon("it was tried", || api.count(Endpoint::Report) >= 1);
        }
        oracle.before_restart(&daemon);
        // Said while it stops: these count only if they were acknowledged.
        daemon.signal("TERM");
        for index in 12..20 {
            producer.say(1, &format!("message {index}"));
        }
        assert_eq!(daemon.wait(IN_TIME).code(), Some(0), "the API {what}");
        producer.disconnect();
        if what == "is gone" {
            api.start_again();
        }
        api.clear_faults();
        daemon.start();
        producer.connect(&daemon);
        producer.wait_until_acked();
        oracle.owe(&producer);
        oracle.check(&daemon, &api);
    }
}

#[test]
fn a_stop_delivers_what_it_still_can() {
    let api = api();
    let mut daemon = Daemon::builder().api(&api).set("session.send_interval", "'10m'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..3 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    assert_eq!(api.row_count(), 0, "neither full nor old");
    assert_eq!(daemon.term(IN_TIME).code(), Some(0));
    assert_eq!(api.row_count(), 3);
}

#[test]
fn a_second_signal_skips_the_grace() {
    let api = api();
    let mut daemon = Daemon::builder().api(&api).set("upload.shutdown_grace", "'60s'").start();
    api.fault(Fault::HangBeforeHeaders);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    producer.agent().end();
    soon("it is being sent", || api.count(Endpoint::Report) >= 1);
    let began = Instant::now();
    daemon.signal("TERM");
    producer.agent().wait_for("draining");
    soon("the listener is closed", || Agent::dial(&daemon.socket()).is_none());
    daemon.signal("TERM");
    assert_eq!(daemon.wait(IN_TIME).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    api.clear_faults();
    daemon.start();
    api.wait_for_rows("s", 1);
}

#[test]
fn a_stale_socket_is_replaced() {
    let api = api();
    let mut daemon = Daemon::start_for(&api);
    daemon.kill9();
    assert!(std::fs::metadata(daemon.socket()).unwrap().file_type().is_socket(), "left behind by the kill");
    daemon.start();
    Agent::connect(&daemon).bind(MAC, "s");
}

#[test]
fn a_live_socket_or_another_file_is_never_replaced() {
    let first = Daemon::builder().start();
    let mut second = Daemon::builder().set("socket.path", &format!("'{}'", first.socket().display())).prepare();
    second.spawn();
    assert_eq!(second.wait(IN_TIME).code(), Some(75), "{}", second.log());
    Agent::connect(&first).bind(MAC, "s");
    let mut third = Daemon::builder().prepare();
    std::fs::write(third.socket(), "precious").unwrap();
    third.spawn();
    assert_eq!(third.wait(IN_TIME).code(), Some(73), "{}", third.log());
    assert_eq!(std::fs::read(third.socket()).unwrap(), b"precious");
    assert!(third.log().contains(&third.socket().display().to_string()), "the place is named: {}", third.log());
}

#[test]
fn second_instance_exits_75() {
    let first = Daemon::builder().start();
    let mut second = Daemon::builder().set("store.directory", &format!("'{}'", first.store().display())).prepare();
    second.spawn();
    assert_eq!(second.wait(IN_TIME).code(), Some(75), "{}", second.log());
    Agent::connect(&first).bind(MAC, "s");
}

#[test]
fn without_a_url_history_is_kept_and_delivered_once_there_is_one() {
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..8 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    producer.disconnect();
    assert!(daemon.log().to_lowercase().contains("warn"), "it says that nothing is sent");
    let api = api();
    std::fs::write(daemon.directory().join("secret"), crate::support::manager_api::SECRET).unwrap();
    daemon.set("manager_api.url", &format!("'{}'", api.url()));
    let secret = daemon.directory().join("secret");
    daemon.set("manager_api.secret_file", &format!("'{}'", secret.display()));
    daemon.restart();
    let texts: Vec<String> = api.wait_for_rows("s", 8).into_iter().map(|row| row.content).collect();
    assert_eq!(texts, (0..8).map(|index| format!("message {index}")).collect::<Vec<_>>());
}

#[test]
fn clock_jumps_change_no_order_and_lose_nothing() {
    for jump in ["+1y", "-1d", "@1970-01-02 00:00:00"] {
        let api = api();
        let mut daemon = Daemon::start_for(&api);
        let mut oracle = Oracle::new(&daemon);
        let mut producer = Producer::connected(&daemon, MAC, "s");
        let say = |producer: &mut Producer, what: &str| {
            for index in 0..6 {
                producer.say(1, &format!("{what} {index}"));
            }
            producer.wait_until_acked();
        };
        say(&mut producer, "before");
        let Some(environment) = clock::faketime(jump) else { return };
        for (name, value) in &environment {
            daemon.set_environment(name, value);
        }
        daemon.restart();
        producer.connect(&daemon);
        say(&mut producer, "in another time");
        daemon.clear_environment();
        daemon.restart();
        producer.connect(&daemon);
        say(&mut producer, "back again");
        oracle.owe(&producer);
        oracle.check(&daemon, &api);
        assert_eq!(api.rows("s").len(), 18, "{jump}");
    }
}
