//! A disk that is full, fails or turns read-only: delivery goes on from memory, acks tell the truth, intake is bounded, one
//! log line for each episode, and all resumes by itself.

use std::time::Duration;

use serde_json::json;

use crate::support::daemon::Builder;
use crate::support::disk::{Injection, SmallDisk};
use crate::support::eventually::{SOON, always};
use crate::support::loop_disk::{Journaled, LoopDisk, store_on};
use crate::support::{Agent, Daemon, Fault, ManagerApi, Oracle, Producer, Rule, Variant, disk, eventually, soon};

const MAC: &str = "68:25:dd:ba:39:78";
const OTHER_MAC: &str = "68:25:dd:ba:39:79";
const FAILING: &str = "the store cannot be written";
/// SQLite as we build it calls `fdatasync` (.cargo/config.toml), and `fsync` for directories.
const SYNC: &str = "fsync,fdatasync";
const WELL: &str = "the store works again";

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    api
}

fn is_failing(daemon: &Daemon) -> bool {
    !daemon.status()["store"]["failing"].is_null()
}

fn lines(daemon: &Daemon, text: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(text)).count()
}

/// Speaks until the store fails; every message is about a page long.
fn speak_until_it_fails(daemon: &Daemon, producer: &mut Producer, what: &str) {
    let mut index = 0;
    eventually(SOON, "the store fails", || {
        producer.say(1, &format!("{what} {index} {}", "x".repeat(4000)));
        index += 1;
        is_failing(daemon).then_some(())
    });
}

/// A producer that said something while all was well, and it is delivered.
fn delivered_before(daemon: &Daemon) -> Producer {
    let mut producer = Producer::connected(daemon, MAC, "s");
    for index in 0..30 {
        producer.say(1, &format!("before {index}"));
    }
    producer.wait_until_acked();
    soon("all is delivered", || daemon.metric("pending") == 0);
    producer
}

/// A small disk, a Manager API, and a daemon that is to keep its store there.
fn on_a_small_disk() -> Option<(SmallDisk, ManagerApi, Builder)> {
    let (disk, api) = (SmallDisk::mount("4m")?, api());
    let daemon = Daemon::builder().api(&api).set("store.directory", &store_on(disk.path())).wrapper(&disk.wrapper());
    Some((disk, api, daemon))
}

/// Something was delivered; since then the disk is full and the API away, and something was said.
fn without_disk_and_api() -> Option<(SmallDisk, ManagerApi, Daemon, Oracle, Producer)> {
    let (disk, api, daemon) = on_a_small_disk()?;
    let daemon = daemon.start();
    let oracle = Oracle::new(&daemon);
    let mut producer = delivered_before(&daemon);
    api.stop();
    disk.fill();
    speak_until_it_fails(&daemon, &mut producer, "full");
    Some((disk, api, daemon, oracle, producer))
}

/// As the real client does: whenever it is sent away it comes back and sends again what was not acknowledged.
fn persist(daemon: &Daemon, producer: &mut Producer) {
    let last = producer.said().len() as u64;
    eventually(SOON, "everything said is acknowledged in the end", || {
        if !producer.is_connected() {
            producer.come_back(daemon);
        }
        (producer.acked() >= last).then_some(())
    });
}

#[test]
fn delivered_messages_that_the_archive_will_lack_are_one_error() {
    let Some((disk, _api, daemon)) = on_a_small_disk() else { return };
    let daemon = daemon.set("store.shelf_bytes", "'64 KiB'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    disk.fill();
    let mut count = 0;
    soon("the shelf makes room twice", || {
        producer.say(1, &"x".repeat(9_000));
        producer.wait_until_acked();
        count += 1;
        count > 20 && daemon.metric("archive_dropped") > 2
    });
    soon("it is told", || lines(&daemon, "ERROR delivered messages leave the shelf") > 0);
    assert_eq!(lines(&daemon, "ERROR delivered messages leave the shelf"), 1, "{}", daemon.log());
}

#[test]
fn what_cannot_be_written_is_delivered_with_its_audio() {
    let Some((disk, api, daemon)) = on_a_small_disk() else { return };
    api.register_with_conf(OTHER_MAC, 2);
    let daemon = daemon.set("manager_api.send_audio", "true").start();
    let mut producer = delivered_before(&daemon);
    disk.fill();
    speak_until_it_fails(&daemon, &mut producer, "full");
    let mut agent = Agent::connect(&daemon);
    agent.bind(OTHER_MAC, "sound");
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "Listen", "audio_base64": "UklGRg==" }));
    assert_eq!(api.wait_for_rows("sound", 1)[0].audio.as_deref(), Some(b"RIFF".as_slice()));
    assert!(is_failing(&daemon));
}

#[test]
fn full_disk_then_space() {
    let Some((disk, api, daemon)) = on_a_small_disk() else { return };
    let mut daemon = daemon.set("store.shelf_bytes", "'128 KiB'").start();
    let mut oracle = Oracle::new(&daemon);
    // While the store cannot be written a restart may repeat what was delivered meanwhile; within one life nothing does.
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..20 {
        producer.say(1, &format!("before {index}"));
    }
    producer.wait_until_acked();
    for episode in 1..=2 {
        disk.fill();
        speak_until_it_fails(&daemon, &mut producer, "full");
        for index in 0..20 {
            producer.say(2, &format!("delivered from memory {episode} {index}"));
        }
        producer.wait_until_acked();
        soon("what is said with a full disk is delivered", || daemon.metric("pending") == 0);
        assert!(is_failing(&daemon));

        // Without API and without disk nothing may be acknowledged, and only so much is taken.
        api.stop();
        let told = producer.acked();
        producer.say(1, &format!("neither durable nor delivered {episode}"));
        always(Duration::from_millis(700), "no ack for what stands in memory alone", || producer.acked() == told);
        let mut refused = 0;
        eventually(SOON, "the shelf is full", || {
            producer.say(1, &format!("more {episode} {refused} {}", "y".repeat(8000)));
            refused += 1;
            producer.agent().errors().iter().any(|error| error["code"] == "overloaded").then_some(())
        });
        producer.agent().wait_for_close();
        assert_eq!(producer.acked(), told);
        let shelf = daemon.status()["store"]["shelf_bytes"].as_u64().unwrap();
        assert!((8000..=128 * 1024).contains(&shelf), "{shelf} bytes on the shelf");
        api.start_again();
        if episode == 1 {
            // The API first: the shelf is delivered, and the producer comes back and goes on.
            persist(&daemon, &mut producer);
            assert!(is_failing(&daemon));
        }
        disk.free();
        soon("the store works again by itself", || !is_failing(&daemon));
        persist(&daemon, &mut producer);
        producer.say(1, &format!("after {episode}"));
        persist(&daemon, &mut producer);
        assert_eq!(
            (lines(&daemon, FAILING), lines(&daemon, WELL)),
            (episode, episode),
            "one line when it begins, one when it ends"
        );
    }
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    let said = producer.said().len();
    // All of it is in the archive, too: what was delivered from memory and what was written at once.
    oracle.before_restart(&daemon);
    daemon.restart();
    oracle.check(&daemon, &api);
    assert_eq!(api.rows("s").len(), said, "each once");
}

/// The server has not got it: what stands in memory is all there is of it.
#[test]
fn a_message_rejected_while_the_disk_is_full_is_not_acked_before_it_is_durable() {
    let Some((disk, api, daemon)) = on_a_small_disk() else { return };
    let daemon = daemon.start();
    let mut producer = delivered_before(&daemon);
    disk.fill();
    speak_until_it_fails(&daemon, &mut producer, "full");
    producer.wait_until_acked();
    api.rule(Rule::new(Fault::code(10034)).content("invalid"));
    let acked = producer.acked();
    producer.say(1, "an invalid message");
    soon("it is rejected", || daemon.metric("rejected") == 1);
    producer.say(1, "and one that is delivered");
    soon("that is through", || daemon.metric("pending") == 0);
    always(Duration::from_millis(700), "no ack for what stands in memory alone", || producer.acked() == acked);
    disk.free();
    soon("the store works again by itself", || !is_failing(&daemon));
    producer.wait_until_acked();
    let shown = crate::changes_fail::run(&disk, &daemon, &["history", "show", "s"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("an invalid message"), "{shown:?}");
}

/// What stands in memory alone is no better kept for having been asked about.
#[test]
fn who_comes_back_while_disk_and_api_are_away_is_told_to_keep_what_no_ack_was_for() {
    let Some((disk, api, mut daemon, mut oracle, mut producer)) = without_disk_and_api() else { return };
    let acked = producer.acked();
    assert!(acked < producer.said().len() as u64);
    producer.connect(&daemon);
    assert_eq!(producer.acked(), acked, "`ready` tells of no more than the acks did");
    let said = producer.said().len() as u64;
    assert_eq!(producer.agent().wait_for("ready")["taken_seq"], said, "and that all of it was taken in");
    producer.say(1, "said after coming back");
    always(Duration::from_millis(700), "no ack for what stands in memory alone", || producer.acked() == acked);
    daemon.kill9();
    disk.free();
    api.start_again();
    // The cursor of what was delivered last may have found the disk full.
    oracle.allow_duplicates(2);
    daemon.start();
    producer.come_back(&daemon);
    producer.wait_until_acked();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

/// An ack does not say of which stream it is.
#[test]
fn an_ack_that_comes_late_is_none_for_the_stream_that_began_meanwhile() {
    let Some((_disk, api, daemon, _, _producer)) = without_disk_and_api() else { return };
    let mut agent = Agent::connect(&daemon);
    assert_eq!(agent.bind_stream(MAC, "left", "left"), 0);
    let line = |seq: u64| json!({ "type": "message", "chat_type": 1, "content": format!("{seq} of it"), "seq": seq });
    (1..=40).for_each(|seq| agent.line(&line(seq)));
    agent.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": "next", "stream": "next" }));
    soon("the next stream begins, whatever the disk does", || {
        agent.replies().iter().filter(|reply| reply["type"] == "ready").count() == 2
    });
    // A binding that is refused is none, and the numbers of the next one are not those of the one before either.
    let mut other = Agent::connect(&daemon);
    assert_eq!(other.bind_stream(MAC, "left too", "left too"), 0);
    (1..=40).for_each(|seq| other.line(&line(seq)));
    other.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": "s", "stream": "left too" }));
    other.wait("the stream is taken", |reply| reply["type"] == "error");
    other.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": "no stream" }));
    soon("it is bound", || other.replies().iter().filter(|reply| reply["type"] == "ready").count() == 2);
    api.start_again();
    soon("what was said before is delivered", || daemon.metric("pending") == 0);
    for agent in [&mut agent, &mut other] {
        agent.line(&line(1));
        agent.wait_for_ack(1);
        assert_eq!(agent.acked(), 1, "{:?}", agent.replies());
    }
}

#[test]
fn a_sync_that_fails_for_a_while_delays_nothing_but_acks() {
    if !disk::strace_works() {
        return;
    }
    for (calls, error) in [(SYNC, "EIO"), ("pwrite64", "EIO"), ("pwrite64,fsync,ftruncate", "EROFS"), ("pwrite64", "ENOSPC")] {
        let api = api();
        // Some good calls first, so that it can start; then a bad while; then all is well.
        let first = if calls == SYNC { 12 } else { 60 };
        let inject = disk::inject(calls, &format!("error={error}:when={first}..{}", first + 6));
        let daemon = Daemon::builder().api(&api).wrapper(&inject).start();
        let mut oracle = Oracle::new(&daemon);
        let mut producer = Producer::connected(&daemon, MAC, "s");
        for index in 0..40 {
            producer.say(1, &format!("message {index}"));
            producer.wait_until_acked();
        }
        oracle.owe(&producer);
        oracle.check(&daemon, &api);
        soon("the store works again by itself", || !is_failing(&daemon));
        soon("its end is told", || lines(&daemon, WELL) >= lines(&daemon, FAILING));
        let (began, ended) = (lines(&daemon, FAILING), lines(&daemon, WELL));
        assert!(began >= 1, "{calls} {error}: nothing failed, so nothing is proved\n{}", daemon.log());
        assert_eq!(began, ended, "{calls} {error}");
        assert_eq!(api.rows("s").len(), 40, "{calls} {error}: each once");
        assert!(!daemon.log().contains("damaged"), "{calls} {error}: a disk that says no is not damage");
    }
}

#[test]
fn a_sync_that_fails_for_ever_still_delivers_and_stops_in_order() {
    if !disk::strace_works() {
        return;
    }
    let api = api();
    let mut daemon = Daemon::builder().api(&api).wrapper(&disk::inject(SYNC, "error=EIO:when=12+")).start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..60 {
        producer.say(1, &format!("message {index}"));
        producer.wait_until_acked();
    }
    assert!(is_failing(&daemon));
    assert_eq!(api.wait_for_rows("s", 60).len(), 60);
    assert_eq!(lines(&daemon, FAILING), 1, "one line for the whole episode");
    // A durable flush cannot be promised, and says so at once or when its time is up; nobody is told a lie.
    api.stop();
    let mut other = Agent::connect(&daemon);
    other.bind(MAC, "t");
    other.say(1, "nobody will say yes to this");
    other.line(&json!({ "type": "flush", "id": "f", "level": "durable", "timeout": 1 }));
    assert_eq!(other.wait_for("flushed")["ok"], false);
    let status = daemon.term(Duration::from_secs(20));
    assert!(status.success(), "{status}\n{}", daemon.log());
    assert_eq!(lines(&daemon, "never acknowledged"), 1, "what is lost is said, once");
    assert!(!daemon.log().contains("panicked"));
}

#[test]
fn a_read_only_disk_is_survived_and_left_in_order() {
    let Some(disk) = LoopDisk::mount(Journaled::Ext4) else { return };
    let api = api();
    let builder = Daemon::builder().api(&api).set("store.directory", &store_on(&disk.path())).wrapper(&disk.wrapper());
    let mut daemon = builder.start();
    let mut producer = delivered_before(&daemon);
    disk.abort();
    speak_until_it_fails(&daemon, &mut producer, "read-only");
    producer.wait_until_acked();
    let said = producer.said().len();
    assert_eq!(api.wait_for_rows("s", said).len(), said, "delivered from memory, each once");
    assert_eq!(lines(&daemon, FAILING), 1);
    let status = daemon.term(Duration::from_secs(20));
    assert!(status.success(), "{status}\n{}", daemon.log());
    // Mended by the operator: it goes on with the store it has. What was delivered while nothing could be written is
    // forgotten there, so nothing of it is owed by the store.
    disk.power_on();
    daemon.start();
    let mut again = Producer::connected(&daemon, MAC, "after");
    again.say(1, "all is well");
    again.wait_until_acked();
    again.agent().end();
    assert_eq!(api.wait_for_rows("after", 1).len(), 1);
    assert!(!daemon.log().contains("damaged"), "{}", daemon.log());
}

/// A disk that is full from the start is not a reason to crash in a loop: the daemon says what is wrong and how to mend it.
#[test]
fn a_disk_that_is_full_at_the_start_ends_with_73_and_a_remedy() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    disk.fill();
    let mut daemon = Daemon::builder().set("store.directory", &store_on(disk.path())).wrapper(&disk.wrapper()).prepare();
    daemon.spawn();
    let status = daemon.wait(SOON);
    assert_eq!(status.code(), Some(73), "{}", daemon.log());
    assert!(daemon.log().contains("store"), "{}", daemon.log());
    disk.free();
    daemon.start();
}

/// A disk that takes everything and gives nothing back. SQLite takes that for damage, so the store is set aside; but what
/// cannot be read now is not gone, and when the disk reads again nothing is missing and nothing was given up.
#[test]
fn reads_that_fail_for_a_while_lose_nothing() {
    if !disk::strace_works() {
        return;
    }
    let api = api();
    api.stop();
    let mut daemon = Daemon::builder().api(&api).start();
    let mut oracle = Oracle::default();
    let mut producers: Vec<Producer> = (0..5).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for index in 0..60 {
        for producer in &mut producers {
            producer.say(1, &format!("message {index} {}", "y".repeat(20_000)));
        }
    }
    producers.iter_mut().for_each(Producer::wait_until_acked);
    producers.iter_mut().for_each(Producer::disconnect);
    // From now on nothing of it is in memory.
    oracle.before_restart(&daemon);
    daemon.restart();
    let failing = disk::Injection::attach(daemon.pid(), "pread64", "error=EIO", &[]);
    api.start_again();
    soon("reads fail", || daemon.log().contains("cannot be read"));
    soon("the salvage waits for the disk", || daemon.log().contains("the disk does not read"));
    let mut late = Producer::new(MAC, "late");
    for index in 0..20 {
        late.say(2, &format!("message {index} while reads fail"));
    }
    late.come_back(&daemon);
    always(Duration::from_secs(2), "it lives and answers", || daemon.is_running() && daemon.try_status().is_some());
    assert_eq!(lines(&daemon, "ERROR a session cannot be opened"), 1, "what is refused is told");
    drop(failing);
    producers.push(late);
    for producer in &mut producers {
        producer.come_back(&daemon);
        persist(&daemon, producer);
        oracle.owe(producer);
    }
    eventually(SOON * 3, "all is delivered", || (daemon.metric("pending") == 0).then_some(()));
    oracle.check(&daemon, &api);
    assert_eq!((daemon.metric("rejected"), daemon.metric("messages_salvaged")), (0, 300));
}

#[test]
fn sigterm_with_a_full_disk_ends_in_time_and_keeps_what_was_acknowledged() {
    // What was said last can neither be written nor delivered.
    let Some((disk, api, mut daemon, mut oracle, mut producer)) = without_disk_and_api() else { return };
    let acked = producer.acked();
    assert!(daemon.term(SOON).success());
    assert!(daemon.log().contains("never acknowledged and are lost"), "a loss is said: {}", daemon.log());
    assert_eq!(producer.acked(), acked, "nothing was acknowledged on the way out that is not durable");
    disk.free();
    api.start_again();
    // The cursor of what was delivered last may have found the disk full.
    oracle.allow_duplicates(2);
    daemon.start();
    producer.come_back(&daemon);
    producer.wait_until_acked();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

const GONE: &str = "ERROR the store cannot be written";

#[test]
fn a_store_that_is_moved_away_is_missed_and_used_again_when_it_is_back() {
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "before");
    producer.wait_until_acked();
    let elsewhere = daemon.directory().join("elsewhere");
    std::fs::rename(daemon.store(), &elsewhere).unwrap();
    soon("it is missed though nothing is said", || is_failing(&daemon));
    let what = daemon.status()["store"]["failing"]["what"].as_str().unwrap().to_owned();
    assert!(what.contains("history.db") && what.contains("put it back"), "{what}");
    producer.say(1, "meanwhile");
    always(Duration::from_millis(700), "no ack for what nobody would find", || producer.acked() == 1);
    std::fs::rename(&elsewhere, daemon.store()).unwrap();
    soon("it works again by itself", || !is_failing(&daemon));
    producer.wait_until_acked();
    assert_eq!(lines(&daemon, GONE), 1, "{}", daemon.log());
    daemon.kill9();
    daemon.start();
    assert_eq!(daemon.metric("pending_at_start"), 2);
}

/// The disk fails, then it is unmounted: what is left is an empty directory in which a store could be made.
#[test]
fn a_store_whose_disk_goes_while_it_fails_is_waited_for_and_not_made_anew() {
    if !disk::strace_works() {
        return;
    }
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "before");
    producer.wait_until_acked();
    let fails = Injection::attach(daemon.pid(), "pwrite64,fdatasync", "error=EIO", &[]);
    producer.say(1, "meanwhile");
    soon("the store fails", || is_failing(&daemon));
    let elsewhere = daemon.directory().join("elsewhere");
    std::fs::rename(daemon.store(), &elsewhere).unwrap();
    std::fs::create_dir(daemon.store()).unwrap();
    std::fs::set_permissions(daemon.store(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    drop(fails);
    always(Duration::from_secs(2), "no ack from a store that knows nothing of the session", || producer.acked() == 1);
    assert!(is_failing(&daemon) && !daemon.store().join("history.db").exists());
    std::fs::remove_dir(daemon.store()).unwrap();
    std::fs::rename(&elsewhere, daemon.store()).unwrap();
    producer.wait_until_acked();
    daemon.kill9();
    daemon.start();
    assert_eq!(daemon.metric("pending_at_start"), 2);
}

#[test]
fn nothing_is_acknowledged_into_a_store_that_was_deleted() {
    let api = api();
    let mut daemon = Daemon::builder().api(&api).start();
    let mut producer = delivered_before(&daemon);
    api.stop();
    let before = producer.say(1, "acknowledged, undelivered, and deleted");
    producer.wait_until_acked();
    std::fs::remove_dir_all(daemon.store()).unwrap();
    // It is seen by the very first write, not some time later.
    producer.say(1, "neither durable nor delivered");
    always(Duration::from_millis(700), "no ack", || producer.acked() == before);
    assert!(is_failing(&daemon));
    api.start_again();
    producer.wait_until_acked();
    let rows = api.wait_for_rows("s", 32);
    assert_eq!(rows[30].content, "acknowledged, undelivered, and deleted", "the open file still has it");
    assert!(is_failing(&daemon));
    daemon.restart();
    assert!(!is_failing(&daemon), "a new store");
    assert_eq!(lines(&daemon, GONE), 1, "{}", daemon.log());
}

#[test]
fn what_stands_in_a_deleted_log_is_carried_into_the_database() {
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "in the log");
    producer.wait_until_acked();
    std::fs::remove_file(daemon.store().join("history.db-wal")).unwrap();
    producer.say(1, "said after that");
    producer.wait_until_acked();
    soon("it is told", || lines(&daemon, GONE) == 1);
    soon("it works again by itself", || !is_failing(&daemon));
    daemon.kill9();
    daemon.start();
    assert_eq!(daemon.metric("pending_at_start"), 2);
}

/// What began the salvage was told for as long as it failed, and not that the disk has no room for it.
#[test]
fn a_salvage_that_finds_no_room_says_so_and_is_done_when_there_is() {
    let Some((disk, api, daemon)) = on_a_small_disk() else { return };
    let mut daemon = daemon.set("backup.enabled", "false").start();
    api.stop();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..1000 {
        producer.say(1, &format!("{index} {}", "x".repeat(400)));
    }
    producer.wait_until_acked();
    daemon.restart();
    daemon.kill9();
    let path = disk.outside().join("store/history.db");
    let mut database = std::fs::read(&path).expect("the database");
    let identity = database.windows(MAC.len()).position(|bytes| bytes == MAC.as_bytes()).expect("an identity");
    database[identity + 2] ^= 2;
    std::fs::write(&path, database).expect("the database");
    // Room to start and to write, but not for the store once more.
    disk.fill();
    let filler = std::fs::OpenOptions::new().write(true).open(disk.outside().join("filler")).expect("the filler");
    filler.set_len(filler.metadata().expect("its length").len() - 400_000).expect("room");
    daemon.start();
    soon("the cause is told", || {
        daemon.status()["store"]["failing"].to_string().contains("full") && daemon.log().contains("cannot be salvaged")
    });
    disk.remount("rw,size=32m");
    api.start_again();
    soon("it is salvaged", || daemon.metric("stores_salvaged") == 1);
    let mut oracle = Oracle::new(&daemon);
    producer.disconnect();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

/// The log is as long as it was when the daemon opens the database again: counted anew, the first line after each episode would
/// lead to a checkpoint, and so to the next one.
#[test]
fn a_database_that_takes_no_page_of_the_log_fails_once_a_log_and_not_with_every_line() {
    if !disk::strace_works() {
        return;
    }
    let daemon = Daemon::builder().set("store.max_bytes", "'16 MiB'").start();
    let _bad = Injection::attach(daemon.pid(), "pwrite64", "error=EIO", &[&daemon.store().join("history.db")]);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    eventually(SOON, "the log is to be carried over", || {
        for _ in 0..10 {
            producer.say(1, &"x".repeat(4000));
        }
        producer.wait_until_acked();
        (lines(&daemon, FAILING) > 0).then_some(())
    });
    for _ in 0..20 {
        soon("it works again", || !is_failing(&daemon));
        producer.say(1, "one more");
        producer.wait_until_acked();
    }
    // By the clock it is tried again: after 5 s, 10 s …
    assert!(lines(&daemon, FAILING) <= 4, "{}", daemon.log());
}

#[test]
fn the_log_is_carried_over_when_there_is_no_thread_for_it() {
    if !disk::strace_works() {
        return;
    }
    let daemon = Daemon::builder().set("store.max_bytes", "'16 MiB'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "one");
    producer.wait_until_acked();
    let _none = Injection::attach(daemon.pid(), "clone,clone3", "error=EAGAIN", &[]);
    // The log is to have 2 MiB; each line brings 8 kB at least.
    for _ in 0..60 {
        for _ in 0..20 {
            producer.say(1, &"x".repeat(4000));
        }
        producer.wait_until_acked();
    }
    let log = std::fs::metadata(daemon.store().join("history.db-wal")).unwrap().len();
    assert!(log < 4 << 20, "{log} bytes");
}
