//! `kill -9` at any instant loses nothing acknowledged and damages nothing.

use std::time::{Duration, Instant};

use crate::support::eventually::SOON;
use crate::support::{Agent, Daemon, ManagerApi, Oracle, Producer, Variant, disk, eventually};

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

    fn below(&mut self, limit: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[test]
fn survives_random_kills() {
    let rounds = std::env::var("CHAT_HISTORYD_TEST_KILLS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
    let mut dice = Dice::new();
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..4).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for round in 0..rounds {
        let instant = Instant::now() + Duration::from_micros(dice.below(120_000));
        let mut said = 0;
        while Instant::now() < instant {
            // As fast as it goes, up to what the stand-in can store within the test's patience.
            if said < 60 {
                for producer in &mut producers {
                    producer.say(1 + (said % 2) as u8, &format!("round {round}, message {said}"));
                }
                said += 1;
            }
            std::thread::yield_now();
        }
        oracle.before_kill(&daemon, 4);
        daemon.kill9();
        daemon.start();
        for producer in &mut producers {
            producer.connect(&daemon);
        }
    }
    for producer in &mut producers {
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    eventually(SOON * 4, "the backlog is delivered", || (daemon.metric("pending") == 0).then_some(()));
    oracle.check(&daemon, &api);
}

#[test]
fn survives_sigkill_at_every_sync() {
    if !disk::strace_works() {
        return;
    }
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    let mut producers = Vec::new();
    for (calls, upto) in [("fdatasync,fsync", 6), ("pwrite64", 16)] {
        for nth in 1..=upto {
            daemon.term(SOON);
            daemon.set_wrapper(&disk::inject(calls, &format!("signal=KILL:when={nth}")));
            daemon.spawn();
            let mut producer = Producer::new(MAC, &format!("{calls}-{nth}"));
            // It dies somewhere between its first breath and our last word.
            let mut agent = None;
            let alive = eventually(SOON, "it answers or dies", || {
                if !daemon.is_running() {
                    return Some(false);
                }
                agent = Agent::dial(&daemon.socket()).filter(|_| daemon.is_running());
                agent.as_mut().is_some_and(Agent::is_answered).then_some(true)
            });
            if alive && producer.try_connect(&daemon) {
                for index in 0..200 {
                    producer.say(1, &format!("{calls} {nth}, message {index}"));
                    let said = producer.said().len() as u64;
                    eventually(SOON, "an ack or the end", || (producer.acked() >= said || !daemon.is_running()).then_some(()));
                    if !daemon.is_running() {
                        break;
                    }
                }
            }
            producer.disconnect();
            oracle.before_kill(&daemon, 1);
            daemon.kill9();
            daemon.set_wrapper(&[]);
            daemon.start();
            producer.connect(&daemon);
            producer.wait_until_acked();
            producers.push(producer);
        }
    }
    for producer in &producers {
        oracle.owe(producer);
    }
    oracle.check(&daemon, &api);
}
