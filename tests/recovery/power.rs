//! Power cuts: the file system stops in the middle of whatever was going on, and what was not synced is gone.

use std::time::{Duration, Instant};

use super::{Dice, MAC, comes_up, from_environment};
use crate::support::eventually::SOON;
use crate::support::loop_disk::{Journaled, LoopDisk, store_on};
use crate::support::{Daemon, ManagerApi, Oracle, Producer, Variant, disk, eventually, soon};

/// Stops the daemon between two instructions, cuts the power, and lets the machine come up again. The daemon does not
/// start by itself. A signal is only on its way when `kill` returns, and a sync that this way of cutting the power overtakes
/// may say that it was done: nobody may hear of it.
fn cut(daemon: &mut Daemon, disk: &LoopDisk) {
    if daemon.is_running() {
        daemon.try_signal("STOP");
        soon("every thread stands still, or waits for the disk", || {
            daemon.thread_states().iter().all(|state| "TD".contains(*state))
        });
    }
    disk.cut_power();
    daemon.kill9();
    disk.power_on();
}

/// Producers speak for a random while, and the power goes. With no API to deliver to, all that is acknowledged stands on
/// the disk alone. The number of lines that were acknowledged and are not there any more.
fn lines_lost(daemon: &mut Daemon, disk: &LoopDisk, rounds: u64) -> (u64, u64, Vec<Producer>) {
    let mut dice = Dice::new();
    let mut producers: Vec<Producer> = (0..3).map(|index| Producer::connected(daemon, MAC, &format!("s{index}"))).collect();
    let (mut acked, mut lost) = (0, 0);
    for round in 0..rounds {
        let instant = Instant::now() + Duration::from_millis(20) + Duration::from_micros(dice.below(100_000));
        let mut said = 0;
        while Instant::now() < instant {
            if said < 30 {
                for producer in &mut producers {
                    producer.say(1, &format!("round {round}, message {said}"));
                }
                said += 1;
            }
            std::thread::yield_now();
        }
        cut(daemon, disk);
        producers.iter_mut().for_each(Producer::disconnect);
        daemon.start();
        for producer in &mut producers {
            let known = producer.resume(daemon);
            acked += producer.acked();
            lost += producer.acked().saturating_sub(known);
        }
    }
    (acked, lost, producers)
}

#[test]
fn a_power_cut_at_a_random_instant_keeps_what_was_acked() {
    for kind in [Journaled::Ext4, Journaled::Xfs] {
        let Some(disk) = LoopDisk::mount(kind) else { return };
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        let builder = Daemon::builder().api(&api).set("store.directory", &store_on(&disk.path())).wrapper(&disk.wrapper());
        let mut daemon = builder.start();
        let mut oracle = Oracle::default();
        api.stop();
        let rounds = from_environment("CHAT_HISTORYD_TEST_POWER_CUTS", 6);
        let (acked, lost, mut producers) = lines_lost(&mut daemon, &disk, rounds);
        eprintln!("{kind:?}: {rounds} power cuts, {acked} lines acknowledged before them (counted at each), {lost} of them lost");
        assert_eq!(lost, 0, "{kind:?}: fsync means fsync");
        api.start_again();
        for producer in &mut producers {
            producer.wait_until_acked();
            oracle.owe(producer);
        }
        eventually(SOON * 4, "the backlog is delivered", || (daemon.metric("pending") == 0).then_some(()));
        oracle.check(&daemon, &api);
        assert!(!daemon.log().contains("damaged"), "{kind:?}: a power cut damages nothing");
    }
}

/// The proof that the test above can fail: without syncs the same cuts lose lines, and still damage nothing.
#[test]
fn without_syncs_a_power_cut_loses_something() {
    let Some(disk) = LoopDisk::mount(Journaled::Ext4) else { return };
    let builder = Daemon::builder().set("store.durability", "'os'").set("store.directory", &store_on(&disk.path()));
    let mut daemon = builder.wrapper(&disk.wrapper()).start();
    let (acked, lost, _producers) = lines_lost(&mut daemon, &disk, 4);
    eprintln!("durability os: 4 power cuts, {acked} lines acknowledged before them (counted at each), {lost} of them lost");
    assert!(lost > 0, "durability = \"os\" lost nothing: these power cuts prove nothing");
    assert!(!daemon.log().contains("damaged"), "what is there is whole");
}

#[test]
fn a_power_cut_at_any_sync_keeps_what_was_acked() {
    if !disk::strace_works() {
        return;
    }
    let stride = if from_environment("CHAT_HISTORYD_TEST_EVERY_CALL", 0) > 0 { 1 } else { 4 };
    let mut nth = 1;
    loop {
        // The death comes as the call begins: what it would have synced is not.
        let Some(disk) = LoopDisk::mount(Journaled::Ext4) else { return };
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        let mut words = disk.wrapper();
        words.extend(disk::inject("fdatasync,fsync", &format!("signal=KILL:when={nth}")));
        let mut daemon = Daemon::builder().api(&api).set("store.directory", &store_on(&disk.path())).wrapper(&words).prepare();
        let mut producer = Producer::new(MAC, "s");
        daemon.spawn();
        let finished = super::scripted_run(&mut daemon, &mut producer);
        producer.disconnect();
        disk.cut_power();
        daemon.kill9();
        disk.power_on();
        daemon.set_wrapper(&disk.wrapper());
        daemon.spawn();
        assert!(comes_up(&mut daemon), "after a cut at sync {nth} it does not start:\n{}", daemon.log());
        producer.connect(&daemon);
        producer.wait_until_acked();
        let mut oracle = Oracle::default();
        oracle.owe(&producer);
        // Two of a session being sent; and what was delivered may stand in a cursor that the cut took.
        oracle.allow_duplicates(2);
        oracle.check(&daemon, &api);
        assert!(!daemon.log().contains("damaged"), "sync {nth}: a power cut damages nothing");
        if finished {
            eprintln!("power cut at every {stride}. sync until sync {nth}, where the run completed");
            return;
        }
        nth += stride;
        assert!(nth < 1000, "the run never ends");
    }
}
