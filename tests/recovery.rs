//! `kill -9` at any instant, a power cut, any bytes in the store: nothing acknowledged is lost, and the daemon starts.

mod damage;
mod power;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::SOON;
use crate::support::{Agent, Daemon, ManagerApi, Oracle, Producer, Variant, disk, eventually, soon};

const MAC: &str = "68:25:dd:ba:39:78";

/// A small generator, so that a run can be repeated: set `CHAT_HISTORYD_TEST_SEED` to what the failure printed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("CHAT_HISTORYD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| crate::support::manager_api::now_ms() as u64);
        eprintln!("CHAT_HISTORYD_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// A number of the environment, for runs by hand that are longer than those of every day.
fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// Waits until the daemon answers; `false` when it died before.
fn comes_up(daemon: &mut Daemon) -> bool {
    eventually(SOON, "it answers or dies", || {
        if !daemon.is_running() {
            return Some(false);
        }
        Agent::dial(&daemon.socket()).is_some_and(|mut agent| agent.is_answered()).then_some(true)
    })
}

/// What a run of kills came to.
struct Toll {
    acked: u64,
    lost: u64,
    duplicates: u64,
}

impl Toll {
    fn count(producers: &[Producer], api: &ManagerApi) -> Self {
        let mut toll = Self { acked: 0, lost: 0, duplicates: 0 };
        for producer in producers {
            let stored: HashSet<String> = api.rows(&producer.session_id).into_iter().map(|row| row.content).collect();
            let acked = producer.said().iter().filter(|said| said.seq <= producer.acked());
            acked.for_each(|said| {
                toll.acked += 1;
                toll.lost += u64::from(!stored.contains(&said.content));
            });
        }
        let keys: Vec<String> = api.keys().into_values().collect();
        toll.duplicates = (keys.len() - keys.iter().collect::<HashSet<_>>().len()) as u64;
        toll
    }
}

/// `tests/kills` runs this one with a thousand rounds.
#[test]
fn survives_random_kills() {
    let rounds = from_environment("CHAT_HISTORYD_TEST_KILLS", 20);
    // So many that the stand-in can store them within the test's patience.
    let (most, patience) = ((4000 / rounds).clamp(6, 60), SOON * 4 + Duration::from_millis(200) * rounds as u32);
    let mut dice = Dice::new();
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    // So small that the log is carried over every two megabytes: kills fall into that, too.
    let mut daemon = Daemon::builder().api(&api).set("store.max_bytes", "'16 MiB'").start();
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..4).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    let mut killed_while_starting = 0;
    for round in 0..rounds {
        // Every fifth kill falls into an outage: then there is a backlog, and nothing but the store to hold it.
        if round % 5 == 3 {
            api.stop();
        }
        let instant = Instant::now() + Duration::from_micros(dice.below(120_000));
        let mut said = 0;
        while Instant::now() < instant {
            if said < most {
                for producer in &mut producers {
                    let length = if said % 4 == 0 { 3000 } else { 1 };
                    producer.say(1 + (said % 2) as u8, &format!("round {round}, message {said} {}", "x".repeat(length)));
                }
                said += 1;
            }
            std::thread::yield_now();
        }
        oracle.before_kill(&daemon, 4);
        daemon.kill9();
        if round % 3 == 1 {
            daemon.spawn();
            let instant = Instant::now() + Duration::from_micros(dice.below(60_000));
            while Instant::now() < instant {
                std::thread::yield_now();
            }
            oracle.before_kill(&daemon, 4);
            daemon.kill9();
            killed_while_starting += 1;
        }
        daemon.start();
        if round % 5 == 3 {
            api.start_again();
        }
        for producer in &mut producers {
            producer.connect(&daemon);
        }
    }
    for producer in &mut producers {
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    eventually(patience, "the backlog is delivered", || (daemon.metric("pending") == 0).then_some(()));
    let Toll { acked, lost, duplicates } = Toll::count(&producers, &api);
    let kills = rounds + killed_while_starting;
    eprintln!("kills {kills}, acked {acked}, lost {lost}, duplicates {duplicates}");
    oracle.check(&daemon, &api);
    assert_eq!(lost, 0);
    assert!(!daemon.log().contains("damaged"), "a kill damages nothing");
}

/// Many sessions with a single message each: those that were delivered just before the kill are no longer "being sent".
#[test]
fn a_kill_repeats_two_messages_for_each_turn_at_most_however_many_sessions_there_are() {
    const SESSIONS: usize = 300;
    let mut dice = Dice::new();
    for concurrency in [1, 4] {
        let api = ManagerApi::start(Variant::Upstream);
        api.register(MAC);
        api.stop();
        let daemon = Daemon::builder().api(&api).set("upload.concurrency", &concurrency.to_string());
        let mut daemon = daemon.set("upload.backoff_initial", "'10 ms'").start();
        let mut oracle = Oracle::new(&daemon);
        let mut agent = Agent::connect(&daemon);
        for index in 0..SESSIONS {
            let (session, content) = (format!("s{index}"), format!("the only message {index}"));
            agent.line(&json!({ "mac_address": MAC, "session_id": session, "chat_type": 1, "content": content }));
            oracle.owe_message(MAC, &session, 1, &content);
        }
        soon("all are taken in", || daemon.metric("received") == SESSIONS as u64);
        api.start_again();
        let wanted = 30 + dice.below(150);
        eventually(SOON, "some are delivered", || (api.row_count() >= wanted).then_some(()));
        oracle.before_kill(&daemon, 4 * concurrency);
        daemon.kill9();
        daemon.start();
        oracle.check(&daemon, &api);
    }
}

/// The calls that change files, in groups: strace counts them for each thread, so that a rare call is not hidden behind
/// a frequent one. Each with the stride that the run of every day takes; `CHAT_HISTORYD_TEST_EVERY_CALL=1` takes every one.
const CALLS: [(&str, u64); 4] = [
    ("fdatasync,fsync", 3),
    ("pwrite64", 17),
    ("ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,linkat,mkdir,fchmod", 2),
    ("write", 23),
];

/// A day in the life of a daemon: sentences, a held transcript, an end with its backup, an orderly stop. `true` when it
/// lived to the end of it.
fn scripted_run(daemon: &mut Daemon, producer: &mut Producer) -> bool {
    let told = |daemon: &mut Daemon, producer: &mut Producer, wanted: u64| {
        eventually(SOON, "an ack or the end", || {
            (producer.acked() >= wanted || !daemon.is_running() || producer.agent().is_closed()).then_some(())
        });
        daemon.is_running() && !producer.agent().is_closed()
    };
    if !comes_up(daemon) || !producer.try_connect(daemon) {
        return false;
    }
    for burst in [1, 5, 2, 7] {
        for index in 0..burst {
            producer.say(1 + (index % 2) as u8, &format!("burst of {burst}, message {index}"));
        }
        let wanted = producer.said().len() as u64;
        if !told(daemon, producer, wanted) {
            return false;
        }
    }
    let end = format!("{{\"type\":\"session_end\",\"reason\":\"hang-up\",\"seq\":{}}}\n", producer.said().len() + 1);
    let wanted = producer.said().len() as u64 + 1;
    if !producer.agent().try_raw(end.as_bytes()) || !told(daemon, producer, wanted) || !daemon.is_running() {
        return false;
    }
    // It may die of the stop's own calls, too.
    daemon.try_signal("TERM");
    daemon.wait(SOON).success()
}

#[test]
fn survives_sigkill_at_every_sync() {
    if !disk::strace_works() {
        return;
    }
    let every = from_environment("CHAT_HISTORYD_TEST_EVERY_CALL", 0) > 0;
    // strace counts for each thread: with a store that exists the opening one makes few calls, and the writer's first
    // ones are reached, too.
    for ((calls, stride), exists) in CALLS.into_iter().flat_map(|calls| [(calls, false), (calls, true)]) {
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        let stride = if every { 1 } else { stride };
        let mut nth = 1;
        let mut kills = 0;
        loop {
            // A new store each time: its making is part of what is killed.
            let mut daemon =
                Daemon::builder().api(&api).wrapper(&disk::inject(calls, &format!("signal=KILL:when={nth}"))).prepare();
            let mut oracle = Oracle::default();
            let mut producer = Producer::new(MAC, &format!("{}-{nth}", &calls[..5]));
            daemon.spawn();
            let finished = scripted_run(&mut daemon, &mut producer);
            producer.disconnect();
            daemon.kill9();
            oracle.allow_duplicates(2 * (kills + 1));
            daemon.set_wrapper(&[]);
            daemon.start();
            producer.connect(&daemon);
            producer.wait_until_acked();
            oracle.owe(&producer);
            oracle.check(&daemon, &api);
            assert!(!daemon.log().contains("damaged"), "{calls} {nth}: a kill damages nothing");
            if finished {
                break;
            }
            kills += 1;
            nth += stride;
            assert!(nth < 5000, "{calls}: the run never ends");
        }
        let store = if exists { "an old store" } else { "a new store" };
        eprintln!("{calls}, {store}: killed {kills} times, at every {stride}. call, until the run completed");
    }
}
