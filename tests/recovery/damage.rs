//! Any bytes in the store: the daemon starts, salvages what is readable, counts, and delivers what is new.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Dice, MAC, comes_up, from_environment};
use crate::support::database::{page_bytes, root_page};
use crate::support::eventually::{SOON, always};
use crate::support::oracle::{check_books, check_fresh};
use crate::support::{Daemon, ManagerApi, Producer, Variant, disk, history, soon};

const FILES: [&str; 3] = ["history.db", "history.db-wal", "history.db-shm"];
const SESSIONS: usize = 3;
/// Messages of each session in the database, and as many again in the log.
const EACH: usize = 15;

/// What happens to a file. Places and lengths are parts of its size, in thousandths.
#[derive(Clone, Debug)]
enum Harm {
    None,
    Truncate(usize),
    Flip(Vec<(usize, u8)>),
    Zero(usize, usize),
    Garble(usize, Vec<u8>),
    Replace(Vec<u8>),
    Empty,
    Missing,
    Symlink,
    Directory,
    /// The same file of another history, sound in itself.
    Foreign,
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        2 => (0..1000_usize).prop_map(Harm::Truncate),
        4 => prop::collection::vec((0..1000_usize, 1..=255_u8), 1..5).prop_map(Harm::Flip),
        2 => (0..1000_usize, 1..1000_usize).prop_map(|(from, length)| Harm::Zero(from, length)),
        2 => (0..1000_usize, prop::collection::vec(any::<u8>(), 1..9000)).prop_map(|(at, bytes)| Harm::Garble(at, bytes)),
        1 => prop::collection::vec(any::<u8>(), 1..9000).prop_map(Harm::Replace),
        1 => Just(Harm::Empty),
        1 => Just(Harm::Missing),
        1 => Just(Harm::Symlink),
        1 => Just(Harm::Directory),
        1 => Just(Harm::Foreign),
    ]
}

fn put(path: &Path, sound: &[u8], foreign: &[u8], victim: &Path, harm: &Harm) {
    let mut bytes = sound.to_vec();
    let length = bytes.len();
    let place = |thousandths: usize| (length * thousandths / 1000).min(length.saturating_sub(1));
    match harm {
        Harm::None => {}
        Harm::Truncate(at) => {
            let at = place(*at);
            bytes.truncate(at);
        }
        Harm::Flip(places) => {
            for (at, mask) in places.iter().map(|(at, mask)| (place(*at), *mask)).collect::<Vec<_>>() {
                bytes[at] ^= mask;
            }
        }
        Harm::Zero(from, length) => {
            let (from, to) = (place(*from), place((from + length).min(1000)));
            bytes[from..=to].fill(0);
        }
        Harm::Garble(at, garbage) => {
            let at = place(*at);
            let length = garbage.len().min(bytes.len() - at);
            bytes[at..at + length].copy_from_slice(&garbage[..length]);
        }
        Harm::Replace(other) => bytes.clone_from(other),
        Harm::Empty => bytes.clear(),
        Harm::Missing => return,
        Harm::Symlink => return symlink(victim, path).expect("a symlink"),
        Harm::Directory => return fs::create_dir(path).expect("a directory"),
        Harm::Foreign => bytes = foreign.to_vec(),
    }
    fs::write(path, bytes).expect("a file of the store");
}

/// The three files of a daemon that was killed: half of its messages in the database, half in the log.
fn files_of_a_history(prefix: &str) -> Vec<Vec<u8>> {
    files_after(prefix, Daemon::kill9)
}

/// The same of one that came to this end.
fn files_after(prefix: &str, end: impl FnOnce(&mut Daemon)) -> Vec<Vec<u8>> {
    let mut daemon = Daemon::builder().set("backup.enabled", "false").start();
    for half in 0..2 {
        for session in 0..SESSIONS {
            let mut producer = Producer::connected(&daemon, MAC, &format!("{prefix}{session}"));
            for index in 0..EACH {
                let index = half * EACH + index;
                producer.say(1 + (index % 2) as u8, &format!("{prefix}{session} message {index} {}", "नमस्ते ".repeat(index % 9)));
            }
            producer.wait_until_acked();
        }
        if half == 0 {
            daemon.restart();
        }
    }
    end(&mut daemon);
    FILES.iter().map(|name| fs::read(daemon.store().join(name)).expect("a file of the store")).collect()
}

/// The same with all messages in the database: a stop puts the log into it.
fn files_in_the_database(prefix: &str) -> Vec<Vec<u8>> {
    files_after(prefix, |daemon| {
        daemon.restart();
        daemon.kill9();
    })
}

struct Lab {
    api: ManagerApi,
    sound: Vec<Vec<u8>>,
    foreign: Vec<Vec<u8>>,
}

/// What became of a damaged store.
struct Outcome {
    /// What arrived, by session, as the numbers of the messages.
    came: HashMap<String, Vec<usize>>,
    /// Messages that did not, and of which the status says so.
    told: u64,
}

/// One damaged store, one daemon. What arrived, by session, as the numbers of the messages.
fn starts_with(lab: &Lab, file: usize, harm: &Harm) -> HashMap<String, Vec<usize>> {
    starts_after(lab, file, harm, |_| {}).came
}

/// The same, after what becomes of an earlier daemon on this store.
fn starts_after(lab: &Lab, file: usize, harm: &Harm, earlier: impl FnOnce(&mut Daemon)) -> Outcome {
    let before = lab.api.all_rows().last().map_or(0, |row| row.id);
    let mut daemon = Daemon::builder().api(&lab.api).prepare();
    let victim = daemon.directory().join("somebody-else");
    fs::write(&victim, &lab.sound[file]).expect("a file");
    fs::create_dir(daemon.store()).expect("the store's directory");
    for (index, name) in FILES.iter().enumerate() {
        let harm = if index == file { harm } else { &Harm::None };
        put(&daemon.store().join(name), &lab.sound[index], &lab.foreign[index], &victim, harm);
    }
    earlier(&mut daemon);
    daemon.spawn();
    assert!(comes_up(&mut daemon), "it does not start:\n{}", daemon.log());
    check_fresh(&daemon, &lab.api);
    // A device's address may be among what was damaged; nobody knows it then.
    soon("what was salvaged is delivered", || {
        let status = daemon.status();
        status["pending"] == 0 || status["upload"]["devices_waiting"].as_u64() > Some(0)
    });
    check_books(&daemon);
    let mut came: HashMap<String, Vec<usize>> = HashMap::new();
    for row in lab.api.all_rows().into_iter().filter(|row| row.id > before && row.content != "still there?") {
        let mut words = row.content.split(' ');
        let session = words.next().expect("a word").to_owned();
        let number = words.nth(1).and_then(|number| number.parse().ok());
        let number: usize = number.unwrap_or_else(|| panic!("altered: {:?}", row.content));
        let content = format!("{session} message {number} {}", "नमस्ते ".repeat(number % 9));
        assert_eq!(row.content, content.trim_end(), "altered");
        came.entry(session).or_default().push(number);
    }
    assert!(came.values().all(|numbers| numbers.windows(2).all(|pair| pair[0] < pair[1])), "out of order or twice: {came:?}");
    assert_eq!(fs::read(&victim).expect("it is still there"), lab.sound[file], "a symlink was followed");
    let set_aside = fs::read_dir(daemon.store().join("corrupt")).map_or(0, Iterator::count) as u64;
    assert_eq!(set_aside, daemon.metric("stores_salvaged"), "what is set aside is counted");
    assert!(!daemon.log().contains("panicked"));
    let told = ["pending", "held", "rejected"].iter().map(|name| daemon.metric(name)).sum();
    Outcome { came, told }
}

#[test]
fn starts_with_any_bytes_in_the_store() {
    let lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: files_of_a_history("a"), foreign: files_of_a_history("b") };
    lab.api.register(MAC);
    let first_half: Vec<usize> = (0..EACH).collect();
    let all: Vec<usize> = (0..2 * EACH).collect();
    let cases = from_environment("CHAT_HISTORYD_TEST_DAMAGES", 20) as u32;
    let config = Config { cases, max_shrink_iters: 12, failure_persistence: None, ..Config::default() };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&Dice::new().below(u64::MAX).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let outcome = runner.run(&(0..3_usize, harm()), |(file, harm)| {
        let came = starts_with(&lab, file, &harm);
        let of = |session: usize| came.get(&format!("a{session}")).map_or(&[][..], Vec::as_slice);
        for session in 0..SESSIONS {
            match (FILES[file], &harm) {
                // SQLite's own index of the log: everything is in the other two.
                ("history.db-shm", _) => prop_assert_eq!(of(session), &all[..]),
                // Somebody else's pages, with sums that fit: they stand for ours as far as they go.
                ("history.db-wal", Harm::Foreign) => {}
                // The log ends where it is damaged; what was in the database before stays.
                ("history.db-wal", _) => prop_assert!(of(session).starts_with(&first_half), "{:?}", of(session)),
                _ => {}
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Found by the test above: damage that is met only while it runs. Deliveries during the salvage were not counted down
/// (`pending` never came to 0), and a backlog that could not be read waited for the next start.
#[test]
fn damage_met_while_it_runs_is_salvaged_delivered_and_counted_without_a_restart() {
    let lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: files_of_a_history("a"), foreign: vec![Vec::new(); 3] };
    lab.api.register(MAC);
    for flips in [vec![(932, 237), (487, 224), (483, 111)], vec![(487, 224)], vec![(932, 237)]] {
        starts_with(&lab, 0, &Harm::Flip(flips));
    }
    starts_with(&lab, 0, &Harm::Truncate(824));
}

/// SQLite takes a log for ended where a byte of it is wrong: all acknowledged lines behind would be gone without a word.
#[test]
fn a_flipped_byte_in_the_log_is_seen_and_what_stands_behind_it_survives() {
    let lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: files_of_a_history("a"), foreign: vec![Vec::new(); 3] };
    lab.api.register(MAC);
    let frame = page_bytes(&lab.sound[0]) + 24;
    let frames = (lab.sound[1].len() - 32) / frame;
    // In the header, in the header of a frame, in a page.
    for place in [17, 32 + frames / 3 * frame + 9, 32 + frames / 2 * frame + 17, 32 + frames / 4 * frame + 2000] {
        let mut sound = lab.sound.clone();
        sound[1][place] ^= 4;
        let harmed = Lab { api: ManagerApi::start(Variant::Upstream), sound, foreign: lab.foreign.clone() };
        harmed.api.register(MAC);
        let came = starts_with(&harmed, 1, &Harm::None);
        let (all, of): (Vec<usize>, _) = ((0..2 * EACH).collect(), |session: usize| came.get(&format!("a{session}")).cloned());
        for session in 0..SESSIONS {
            assert_eq!(of(session).as_ref(), Some(&all), "byte {place} of {frames} frames");
        }
    }
}

/// The database itself is sound there: left alone without its log for a moment, it must not be taken for the whole store.
#[test]
fn a_damaged_store_survives_a_kill_and_an_error_at_every_step_of_being_set_aside() {
    if !disk::strace_works() {
        return;
    }
    let mut lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: files_of_a_history("a"), foreign: vec![Vec::new(); 3] };
    lab.api.register(MAC);
    let frame = page_bytes(&lab.sound[0]) + 24;
    let frames = (lab.sound[1].len() - 32) / frame;
    lab.sound[1][32 + frames / 3 * frame + 9] ^= 4;
    let all: Vec<usize> = (0..2 * EACH).collect();
    for what in ["signal=KILL", "error=EIO"] {
        // Index, log, database; then the rebuilt one is put in its place.
        for nth in 1..=4 {
            let lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: lab.sound.clone(), foreign: lab.foreign.clone() };
            lab.api.register(MAC);
            let Outcome { came, .. } = starts_after(&lab, 1, &Harm::None, |daemon| {
                daemon.set_wrapper(&disk::inject("rename,renameat,renameat2", &format!("{what}:when={nth}")));
                daemon.spawn();
                assert!(!comes_up(daemon), "{what} {nth}: nothing happened to it\n{}", daemon.log());
                daemon.kill9();
                daemon.set_wrapper(&[]);
            });
            for session in 0..SESSIONS {
                assert_eq!(came.get(&format!("a{session}")), Some(&all), "{what} {nth}");
            }
        }
    }
}

/// Not every file system keeps the order in which names changed: what the next step builds on is on the disk before it. What
/// a power cut leaves between two steps is then what a kill leaves there (the test above).
#[test]
fn each_step_of_setting_a_store_aside_is_on_the_disk_before_the_next() {
    if !disk::strace_works() {
        return;
    }
    let lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: files_of_a_history("a"), foreign: vec![Vec::new(); 3] };
    let mut daemon = Daemon::builder().api(&lab.api).prepare();
    fs::create_dir(daemon.store()).expect("the store's directory");
    for (name, bytes) in FILES.iter().zip(&lab.sound) {
        fs::write(daemon.store().join(name), bytes).expect("a file of the store");
    }
    fs::write(daemon.store().join(FILES[0]), "no database").expect("a file of the store");
    let trace = daemon.directory().join("trace");
    daemon.set_wrapper(&disk::trace("rename,renameat,renameat2,fsync,unlink,unlinkat", &trace));
    daemon.start();
    let place = fs::read_dir(daemon.store().join("corrupt")).expect("corrupt/").flatten().next().expect("a place").path();
    let trace = fs::read_to_string(trace).expect("the trace");
    let lines: Vec<&str> = trace.lines().filter(|line| line.contains("= 0")).collect();
    let step = |from: usize, what: &str| {
        let found = lines.iter().skip(from).position(|line| line.contains(what));
        from + found.unwrap_or_else(|| panic!("{what} does not follow line {from}:\n{trace}"))
    };
    let aside = |name: &str| format!("\", \"{}\"", place.join(name).display());
    let steps = [
        step(0, &aside("history.db-wal")),
        step(0, &aside("history.db")),
        step(0, &format!("salvage\", \"{}\"", daemon.store().join("history.db").display())),
        step(0, &format!("{}\"", place.join("unfinished").display())),
    ];
    let mut begin = 0;
    for (index, end) in steps.into_iter().enumerate() {
        assert!(begin <= end, "step {index} comes too early:\n{trace}");
        let is_synced = |directory: &Path| {
            let what = format!("<{}>)", directory.display());
            lines[begin..end].iter().any(|line| line.contains("fsync(") && line.contains(&what))
        };
        // The last one only ends what is done: the place itself has not changed since.
        assert!(is_synced(&daemon.store()), "the store's directory, before step {index}:\n{trace}");
        assert!(index == 3 || is_synced(&place), "the place, before step {index}:\n{trace}");
        begin = end;
    }
    assert!(step(0, &format!("<{}>)", daemon.store().join("corrupt").display())) < steps[0], "{trace}");
}

/// A page that is gone takes its own messages along and no others.
#[test]
fn one_zeroed_page_costs_its_own_messages_only() {
    let lab = Lab { api: ManagerApi::start(Variant::Upstream), sound: files_of_a_history("a"), foreign: vec![Vec::new(); 3] };
    lab.api.register(MAC);
    let page_bytes = page_bytes(&lab.sound[0]);
    let pages = lab.sound[0].len() / page_bytes;
    let mut least = usize::MAX;
    for page in (0..pages).step_by((pages / 6).max(1)) {
        let mut sound = lab.sound.clone();
        sound[0][page * page_bytes..(page + 1) * page_bytes].fill(0);
        let harmed = Lab { api: ManagerApi::start(Variant::Upstream), sound, foreign: lab.foreign.clone() };
        harmed.api.register(MAC);
        let came: usize = starts_with(&harmed, 0, &Harm::None).values().map(Vec::len).sum();
        least = least.min(came);
    }
    eprintln!("of {} messages, {least} at least survive the loss of one page", 2 * EACH * SESSIONS);
    assert!(least * 2 >= 2 * EACH * SESSIONS, "{least} survived");
}

#[test]
fn what_a_salvage_leaves_behind_is_told() {
    for is_damaged in [false, true] {
        let mut daemon = Daemon::builder().set("backup.enabled", "false").start();
        let mut producer = Producer::connected(&daemon, MAC, "s");
        for content in ["the first", "the second", "the third"] {
            producer.say(1, content);
        }
        producer.wait_until_acked();
        assert!(daemon.term(SOON).success());
        let path = daemon.store().join("history.db");
        let mut database = fs::read(&path).expect("the database");
        // It is salvaged in either case.
        database[..16].fill(0);
        if is_damaged {
            let at = database.windows(10).position(|bytes| bytes == b"the second").expect("the second message");
            database[at] ^= 4;
        }
        fs::write(&path, database).expect("the database");
        daemon.start();
        let log = daemon.log();
        let damaged = format!("messages_damaged={}", u8::from(is_damaged));
        for field in [&damaged, "messages_without_session=0", "held_without_session=0", "sessions_lost=0"] {
            assert!(log.contains(field), "{field}: {log}");
        }
        assert_eq!(log.contains("the rest stands there alone, keep it"), is_damaged, "{log}");
        assert_eq!(daemon.metric("messages_salvaged"), 3 - u64::from(is_damaged));
    }
}

/// An identity that is none was passed over, so that its session waited for ever; one that is another device's sent it there;
/// and what an entry of an index did not show was never sent. Nobody was told of any of it.
#[test]
fn after_one_flipped_bit_every_message_arrives_or_is_told_of() {
    let mut lab =
        Lab { api: ManagerApi::start(Variant::Upstream), sound: files_in_the_database("a"), foreign: vec![Vec::new(); 3] };
    lab.api.register(MAC);
    let page_bytes = page_bytes(&lab.sound[0]);
    // Both copies of each identity.
    let identities: Vec<usize> =
        (0..lab.sound[0].len() - MAC.len()).filter(|at| lab.sound[0][*at..].starts_with(MAC.as_bytes())).collect();
    assert!(identities.len() >= 2 * SESSIONS, "{identities:?}");
    let mut places: Vec<(usize, u8)> = Vec::new();
    for at in identities {
        places.extend([(at, 1), (at + 2, 2), (at + 6, 0x20)]);
    }
    // The index that messages are sent by: on the last bytes of its page the entries that came first, of the session 1 and the
    // rows 1 and 2.
    let index = root_page(&lab.sound[0], "messages_by_session") * page_bytes;
    places.extend([(index - 2, 1), (index - 3, 1), (index - 7, 1), (index - 6, 1)]);
    let mut dice = Dice::new();
    for _ in 0..from_environment("CHAT_HISTORYD_TEST_DAMAGES", 10) {
        let at = dice.below(lab.sound[0].len() as u64) as usize;
        // Where not every harm is seen before the whole of it is read (`history check`).
        if !(index - page_bytes..index).contains(&at) {
            places.push((at, 1 << dice.below(8)));
        }
    }
    for (at, bit) in places {
        lab.sound[0][at] ^= bit;
        let Outcome { came, told } = starts_after(&lab, 0, &Harm::None, |_| {});
        lab.sound[0][at] ^= bit;
        let came: usize = came.values().map(Vec::len).sum();
        let all = 2 * EACH * SESSIONS;
        assert_eq!(
            came + told as usize,
            all,
            "bit {bit} of byte {} of page {}: {came} came",
            at % page_bytes,
            at / page_bytes + 1
        );
    }
}

/// What stands behind a cursor counts as delivered: a wrong one hid messages for good.
#[test]
fn after_a_flipped_bit_in_a_cursor_nothing_counts_as_delivered_that_was_not() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("backup.enabled", "false").start();
    for half in 0..2 {
        for session in 0..SESSIONS {
            let mut producer = Producer::connected(&daemon, MAC, &format!("a{session}"));
            for index in half * EACH..(half + 1) * EACH {
                producer.say(1, &format!("a{session} message {index} {}", "नमस्ते ".repeat(index % 9)));
            }
            producer.wait_until_acked();
        }
        if half == 0 {
            soon("the first half is delivered", || daemon.metric("pending") == 0);
            daemon.set("manager_api.url", "'http://127.0.0.1:1/toy'");
        }
        daemon.restart();
    }
    daemon.kill9();
    let sound = FILES.iter().map(|name| fs::read(daemon.store().join(name)).expect("a file of the store")).collect();
    let mut lab = Lab { api, sound, foreign: vec![Vec::new(); 3] };
    // A row of cursors, less its session, which is its key: row, no offset, time of the last report.
    let end = root_page(&lab.sound[0], "cursors") * page_bytes(&lab.sound[0]);
    let start = end - page_bytes(&lab.sound[0]);
    let header = [5, 0, 1, 8, 5];
    let place = |row: u8| {
        let page = &lab.sound[0][start..end];
        let at = page.windows(6).position(|bytes| bytes[..5] == header && bytes[5] == row);
        start + 5 + at.unwrap_or_else(|| panic!("no cursor at row {row}: {page:?}"))
    };
    // To rows of another session, and to one that was never given out.
    let flips = [(place(15), 64), (place(30), 1), (place(45), 64)];
    for (at, bit) in flips {
        lab.sound[0][at] ^= bit;
        let Outcome { came, .. } = starts_after(&lab, 0, &Harm::None, |_| {});
        lab.sound[0][at] ^= bit;
        for session in 0..SESSIONS {
            let came = &came[&format!("a{session}")];
            assert!(came.ends_with(&(EACH..2 * EACH).collect::<Vec<_>>()), "{bit}: session {session}: {came:?}");
        }
    }
}

/// The index alone was asked which session it is, and what a child said went into the history of another one.
#[test]
fn what_is_said_in_a_session_whose_index_shows_another_one_stays_its_own() {
    let mut lab =
        Lab { api: ManagerApi::start(Variant::Upstream), sound: files_in_the_database("a"), foreign: vec![Vec::new(); 3] };
    lab.api.register(MAC);
    // An entry of the index of identities ends with the session's key.
    let entry = [MAC.as_bytes(), b"a1", &[2]].concat();
    let at = lab.sound[0].windows(entry.len()).position(|bytes| bytes == entry).expect("the entry of a1") + entry.len() - 1;
    lab.sound[0][at] ^= 1;
    // Without a server no backlog is looked through, which would find it before.
    let mut daemon = Daemon::builder().set("backup.enabled", "false").prepare();
    fs::create_dir(daemon.store()).expect("the store's directory");
    for (name, bytes) in FILES.iter().zip(&lab.sound) {
        fs::write(daemon.store().join(name), bytes).expect("a file of the store");
    }
    daemon.start();
    let mut producer = Producer::connected(&daemon, MAC, "a1");
    producer.say(1, "a1 message 30 ");
    producer.wait_until_acked();
    assert_eq!(daemon.metric("stores_salvaged"), 1);
    let shown = |session: &str| history::text(&daemon, &["history", "show", session]);
    assert!(!shown("a2").contains("a1 message"), "{}", shown("a2"));
    let own = shown("a1");
    assert!(own.contains("a1 message 29") && own.contains("a1 message 30"), "{own}");
}

/// Nothing else of such a session is looked at before: it has no backlog.
#[test]
fn a_rejected_message_goes_to_no_other_device_when_it_is_tried_again() {
    let api = ManagerApi::start(Variant::Upstream);
    let mut daemon = Daemon::builder()
        .api(&api)
        .set("backup.enabled", "false")
        .set("upload.unknown_device_retry", "'1s'")
        .set("upload.unknown_device_hold", "'1s'")
        .start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "private");
    producer.wait_until_acked();
    producer.agent().end();
    soon("it is given up", || daemon.labelled("rejected", "device_not_registered") == 1);
    daemon.restart();
    daemon.kill9();
    let path = daemon.store().join(FILES[0]);
    let mut database = fs::read(&path).expect("the database");
    // In the row of the session its start stands behind the identity, whose first byte is 1; in the index nothing of a session 1.
    let row = [MAC.as_bytes(), b"s", &[1]].concat();
    let at = database.windows(row.len()).position(|bytes| bytes == row).expect("the row");
    database[at + MAC.len() - 1] ^= 1;
    let another = String::from_utf8(database[at..at + MAC.len()].to_vec()).expect("an address");
    fs::write(&path, database).expect("the database");
    api.register(&another);
    daemon.start();
    let output = history::run(&daemon, &["rejected", "retry", "1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(73) && said.contains("history check"), "{said}");
    // Nothing proves one of its two devices.
    assert_eq!(history::run(&daemon, &["history", "check"]).status.code(), Some(70));
    assert_eq!((daemon.metric("stores_salvaged"), daemon.metric("messages_left_behind")), (1, 1));
    check_fresh(&daemon, &api);
    assert!(api.all_rows().iter().all(|row| row.mac != another), "{another}: {:?}", api.all_rows());
}

/// Each salvage wrote the cursor again that had led to it: tens of copies of the store within seconds, and nothing was sent.
#[test]
fn a_wrong_cursor_leads_to_no_salvage_after_another() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("backup.enabled", "false").start();
    let say = |daemon: &Daemon, session: &str, count: usize| {
        let mut producer = Producer::connected(daemon, MAC, session);
        for index in 0..count {
            producer.say(1, &format!("{session} {index}"));
        }
        producer.wait_until_acked();
    };
    say(&daemon, "a", 3);
    soon("it is delivered", || daemon.metric("pending") == 0);
    api.stop();
    say(&daemon, "b", 4);
    say(&daemon, "c", 1);
    daemon.restart();
    daemon.kill9();
    let connection = rusqlite::Connection::open(daemon.store().join(FILES[0])).expect("the database");
    assert_eq!(connection.execute("UPDATE cursors SET session = 3", []).expect("the cursor"), 1);
    // A salvage for another reason believes it no more than the daemon does.
    for damage in [None, Some("UPDATE sessions SET mac = 'nobody' WHERE id = 2")] {
        if let Some(damage) = damage {
            connection.execute("UPDATE cursors SET session = 3", []).expect("the cursor");
            connection.execute(damage, []).expect("the session");
        }
        daemon.start();
        soon("it has looked through its backlog", || daemon.log().matches("cannot connect").count() > 0);
        let salvaged = u64::from(damage.is_some());
        soon("what is to be salvaged is salvaged", || daemon.metric("stores_salvaged") == salvaged);
        always(Duration::from_millis(1500), "none follows", || daemon.metric("stores_salvaged") == salvaged);
        assert_eq!(history::run(&daemon, &["history", "check"]).status.code(), Some(0));
        assert_eq!(daemon.metric("stores_salvaged"), salvaged);
        daemon.kill9();
    }
    drop(connection);
    api.start_again();
    daemon.start();
    soon("all is sent", || daemon.metric("pending") == 0);
    assert_eq!((api.rows("b").len(), api.rows("c").len()), (0, 1));
}
