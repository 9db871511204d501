//! A wall clock that is behind when something is said (a board without a battery for it), and is set later: nothing leaves
//! as old because of it.

use std::fs;

use crate::support::eventually::SOON;
use crate::support::{Daemon, Producer, clock, eventually, soon};

const MAC: &str = "68:25:dd:ba:39:78";

/// Says one thing by whatever clock the daemon has.
fn say(daemon: &Daemon, text: &str) {
    let mut producer = Producer::connected(daemon, MAC, text);
    producer.say(1, text);
    producer.wait_until_acked();
}

fn set_clock(daemon: &mut Daemon, clock: &[(String, String)]) {
    daemon.clear_environment();
    for (name, value) in clock {
        daemon.set_environment(name, value);
    }
}

/// A daemon without a Manager API, with a message that is really three days old. By age it leaves after one.
fn with_an_old_message() -> Option<Daemon> {
    let three_days_ago = clock::faketime("-3d")?;
    let mut daemon = Daemon::builder().set("store.retention", "'1day'").prepare();
    set_clock(&mut daemon, &three_days_ago);
    daemon.start();
    say(&daemon, "old");
    assert!(daemon.term(SOON).success());
    Some(daemon)
}

/// What is left after a pass over old rows, by the right clock, thirty times as fast: the first one is due a minute after
/// the start.
fn left_after_a_pass(daemon: &mut Daemon) -> Vec<String> {
    let fast = clock::faketime("+0 x30").expect("it was there before");
    let fast: Vec<_> = fast.into_iter().filter(|(name, _)| name != "FAKETIME_DONT_FAKE_MONOTONIC").collect();
    set_clock(daemon, &fast);
    daemon.start();
    eventually(SOON * 3, "what is old has left", || (daemon.metric("messages_pruned") > 0).then_some(()));
    assert!(daemon.term(SOON).success());
    let store = rusqlite::Connection::open(daemon.store().join("history.db")).expect("the store");
    let mut statement = store.prepare("SELECT content FROM messages ORDER BY id").expect("messages");
    statement.query_map([], |row| row.get(0)).expect("messages").map(|content| content.expect("a text")).collect()
}

#[test]
fn what_was_said_before_the_clock_was_set_does_not_leave_as_old() {
    let Some(mut daemon) = with_an_old_message() else { return };
    let setting = daemon.directory().join("clock");
    fs::write(&setting, "-3d").expect("the clock");
    let clock = clock::faketime_from(&setting).expect("it was there before");
    set_clock(&mut daemon, &clock);
    daemon.start();
    say(&daemon, "behind");
    fs::write(&setting, "+0d").expect("the clock");
    say(&daemon, "right");
    soon("it is dated anew", || daemon.log().contains("the clock was set ahead"));
    assert!(daemon.term(SOON).success());
    assert_eq!(left_after_a_pass(&mut daemon), ["behind", "right"]);
}

#[test]
fn what_was_said_by_a_clock_without_a_date_does_not_leave_as_old() {
    let Some(mut daemon) = with_an_old_message() else { return };
    set_clock(&mut daemon, &clock::faketime("@1970-01-02 00:00:00").expect("it was there before"));
    daemon.start();
    say(&daemon, "in 1970");
    assert!(daemon.term(SOON).success());
    assert_eq!(left_after_a_pass(&mut daemon), ["in 1970"]);
}
