//! Changes that a person asks for while the disk is full: they are refused, and nothing has changed, neither in the store
//! nor in the books: what was undelivered is still delivered.

use std::process::{Command, Output};

use crate::support::daemon::binary;
use crate::support::disk::SmallDisk;
use crate::support::history::{MAC, text};
use crate::support::loop_disk::store_on;
use crate::support::{Agent, Daemon, Fault, ManagerApi, Oracle, Producer, Variant, oracle, soon};

/// A daemon whose store has a small disk of its own.
fn daemon_on(disk: &SmallDisk, api: &ManagerApi) -> Daemon {
    api.register(MAC);
    Daemon::builder().api(api).set("store.directory", &store_on(disk.path())).wrapper(&disk.wrapper()).start()
}

/// A command of the binary that sees the small disk.
pub(crate) fn run(disk: &SmallDisk, daemon: &Daemon, words: &[&str]) -> Output {
    let wrapper = disk.wrapper();
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).arg(binary()).args(words).args(["--config", &daemon.config().display().to_string()]);
    command.output().expect("the binary runs")
}

#[track_caller]
fn refusal(disk: &SmallDisk, daemon: &Daemon, words: &[&str]) -> String {
    let output = run(disk, daemon, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("history.db") && said.contains("chat-historyd doctor"), "the place and the remedy: {said}");
    said
}

/// The export of a session "s" of six messages, delivered elsewhere.
fn exported() -> String {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    for index in 0..6 {
        agent.say(1, &format!("imported {index}"));
    }
    agent.end();
    api.wait_for_rows("s", 6);
    soon("they are known as delivered", || text(&daemon, &["history", "list"]).contains("6 delivered"));
    text(&daemon, &["history", "export", "--format", "json"])
}

fn works_again(daemon: &Daemon) {
    soon("the store works again", || daemon.status()["store"]["failing"].is_null());
}

#[test]
fn an_import_that_fails_holds_up_nothing_that_is_said_afterwards() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let api = ManagerApi::start(Variant::Upstream);
    let daemon = daemon_on(&disk, &api);
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "before");
    producer.wait_until_acked();
    soon("it is delivered", || daemon.metric("pending") == 0);
    let document = exported();
    disk.fill();
    let file = daemon.directory().join("export.json");
    std::fs::write(&file, document).unwrap();
    let said = refusal(&disk, &daemon, &["history", "import", &file.display().to_string()]);
    assert!(said.contains("full"), "{said}");
    disk.free();
    works_again(&daemon);
    for index in 0..8 {
        producer.say(2, &format!("after {index}"));
    }
    producer.wait_until_acked();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    assert_eq!(api.rows("s").len(), 9);
}

#[test]
fn a_forgetting_that_fails_leaves_what_is_undelivered_to_be_delivered() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let api = ManagerApi::start(Variant::Upstream);
    let daemon = daemon_on(&disk, &api);
    api.fault(Fault::status(503));
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    for index in 0..6 {
        agent.say(1, &format!("said {index}"));
    }
    agent.end();
    agent.flush("durable");
    disk.fill();
    let forget = ["history", "forget", "--session", "s", "--including-undelivered", "--yes"];
    let said = refusal(&disk, &daemon, &forget);
    assert!(said.contains("full"), "{said}");
    assert_eq!((daemon.metric("pending"), daemon.labelled("skipped", "forgotten")), (6, 0));
    disk.free();
    works_again(&daemon);
    api.clear_faults();
    assert_eq!(api.wait_for_rows("s", 6).len(), 6, "it was refused: so they are still to be delivered");
    oracle::check_books(&daemon);
}

#[test]
fn a_retry_that_fails_leaves_the_books_as_they_are() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let api = ManagerApi::start(Variant::Fork);
    let daemon = daemon_on(&disk, &api);
    api.fault(Fault::code(10034));
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "refused");
    agent.end();
    agent.flush("durable");
    soon("it is rejected", || daemon.metric("rejected") == 1);
    api.clear_faults();
    let received = daemon.metric("received");
    disk.fill();
    let said = refusal(&disk, &daemon, &["rejected", "retry", "--all"]);
    assert!(said.contains("full"), "{said}");
    assert_eq!((daemon.metric("pending"), daemon.metric("received")), (0, received));
    disk.free();
    works_again(&daemon);
    oracle::check_books(&daemon);
    assert!(run(&disk, &daemon, &["rejected", "retry", "--all"]).status.success());
    assert_eq!(api.wait_for_rows("s", 1)[0].content, "refused");
    oracle::check_books(&daemon);
}
