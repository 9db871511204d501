//! Ten thousand of everything, no room, no descriptors, slow clients: every bound holds, and what was refused comes back.
//!
//! Sizes are asserted, times are printed. `CHAT_HISTORYD_BINARY` measures another build than the tests' own.

mod fast_api;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::clock;
use crate::support::daemon::binary;
use crate::support::disk::{Injection, strace_works};
use crate::support::eventually::{SOON, always};
use crate::support::oracle::check_fresh;
use crate::support::{Agent, Daemon, ManagerApi, Oracle, Producer, Variant, eventually, skipped, soon};
use fast_api::FastApi;

const MAC: &str = "68:25:dd:ba:39:78";
const MEBIBYTE: u64 = 1 << 20;

/// Two crowds of ten thousand are more descriptors than one process may have.
static CROWD: Mutex<()> = Mutex::new(());

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// Lets a process open so many descriptors; whether it may.
fn allow_descriptors(pid: u32, count: u64) -> bool {
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={count}:{count}")]).status();
    status.is_ok_and(|status| status.success())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MEBIBYTE as f64)
}

/// Time on the CPU, in clock ticks (10 ms).
fn cpu_ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// One message of a bound session.
fn line_of(seq: u64) -> String {
    json!({ "type": "message", "seq": seq, "chat_type": 1, "content": "one of ten thousand" }).to_string()
}

/// Reads from a connection until this text came.
fn read_until(stream: &mut UnixStream, wanted: &str) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut heard = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&heard).contains(wanted) {
        let count = stream.read(&mut chunk).unwrap_or_else(|error| panic!("waiting for {wanted}: {error}"));
        assert!(count > 0, "closed before {wanted}: {}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&chunk[..count]);
    }
}

#[test]
fn ten_thousand_connections_and_sessions_have_their_price() {
    const COUNT: usize = 10_000;
    let _alone = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    if !allow_descriptors(std::process::id(), 20_000) {
        return skipped("no 20 000 descriptors here");
    }
    // The uploader has its part of the memory, also while nobody answers it.
    let api = ManagerApi::start(Variant::Fork);
    api.stop();
    let daemon = Daemon::builder().api(&api).set("socket.max_connections", &COUNT.to_string());
    let daemon = daemon.set("log.level", "'warn'").start();
    assert!(allow_descriptors(daemon.pid(), 20_000));
    soon("the first connections are gone", || daemon.status()["connections"] == 0);
    let before = daemon.rss();
    let mut clients: Vec<UnixStream> = (0..COUNT).map(|_| UnixStream::connect(daemon.socket()).expect("a connection")).collect();
    eventually(SOON, "all are served", || (daemon.status()["connections"] == COUNT).then_some(()));
    let idle = daemon.rss();

    let mut refused = UnixStream::connect(daemon.socket()).unwrap();
    read_until(&mut refused, "too_many_connections");

    // They come one after another, as conversations do; then all speak at the same moment.
    let started = Instant::now();
    for (chunk, some) in clients.chunks_mut(100).enumerate() {
        for (index, client) in some.iter_mut().enumerate() {
            let name = format!("s{}", chunk * 100 + index);
            let start = json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": name, "stream": name });
            client.write_all(format!("{start}\n{}\n", line_of(1)).as_bytes()).unwrap();
        }
        for client in some {
            read_until(client, "\"ack\",\"seq\":1");
        }
    }
    let came = started.elapsed();
    assert_eq!(daemon.status()["sessions_open"], COUNT);
    let active = daemon.rss();
    let started = Instant::now();
    for client in &mut clients {
        client.write_all(format!("{}\n", line_of(2)).as_bytes()).unwrap();
    }
    for client in &mut clients {
        read_until(client, "\"ack\",\"seq\":2");
    }
    let (spoke, burst) = (started.elapsed(), daemon.rss());
    eprintln!(
        "10 000 connections: {} before, {} idle, {} with a session each ({came:.1?}), {} after all spoke at once ({spoke:.1?})",
        mebibytes(before),
        mebibytes(idle),
        mebibytes(active),
        mebibytes(burst)
    );
    assert!(idle <= 52 * MEBIBYTE, "{} for 10 000 idle connections", mebibytes(idle));
    assert!(active <= 88 * MEBIBYTE, "{} for 10 000 active sessions", mebibytes(active));
    // On top of what they cost come the lines on their way: four megabytes wait for the store at most.
    assert!(burst <= 96 * MEBIBYTE, "{} for 10 000 active sessions that spoke at once", mebibytes(burst));
    drop(clients);
    soon("all connections are closed", || daemon.status()["connections"] == 0);
    let mut agent = Agent::connect(&daemon);
    assert!(agent.is_answered(), "and new ones are served");
}

/// As after a restart, when all producers come back in the same moment.
#[test]
fn ten_thousand_sessions_may_begin_in_the_same_moment() {
    const COUNT: usize = 10_000;
    let _alone = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    if !allow_descriptors(std::process::id(), 20_000) {
        return skipped("no 20 000 descriptors here");
    }
    // The uploader has its part of the memory, also while nobody answers it.
    let api = ManagerApi::start(Variant::Fork);
    api.stop();
    let daemon = Daemon::builder().api(&api).set("socket.max_connections", &COUNT.to_string());
    let daemon = daemon.set("log.level", "'warn'").start();
    assert!(allow_descriptors(daemon.pid(), 20_000));
    soon("the first connections are gone", || daemon.status()["connections"] == 0);
    let mut clients: Vec<UnixStream> = (0..COUNT).map(|_| UnixStream::connect(daemon.socket()).expect("a connection")).collect();
    eventually(SOON, "all are served", || (daemon.status()["connections"] == COUNT).then_some(()));
    let started = Instant::now();
    for (index, client) in clients.iter_mut().enumerate() {
        let start = json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": format!("s{index}") });
        client.write_all(format!("{start}\n").as_bytes()).unwrap();
    }
    for client in &mut clients {
        read_until(client, "ready");
    }
    eprintln!("10 000 sessions that began at once: {} ({:.1?})", mebibytes(daemon.rss()), started.elapsed());
    assert_eq!(daemon.status()["sessions_open"], COUNT);
    assert!(daemon.rss() <= 96 * MEBIBYTE, "{} for 10 000 sessions", mebibytes(daemon.rss()));
}

#[test]
fn at_the_descriptor_limit_it_waits_and_recovers() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    api.register(MAC);
    producer.say(1, "before");
    producer.wait_until_acked();
    assert!(allow_descriptors(daemon.pid(), 64), "prlimit lowers a limit anywhere");
    let crowd: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(daemon.socket()).expect("queued by the kernel")).collect();
    soon("the limit is reached", || daemon.log().contains("connections cannot be accepted for now"));
    let (ticks, started) = (cpu_ticks(&daemon), Instant::now());
    always(Duration::from_secs(2), "those who are connected are served", || {
        let told = producer.acked();
        producer.say(1, "while the crowd waits");
        eventually(SOON, "an ack", || (producer.acked() > told).then_some(()));
        std::thread::park_timeout(Duration::from_millis(200));
        true
    });
    let share = (cpu_ticks(&daemon) - ticks) as f64 / (started.elapsed().as_secs_f64() * 100.0);
    eprintln!("at the descriptor limit: {:.1} % of a CPU", share * 100.0);
    assert!(share < 0.05, "{:.1} % of a CPU: it spins", share * 100.0);
    assert_eq!(daemon.log().matches("connections cannot be accepted for now").count(), 1, "said once, not for each try");
    drop(crowd);
    check_fresh(&daemon, &api);
    soon("it says that all is well", || daemon.log().contains("connections are accepted again"));
    let mut oracle = Oracle::default();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

#[test]
fn a_log_that_is_carried_over_at_the_descriptor_limit_is_no_failure_of_the_store() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    // With so small a limit the log is carried over every two megabytes.
    let daemon = Daemon::builder().api(&api).set("store.max_bytes", "'16 MiB'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "before");
    producer.wait_until_acked();
    assert!(allow_descriptors(daemon.pid(), 64), "prlimit lowers a limit anywhere");
    let crowd: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(daemon.socket()).expect("queued by the kernel")).collect();
    soon("the limit is reached", || daemon.log().contains("connections cannot be accepted for now"));
    let written = daemon.store().join("history.db");
    let before = std::fs::metadata(&written).unwrap().len();
    eventually(SOON * 4, "the log is carried into the database", || {
        for _ in 0..50 {
            producer.say(1, &format!("{} {}", producer.said().len(), "x".repeat(3000)));
        }
        producer.wait_until_acked();
        (std::fs::metadata(&written).unwrap().len() > before + 4_000_000).then_some(())
    });
    assert!(!daemon.log().contains("the store cannot be written"), "{}", daemon.log());
    drop(crowd);
    eventually(SOON * 4, "all is delivered", || (daemon.metric("pending") == 0).then_some(()));
    let mut oracle = Oracle::default();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

#[test]
fn more_connections_than_the_process_may_have_descriptors_are_warned_of_with_the_number_that_fits() {
    let limited = |most: u64| vec!["prlimit".to_owned(), format!("--nofile=64:{most}")];
    let told =
        |said: &str| said.lines().filter(|line| line.contains("connections do not fit")).map(str::to_owned).collect::<Vec<_>>();
    // 1 000 connections, 10 requests there and back, and what the daemon needs itself.
    for (most, fit) in [(1_147, Some("so 999 do")), (1_148, None)] {
        let settings = Daemon::builder().set("socket.max_connections", "1000").set("upload.concurrency", "10");
        let daemon = settings.wrapper(&limited(most)).start();
        let mut check = Command::new("prlimit");
        check.args(&limited(most)[1..]).arg(binary()).args(["--check-config", "--config"]).arg(daemon.config());
        let checked = check.output().unwrap();
        assert!(checked.status.success());
        for said in [daemon.log(), String::from_utf8(checked.stderr).unwrap()] {
            let told = told(&said);
            let named = |line: &String, words: &str| {
                line.contains("socket.max_connections: 1000 ") && line.contains(words) && line.contains("raise the limit to 1148")
            };
            assert!(fit.map_or(told.is_empty(), |words| told.len() == 1 && named(&told[0], words)), "{most}: {said}");
        }
    }
}

/// What a producer wrote before the stop is taken in, though there is a descriptor for it only when others are gone.
#[test]
fn who_waits_for_a_descriptor_at_a_stop_is_read_all_the_same() {
    const CROWD: usize = 200;
    let mut daemon = Daemon::builder().start();
    let mut idle = Agent::connect(&daemon);
    assert!(idle.is_answered());
    assert!(allow_descriptors(daemon.pid(), 64), "prlimit lowers a limit anywhere");
    let crowd: Vec<UnixStream> = (0..CROWD)
        .map(|index| {
            let mut stream = UnixStream::connect(daemon.socket()).expect("queued by the kernel");
            let line = json!({ "mac_address": MAC, "session_id": format!("s{index}"), "chat_type": 1, "content": "Hello" });
            writeln!(stream, "{line}").unwrap();
            stream
        })
        .collect();
    soon("the limit is reached", || daemon.log().contains("connections cannot be accepted for now"));
    assert!(daemon.term(SOON).success());
    drop(crowd);
    daemon.start();
    assert_eq!(daemon.metric("pending"), CROWD as u64, "{}", daemon.log());
}

#[test]
fn slowloris() {
    const SLOW: usize = 500;
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "warm");
    producer.wait_until_acked();
    let (fds, before) = (daemon.fd_count(), daemon.rss());
    let mut slow: Vec<UnixStream> = (0..SLOW).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    let line = format!("{{\"mac_address\":\"{MAC}\",\"session_id\":\"slow\",\"chat_type\":1,\"content\":\"at last\"}}\n");
    let bytes = line.as_bytes();
    for (sent, byte) in bytes[..bytes.len() - 1].iter().enumerate() {
        for client in &mut slow {
            client.write_all(&[*byte]).unwrap();
        }
        if sent % 20 == 0 {
            producer.say(1, &format!("beside {sent}"));
            producer.wait_until_acked();
        }
    }
    let (held, after) = (daemon.fd_count() - fds, daemon.rss());
    eprintln!("{SLOW} slow clients: {held} descriptors, {} more", mebibytes(after.saturating_sub(before)));
    assert!(held <= SLOW + 12, "{held} descriptors");
    assert!(after <= before + SLOW as u64 * 16 * 1024 + 4 * MEBIBYTE, "{} for {SLOW} short lines", mebibytes(after - before));
    for client in &mut slow {
        client.write_all(b"\n").unwrap();
    }
    assert_eq!(api.wait_for_rows("slow", SLOW).len(), SLOW, "slow is not wrong");
    drop(slow);
    let mut oracle = Oracle::default();
    oracle.owe(&producer);
    producer.disconnect();
    soon("their descriptors are free again", || daemon.fd_count() <= fds + 4);
    oracle.check(&daemon, &api);
}

/// The beginning of a line that nobody finishes, as far as the daemon takes it.
fn begin_a_long_line(daemon: &Daemon, bytes: usize) -> UnixStream {
    let mut client = UnixStream::connect(daemon.socket()).unwrap();
    client.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    // An error: it is held back.
    let _ = client.write_all(&vec![b'x'; bytes]);
    client
}

#[test]
fn clients_that_never_finish_a_long_line_share_one_memory_and_cost_the_others_nothing() {
    const COUNT: usize = 200;
    let daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "warm");
    producer.wait_until_acked();
    let before = daemon.rss();
    let crowd: Vec<UnixStream> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..COUNT).map(|_| scope.spawn(|| begin_a_long_line(&daemon, 3_900_000))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let after = daemon.rss();
    eprintln!("{COUNT} long lines that end nowhere: {} more", mebibytes(after.saturating_sub(before)));
    let bound = 64 * MEBIBYTE + COUNT as u64 * 96 * 1024 + 8 * MEBIBYTE;
    assert!(after <= before + bound, "{} for {COUNT} unfinished lines", mebibytes(after - before));
    producer.say(1, "beside them");
    producer.wait_until_acked();

    // All but so many as fill the memory twice go; those stay as long as they may.
    let crowd: Vec<UnixStream> = crowd.into_iter().take(40).collect();
    let long = "y".repeat(3_900_000);
    producer.say(1, &long);
    eventually(SOON, "its turn comes", || (producer.acked() == 3).then_some(()));
    assert!(daemon.labelled("refusals", "overloaded") > 0, "who held the memory was sent away");
    drop(crowd);
    soon("all of them are gone", || daemon.status()["connections"] == 1);
    assert_eq!(daemon.metric("pending"), 3);
}

/// A host with a hundred sessions has a line now and then: what it costs is mostly wake-ups.
#[test]
fn a_lone_line_wakes_the_intake_once_and_its_ack_wakes_it_not_at_all() {
    const LINES: u64 = 100;
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream("68:25:dd:ba:39:78", "s", "stream");
    let before = daemon.sleeps_of("intake");
    for seq in 1..=LINES {
        agent.text(&line_of(seq));
        agent.wait_for_ack(seq);
    }
    let woken = daemon.sleeps_of("intake") - before;
    // Half as many for whatever else the thread has to do.
    assert!(woken < LINES * 3 / 2, "{woken} times for {LINES} lines");
}

/// A sync that writes the times of the log, too, costs a journaling file system a second flush and twice the bytes.
#[test]
fn a_line_syncs_its_bytes_and_not_the_times_of_the_log() {
    if !strace_works() {
        return;
    }
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream("68:25:dd:ba:39:78", "s", "stream");
    let log = daemon.store().join("history.db-wal");
    let _refused = Injection::attach(daemon.pid(), "fsync", "error=EIO", &[&log]);
    for seq in 1..=3 {
        agent.text(&line_of(seq));
        agent.wait_for_ack(seq);
    }
    assert!(daemon.status()["store"]["failing"].is_null());
}

#[test]
fn a_stream_goes_on_after_more_of_them_than_its_session_remembers() {
    let daemon = Daemon::builder().set("log.level", "'warn'").start();
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream(MAC, "s", "stream");
    agent.text(&line_of(1));
    agent.wait_for_ack(1);
    for number in 0..1_100 {
        Agent::connect(&daemon).bind_stream(MAC, "s", &format!("another {number}"));
    }
    agent.text(&line_of(1));
    agent.text(&line_of(2));
    agent.wait_for_ack(2);
    assert_eq!((daemon.labelled("skipped", "duplicate"), daemon.metric("pending")), (1, 2));
}

#[test]
fn backpressure() {
    let mut daemon = Daemon::builder().set("log.level", "'warn'").start();
    let line =
        |seq: u64| json!({ "type": "message", "seq": seq, "chat_type": 1, "content": "x".repeat(1000) }).to_string() + "\n";
    let mut client = UnixStream::connect(daemon.socket()).unwrap();
    let start = json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "s", "stream": "flood" });
    client.write_all(format!("{start}\n").as_bytes()).unwrap();
    read_until(&mut client, "ready");
    client.set_nonblocking(true).unwrap();

    // A daemon that stands still costs the agent nothing until the kernel's buffer is full, and then an error at once.
    daemon.signal("STOP");
    let (mut seq, mut rest) = (0, Vec::new());
    let mut buffered = 0;
    let blocked = loop {
        seq += 1;
        let text = line(seq);
        let before = Instant::now();
        match client.write(text.as_bytes()) {
            Ok(count) => {
                buffered += count;
                rest = text.as_bytes()[count..].to_vec();
            }
            Err(error) => break (error.kind(), before.elapsed()),
        }
        if !rest.is_empty() {
            break (ErrorKind::WouldBlock, before.elapsed());
        }
    };
    assert_eq!(blocked.0, ErrorKind::WouldBlock);
    assert!(blocked.1 < Duration::from_millis(100), "the write itself took {:?}", blocked.1);
    assert!(buffered >= 64 * 1024, "only {buffered} bytes before EAGAIN");
    daemon.signal("CONT");
    if rest.is_empty() {
        // Nothing of the last line went out.
        seq -= 1;
    }

    // Faster than any disk, for forty megabytes: the daemon holds back the producer, not the lines.
    let before = daemon.rss();
    let mut most = before;
    client.set_nonblocking(false).unwrap();
    client.set_write_timeout(Some(SOON)).unwrap();
    client.write_all(&rest).unwrap();
    let last = seq + from_environment("CHAT_HISTORYD_TEST_FLOOD", 20_000);
    let started = Instant::now();
    for seq in seq + 1..=last {
        client.write_all(line(seq).as_bytes()).unwrap();
        if seq % 1000 == 0 {
            most = most.max(daemon.rss());
        }
    }
    read_until(&mut client, &format!("\"seq\":{last}"));
    eprintln!(
        "EAGAIN after {buffered} bytes; {} lines of 1 kB in {:.1?}, memory {} before and {} at most",
        last - seq,
        started.elapsed(),
        mebibytes(before),
        mebibytes(most)
    );
    assert!(most <= before + 40 * MEBIBYTE, "{} at most", mebibytes(most));
    assert!(daemon.term(SOON).success());
}

#[test]
fn store_limit() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("store.max_bytes", "'16 MiB'").set("log.level", "'info'").start();
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    let text = |what: &str, index: usize| format!("{what} {index} {}", "z".repeat(30_000));
    for index in 0..350 {
        producer.say(1, &text("delivered", index));
    }
    producer.wait_until_acked();
    eventually(SOON * 2, "all is delivered", || (daemon.metric("pending") == 0).then_some(()));
    // History leaves for what is new; what is not delivered stays, and at last nothing more is taken.
    api.stop();
    let mut index = 0;
    while producer.is_connected() {
        producer.say(1, &text("undelivered", index));
        index += 1;
        if index % 20 == 0 {
            let said = producer.said().len() as u64;
            eventually(SOON, "taken or refused", || (producer.acked() >= said || !producer.is_connected()).then_some(()));
        }
        assert!(index < 2000, "60 MB of undelivered messages in a store of 16 MiB");
    }
    let taken = daemon.metric("pending");
    let status = daemon.status();
    eprintln!(
        "16 MiB: {} delivered messages left early, {taken} undelivered of 30 kB are kept, {} bytes used, then `overloaded`",
        daemon.metric("messages_pruned"),
        status["store"]["used_bytes"]
    );
    assert_eq!(daemon.metric("messages_pruned"), 350, "every delivered one went first");
    assert!(taken >= 350, "only {taken} undelivered messages found room");
    assert_eq!(status["store"]["full"], true);
    assert_eq!(daemon.log().matches("the store is full of undelivered messages").count(), 1, "loud once");
    // The producer tries again and again meanwhile, and is refused each time without a hole.
    for _ in 0..3 {
        producer.come_back(&daemon);
        soon("it is sent away", || !producer.is_connected());
    }
    api.start_again();
    let last = producer.said().len() as u64;
    eventually(SOON * 3, "the stream resumes to its end", || {
        if !producer.is_connected() {
            producer.come_back(&daemon);
        }
        (producer.acked() >= last).then_some(())
    });
    oracle.owe(&producer);
    eventually(SOON * 3, "all is delivered", || (daemon.metric("pending") == 0).then_some(()));
    oracle.check(&daemon, &api);
    assert_eq!(daemon.status()["store"]["full"], false);
    let used = status["store"]["used_bytes"].as_u64().unwrap();
    assert!(used <= 18 * MEBIBYTE, "{used} bytes are used");
}

/// The full size by hand: `CHAT_HISTORYD_TEST_BACKLOG=1000000`.
#[test]
fn a_large_backlog_starts_at_once_and_drains() {
    const SESSIONS: u64 = 500;
    let count = from_environment("CHAT_HISTORYD_TEST_BACKLOG", 30_000);
    let mut daemon = Daemon::builder().set("log.level", "'info'").set("backup.enabled", "false").prepare();
    daemon.start();
    let mut client = UnixStream::connect(daemon.socket()).unwrap();
    let each = count / SESSIONS;
    let started = Instant::now();
    for session in 0..SESSIONS {
        let lines: String = (0..each)
            .map(|index| {
                format!("{{\"mac_address\":\"{MAC}\",\"session_id\":\"s{session}\",\"chat_type\":1,\"content\":\"message {index} {}\"}}\n", "w".repeat(100))
            })
            .collect();
        client.write_all(lines.as_bytes()).unwrap();
    }
    client.write_all(format!("{{\"type\":\"flush\",\"id\":\"f\",\"level\":\"durable\",\"timeout\":60,\"mac_address\":\"{MAC}\",\"session_id\":\"s0\"}}\n").as_bytes()).unwrap();
    read_until(&mut client, "flushed");
    eventually(SOON * 4, "all is durable", || (daemon.metric("pending") == each * SESSIONS).then_some(()));
    let intake = started.elapsed();
    daemon.kill9();

    let api = FastApi::start();
    daemon.set("manager_api.url", &format!("'{}'", api.url()));
    daemon.set("manager_api.secret", "'secret'");
    daemon.set("manager_api.report_time_unit", "'milliseconds'");
    let started = Instant::now();
    daemon.start();
    let start = started.elapsed();
    let mut most = daemon.rss();
    eventually(Duration::from_secs(60 + count / 300), "the backlog is drained", || {
        most = most.max(daemon.rss());
        (daemon.metric("pending") == 0).then_some(())
    });
    let drained = started.elapsed();
    eprintln!(
        "backlog of {count}: taken in {intake:.1?}, started in {start:.2?}, drained in {drained:.1?} ({:.0} a second), {} at most",
        count as f64 / drained.as_secs_f64(),
        mebibytes(most)
    );
    assert_eq!(api.reports(), each * SESSIONS, "each once");
    assert!(most <= 48 * MEBIBYTE, "{} at most", mebibytes(most));
}

#[test]
fn delivered_history_leaves_by_age_and_nothing_else_does() {
    const UNKNOWN: &str = "02:00:00:00:00:09";
    let Some(three_days_ago) = clock::faketime("-3d") else { return };
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("store.retention", "'1day'").prepare();
    // The uploader must not take thirty times the pace for thirty times the silence.
    daemon.set("manager_api.timeout", "'10min'");
    daemon.set("manager_api.connect_timeout", "'1min'");
    for (name, value) in &three_days_ago {
        daemon.set_environment(name, value);
    }
    daemon.start();
    let mut old = Producer::connected(&daemon, MAC, "old");
    let mut waiting = Producer::connected(&daemon, UNKNOWN, "waiting");
    for index in 0..20 {
        old.say(1, &format!("old {index}"));
        waiting.say(1, &format!("waiting {index}"));
    }
    [&mut old, &mut waiting].into_iter().for_each(Producer::wait_until_acked);
    soon("the old ones are delivered", || daemon.metric("delivered") == 20);
    [&mut old, &mut waiting].into_iter().for_each(Producer::disconnect);
    assert!(daemon.term(SOON).success());

    // Now, with a clock that runs thirty times as fast: the first pass is due a minute after the start.
    daemon.clear_environment();
    let fast = clock::faketime("+0 x30").expect("it was there before");
    fast.iter()
        .filter(|(name, _)| name != "FAKETIME_DONT_FAKE_MONOTONIC")
        .for_each(|(name, value)| daemon.set_environment(name, value));
    daemon.start();
    let mut young = Producer::connected(&daemon, MAC, "young");
    young.say(1, "young");
    young.wait_until_acked();
    eventually(SOON * 3, "the old ones have left", || (daemon.metric("messages_pruned") == 20).then_some(()));
    api.register(UNKNOWN);
    assert_eq!(api.wait_for_rows("waiting", 20).len(), 20, "undelivered messages stay, however old");
    assert_eq!(api.wait_for_rows("young", 1).len(), 1);
    assert_eq!(daemon.metric("messages_pruned"), 20);
}
