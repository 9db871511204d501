//! Birth, signals, clocks, supervisors and death of the real binary: one daemon a store, one a socket; told to go, it
//! goes in time and keeps what it acknowledged.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::binary;
use crate::support::disk::HANGS;
use crate::support::eventually::{SOON, always};
use crate::support::oracle::{arrived, check_books};
use crate::support::supervisor::Supervisor;
use crate::support::{
    Agent, Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Variant, clock, disk, eventually, guard, soon,
};

const MAC: &str = "68:25:dd:ba:39:78";

/// `upload.shutdown_grace` is 5 s; the rest is for a busy machine.
const IN_TIME: Duration = Duration::from_secs(12);

/// How a daemon that cannot start ends.
#[track_caller]
fn exit_of(mut daemon: Daemon) -> (Option<i32>, String) {
    daemon.spawn();
    let code = daemon.wait(SOON).code();
    (code, daemon.log())
}

#[track_caller]
fn wait_for_log(daemon: &Daemon, words: &str) {
    soon(&format!("the log says {words:?}"), || daemon.log().contains(words));
}

// ---- one daemon a store, one a socket ------------------------------------------------------------------------------

#[test]
fn second_instance_exits_75() {
    let first = Daemon::builder().start();
    let store = format!("'{}'", first.store().display());
    let (code, log) = exit_of(Daemon::builder().set("store.directory", &store).prepare());
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("another chat-historyd uses"), "{log}");
    let socket = format!("'{}'", first.socket().display());
    let (code, log) = exit_of(Daemon::builder().set("socket.path", &socket).prepare());
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("a daemon answers there"), "{log}");
    let mut producer = Producer::connected(&first, MAC, "s");
    producer.say(1, "the first one is untouched");
    producer.wait_until_acked();
}

#[test]
fn stale_socket() {
    let mut daemon = Daemon::builder().start();
    daemon.kill9();
    assert!(fs::symlink_metadata(daemon.socket()).unwrap().file_type().is_socket(), "a kill leaves the socket behind");
    daemon.start();
    let status = daemon.term(SOON);
    assert!(status.success());
    assert!(!daemon.socket().exists(), "an orderly end takes the socket along");
    assert!(!daemon.directory().join("run/status.sock").exists());
}

#[test]
fn a_live_socket_is_never_taken_over_not_even_from_somebody_who_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::builder().directory(directory.path()).prepare();
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(daemon.socket()).unwrap()).unwrap();
    socket.listen(0).unwrap();
    // The queue is full now: who connects and waits, waits for ever.
    let waiting = UnixStream::connect(daemon.socket()).unwrap();
    let inode = fs::metadata(daemon.socket()).unwrap().ino();
    let path = daemon.socket();
    let (code, log) = exit_of(daemon);
    assert_eq!(code, Some(75), "{log}");
    assert_eq!(fs::metadata(path).unwrap().ino(), inode);
    drop(waiting);
}

#[test]
fn a_start_that_fails_never_let_a_producer_in_and_leaves_no_socket() {
    if !disk::strace_works() {
        return;
    }
    let mut daemon = Daemon::builder().wrapper(&disk::inject("bind", "delay_exit=500000")).prepare();
    let precious = daemon.directory().join("precious");
    fs::write(&precious, "data").unwrap();
    daemon.set("status.socket", &format!("'{}'", precious.display()));
    daemon.spawn();
    let socket = daemon.socket();
    let mut let_in = false;
    while daemon.is_running() {
        let_in |= UnixStream::connect(&socket).is_ok();
    }
    assert_eq!(daemon.wait(SOON).code(), Some(73), "{}", daemon.log());
    assert!(!let_in, "what a producer had written would be lost");
    assert_eq!(fs::read_dir(daemon.directory().join("run")).unwrap().count(), 0, "no path stays behind");
}

#[test]
fn what_is_no_socket_is_never_removed() {
    for link in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::builder().directory(directory.path()).prepare();
        let precious = directory.path().join("precious");
        fs::write(&precious, "data").unwrap();
        if link {
            std::os::unix::fs::symlink(&precious, daemon.socket()).unwrap();
        } else {
            fs::rename(&precious, daemon.socket()).unwrap();
        }
        let path = daemon.socket();
        let (code, log) = exit_of(daemon);
        assert_eq!(code, Some(73), "{log}");
        assert!(log.contains("no socket and is left alone"), "{log}");
        assert_eq!(fs::read(path).unwrap(), b"data");
    }
}

#[test]
fn every_end_has_its_exit_code() {
    let run = |words: &[&str]| {
        let output = Command::new(binary()).args(words).env_clear().stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&["--nonsense"]).0, Some(64));
    assert_eq!(run(&["send", "--session", "s"]).0, Some(64));
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.sock").display().to_string();
    assert_eq!(run(&["status", "--socket", &missing]).0, Some(69));
    assert_eq!(run(&["send", "--socket", &missing, "--mac", MAC, "--session", "s", "hello"]).0, Some(69));
    for (key, value) in [
        ("socket.path", "'/dev/null/x/events.sock'"),
        ("store.directory", "'/dev/null/store'"),
        ("status.socket", "'/proc/no/status.sock'"),
    ] {
        let (code, log) = exit_of(Daemon::builder().set(key, value).prepare());
        assert_eq!(code, Some(73), "{key}: {log}");
        let place = Path::new(value.trim_matches('\''));
        let named = [Some(place), place.parent()].into_iter().flatten().any(|place| log.contains(&place.display().to_string()));
        assert!(named, "{key}: the place is named: {log}");
    }
    let (code, log) = exit_of(Daemon::builder().set("session.batch_size", "0").set("upload.nonsense", "1").prepare());
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("session.batch_size") && log.contains("upload.nonsense"), "all problems at once: {log}");
    let mut daemon = Daemon::builder().start();
    assert_eq!(daemon.term(SOON).code(), Some(0));
}

// ---- SIGTERM -------------------------------------------------------------------------------------------------------

#[test]
fn sigterm_when_idle_ends_at_once() {
    let mut daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    let began = Instant::now();
    assert_eq!(daemon.term(SOON).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    agent.wait_for_close();
    assert!(agent.replies().iter().any(|reply| reply["type"] == "draining"), "{:?}", agent.replies());
}

#[test]
fn sigterm_in_the_middle_of_a_flood_keeps_what_was_acked_and_what_was_written_before() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("upload.shutdown_grace", "'1m'").start();
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..4).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for index in 0..600 {
        for producer in &mut producers {
            producer.say(1 + (index % 2) as u8, &format!("message {index}"));
        }
    }
    oracle.before_restart(&daemon);
    assert_eq!(daemon.term(SOON * 2).code(), Some(0));
    for producer in &mut producers {
        // What was in the socket before the signal was read, made durable and acknowledged.
        producer.agent().wait_for_close();
        assert_eq!(producer.acked(), 600);
        producer.disconnect();
        oracle.owe(producer);
    }
    assert_eq!(api.row_count(), 4 * 600, "the grace was long enough for all of it, and nothing came twice");
    daemon.start();
    oracle.check(&daemon, &api);
}

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
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
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("upload.shutdown_grace", "'1m'").set("manager_api.timeout", "'1m'").start();
    api.fault(Fault::HangBeforeHeaders);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "hello");
    producer.wait_until_acked();
    soon("the attempt hangs", || !api.reports().is_empty());
    daemon.signal("TERM");
    wait_for_log(&daemon, "stopping");
    always(Duration::from_secs(2), "it uses its grace", || daemon.is_running());
    let began = Instant::now();
    assert_eq!(daemon.term(SOON).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    api.clear_faults();
    daemon.start();
    assert_eq!(api.wait_for_rows("s", 1)[0].content, "hello");
}

/// Whether the process has a handler for this signal.
fn catches(signal: i32, pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim).unwrap_or_default();
    u64::from_str_radix(mask, 16).unwrap_or_default() & (1 << (signal - 1)) != 0
}

#[test]
fn sigterm_during_start_up_is_honoured() {
    if !disk::strace_works() {
        return;
    }
    let mut daemon = Daemon::builder().wrapper(&disk::inject("fdatasync,fsync", "delay_enter=20000000:when=1")).prepare();
    daemon.spawn();
    soon("it listens to signals", || catches(15, daemon.pid()));
    always(Duration::from_millis(300), "its store is still being opened", || !daemon.log().contains("ready"));
    let began = Instant::now();
    daemon.signal("TERM");
    wait_for_log(&daemon, "stopped while starting");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The tracer would hold the dead thread until its delay is over.
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map(str::trim).unwrap_or_default();
    let _ = Command::new("kill").args(["-s", "KILL", tracer]).status();
    assert_eq!(daemon.wait(SOON).code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_reload_asked_for_during_start_up_comes_after_it() {
    if !disk::strace_works() {
        return;
    }
    let mut daemon = Daemon::builder().wrapper(&disk::inject("fdatasync,fsync", "delay_enter=3000000:when=1")).prepare();
    daemon.spawn();
    soon("it listens to signals", || catches(1, daemon.pid()));
    always(Duration::from_millis(300), "its store is still being opened", || !daemon.log().contains("ready"));
    daemon.set("session.batch_size", "7");
    daemon.hup();
    assert!(!daemon.log().contains("ready"), "{}", daemon.log());
    wait_for_log(&daemon, "configuration reloaded");
    let log = daemon.log();
    assert!(log.find("ready") < log.find("session.batch_size"), "{log}");
    assert_eq!(log.matches("configuration reloaded").count(), 1, "{log}");
    assert!(daemon.is_running());
}

// ---- the clock -----------------------------------------------------------------------------------------------------

#[test]
fn clock_jumps() {
    let directory = tempfile::tempdir().unwrap();
    let wall = directory.path().join("wall");
    fs::write(&wall, "+0d").unwrap();
    let Some(clock) = clock::faketime_from(&wall) else { return };
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let builder = || Daemon::builder().api(&api).directory(directory.path()).environments(&clock);
    let mut daemon = builder().start();
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    let mut count = 0;
    let mut say = |producer: &mut Producer, what: &str| {
        for _ in 0..5 {
            producer.say(1 + u8::from(count % 2 == 1), &format!("message {count} {what}"));
            count += 1;
        }
        producer.wait_until_acked();
        count
    };
    for jump in ["+1y", "-1d", "@1970-01-02 00:00:00", "+0d"] {
        // While it runs and delivers …
        let so_far = say(&mut producer, "before the jump");
        fs::write(&wall, jump).unwrap();
        let so_far = so_far.max(say(&mut producer, "after the jump"));
        api.wait_for_rows("s", so_far);
        // … while it backs off (a retry that waited for the wall clock would wait a year) …
        api.stop();
        say(&mut producer, "in an outage");
        fs::write(&wall, "+0d").unwrap();
        soon("it was tried in vain", || daemon.status()["gate"]["state"] == "closed");
        fs::write(&wall, jump).unwrap();
        api.start_again();
        let so_far = say(&mut producer, "after an outage");
        api.wait_for_rows("s", so_far);
        // … and over a restart.
        oracle.before_restart(&daemon);
        daemon.restart();
        producer.connect(&daemon);
    }
    say(&mut producer, "at last");
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    let messages = arrived(&api, "s");
    assert_eq!(messages.len(), producer.said().len(), "no id was drawn twice");
    assert!(messages.windows(2).all(|pair| pair[0].created_at_ms < pair[1].created_at_ms), "every message has a time of its own");
}

// ---- the supervisor ------------------------------------------------------------------------------------------------

#[test]
fn ready_is_said_when_the_socket_accepts_and_not_before() {
    if !disk::strace_works() {
        return;
    }
    let supervisor = Supervisor::new();
    let mut daemon =
        supervisor.told_by(Daemon::builder()).wrapper(&disk::inject("fdatasync,fsync", "delay_enter=2000000:when=1")).prepare();
    let began = Instant::now();
    daemon.spawn();
    let heard = supervisor.wait_for("READY=1");
    assert!(began.elapsed() >= Duration::from_secs(2), "READY before the store was open: {heard:?}");
    assert!(heard.iter().any(|said| said.contains("EXTEND_TIMEOUT_USEC=")), "a long start says so: {heard:?}");
    let mut agent = Agent::connect(&daemon);
    assert!(agent.is_answered(), "at READY the socket accepts");
}

/// Also when the disk is slow: the store has more to write than it writes at once.
#[test]
fn what_is_said_in_the_last_moment_is_delivered_before_the_end() {
    if !disk::strace_works() {
        return;
    }
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("session.batch_size", "200").set("session.send_interval", "'1h'");
    let daemon = daemon.set("upload.shutdown_grace", "'30s'").wrapper(&disk::inject("fdatasync", "delay_enter=200000"));
    let mut daemon = daemon.start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    for index in 0..40 {
        agent.say(1, &format!("{index} {}", "word ".repeat(12_000)));
    }
    assert!(agent.is_answered(), "all of it is read");
    assert!(daemon.term(SOON).success());
    assert!(daemon.log().contains("stopped pending=0"), "{}", daemon.log());
    assert_eq!(api.rows("s").len(), 40);
}

#[test]
fn the_supervisor_is_told_of_reloads_status_progress_and_the_end() {
    let supervisor = Supervisor::new();
    let mut daemon = supervisor.fed_by(Daemon::builder().set("upload.shutdown_grace", "'100s'")).prepare();
    daemon.spawn();
    supervisor.wait_for("READY=1");
    assert!(supervisor.feedings(Duration::from_secs(3)) >= 5, "the watchdog is fed thrice a period");
    daemon.hup();
    let heard = supervisor.wait_for("RELOADING=1");
    assert!(heard.last().unwrap().contains("MONOTONIC_USEC="), "{heard:?}");
    supervisor.wait_for("READY=1");
    daemon.signal("TERM");
    supervisor.wait_for("STOPPING=1");
    assert_eq!(daemon.wait(SOON).code(), Some(0));
    let heard: Vec<String> = std::iter::from_fn(|| supervisor.hears(Duration::ZERO)).collect();
    let asked = heard.iter().filter_map(|said| said.trim().strip_prefix("EXTEND_TIMEOUT_USEC=")?.parse().ok());
    let asked: Vec<Duration> = asked.map(Duration::from_micros).collect();
    assert!(asked.len() == 2 && asked.iter().all(|time| *time > Duration::from_secs(100)), "delivery, then backups: {heard:?}");
}

#[test]
fn the_status_line_says_what_the_daemon_does() {
    let supervisor = Supervisor::new();
    let mut daemon = supervisor.told_by(Daemon::builder()).prepare();
    daemon.spawn();
    let end = Instant::now() + SOON;
    let line = loop {
        assert!(Instant::now() < end, "no status line");
        if let Some(said) = supervisor.hears(SOON).filter(|said| said.contains("STATUS=") && !said.contains("starting")) {
            break said;
        }
    };
    assert!(line.contains("no manager_api.url") && line.contains("0 pending"), "{line}");
}

#[test]
fn the_watchdog_goes_hungry_when_the_store_or_the_accept_loop_hangs() {
    if !disk::strace_works() {
        return;
    }
    for (calls, name) in [("fdatasync,fsync", "store"), ("accept4", "accept loop")] {
        let supervisor = Supervisor::new();
        let mut daemon = supervisor.fed_by(Daemon::builder()).prepare();
        daemon.spawn();
        supervisor.wait_for("READY=1");
        let mut agent = Agent::connect(&daemon);
        assert!(agent.is_answered());
        let slowness = disk::Injection::attach(daemon.pid(), calls, HANGS, &[]);
        let mut stuck = UnixStream::connect(daemon.socket()).unwrap();
        let line = json!({ "type": "message", "mac_address": MAC, "session_id": "s", "chat_type": 1, "content": "hello" });
        agent.line(&line);
        let _ = stuck.write_all(b"{}\n");
        // What was on its way when it began to hang may still come.
        supervisor.feedings(Duration::from_secs(1));
        assert_eq!(supervisor.feedings(Duration::from_secs(3)), 0, "the {name} hangs");
        drop(slowness);
        soon(&format!("the {name} works again and the watchdog is fed"), || supervisor.feedings(Duration::from_secs(1)) > 0);
    }
}

/// Lines from four producers until it is dropped, so that both threads of the runtime and the store are at work.
struct Traffic {
    stop: Arc<AtomicBool>,
    producers: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn for_(daemon: &Daemon) -> Self {
        Self::of(daemon, |index| {
            let session = format!("traffic-{index}");
            json!({ "type": "message", "mac_address": MAC, "session_id": session, "chat_type": 1, "content": "x" })
        })
    }

    fn of(daemon: &Daemon, line: impl Fn(u8) -> Value) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let produce = |index: u8| {
            let (stop, mut stream) = (Arc::clone(&stop), Agent::deaf(daemon));
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            let line = format!("{}\n", line(index));
            std::thread::spawn(move || {
                let mut rest = line.as_bytes();
                // A line that does not fit goes on where it was cut: a refused line would be another line of the log.
                while !stop.load(Ordering::Relaxed) {
                    rest = &rest[stream.write(rest).unwrap_or(0)..];
                    rest = if rest.is_empty() { line.as_bytes() } else { rest };
                }
            })
        };
        Self { producers: (0..4).map(produce).collect(), stop }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.producers.drain(..).for_each(|producer| drop(producer.join()));
    }
}

/// One thread takes in for everybody.
#[test]
fn those_who_never_stop_talking_hold_up_neither_others_nor_a_stop() {
    let mut daemon = Daemon::builder().prepare();
    daemon.spawn();
    soon("it is up", || daemon.socket().exists());
    let traffic = Traffic::of(&daemon, |_| json!({ "type": "ping" }));
    soon("they talk", || daemon.metric("lines") > 10_000);
    let mut agent = Agent::connect(&daemon);
    assert!(agent.is_answered());
    daemon.signal("TERM");
    assert_eq!(daemon.wait(SOON).code(), Some(0));
    drop(traffic);
}

/// A reader of the log that does not read: the next line waits, and at this level it is the uploader's.
#[test]
fn the_watchdog_goes_hungry_when_the_uploader_hangs() {
    let api = api();
    let supervisor = Supervisor::new();
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("log");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut daemon = supervisor
        .fed_by(Daemon::builder().api(&api).set("log.level", "'warn'"))
        .wrapper(&["sh", "-c", &format!("exec \"$@\" 2>{}", pipe.display()), "sh"])
        .prepare();
    daemon.spawn();
    supervisor.wait_for("READY=1");
    // What it warns of at its start has gone.
    let mut full = fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).unwrap();
    for size in [4096, 1] {
        while full.write(&vec![b'.'; size]).is_ok() {}
    }
    let traffic = Traffic::for_(&daemon);
    soon("reports come in", || api.count(Endpoint::Report) > 20);
    assert!(supervisor.feedings(Duration::from_secs(1)) > 0, "traffic is no hanging");
    api.set_secret("another");
    soon("it hangs", || supervisor.feedings(Duration::from_secs(1)) == 0);
    assert_eq!(supervisor.feedings(Duration::from_secs(2)), 0, "the uploader hangs");
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "beside");
    agent.say(1, "the accept loop, the sessions and the store do not");
    assert_eq!(agent.flush("durable")["ok"], true);
    // Longer than the main task waits for anybody's answer, be it to a heartbeat or for the status line.
    assert_eq!(supervisor.feedings(Duration::from_secs(12)), 0, "it still hangs");
    drop(traffic);
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    soon("the uploader works again and the watchdog is fed", || supervisor.feedings(Duration::from_secs(1)) > 0);
}

/// A secret on a file system that does not answer: the knock waits for it, and nobody else does.
#[test]
fn a_secret_that_cannot_be_read_for_a_while_stops_nothing_but_delivery() {
    if !disk::strace_works() {
        return;
    }
    let api = api();
    let supervisor = Supervisor::new();
    let mut daemon = supervisor.fed_by(Daemon::builder().api(&api)).prepare();
    daemon.spawn();
    supervisor.wait_for("READY=1");
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "before");
    producer.wait_until_acked();
    api.wait_for_rows("s", 1);
    let slowness = disk::Injection::attach(daemon.pid(), "openat", HANGS, &[&daemon.secret_file()]);
    api.set_secret("another");
    producer.say(1, "while the secret is wrong");
    producer.wait_until_acked();
    wait_for_log(&daemon, "the gate is closed");
    let end = Instant::now() + SOON;
    while !daemon.log().contains("the secret's file does not answer") {
        assert!(Instant::now() < end, "it never said that the file does not answer");
        producer.say(1, "meanwhile");
        producer.wait_until_acked();
        assert!(supervisor.feedings(Duration::from_secs(1)) > 0, "the uploader goes round");
    }
    let knocks = api.count(Endpoint::Report);
    soon("it knocks with the secret it has", || api.count(Endpoint::Report) > knocks);
    assert_eq!(daemon.log().matches("the secret's file does not answer").count(), 1, "said once");
    fs::write(daemon.secret_file(), "another").unwrap();
    drop(slowness);
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

/// The launcher a supervisor is: the listening socket as descriptor 3, `LISTEN_FDS` and `LISTEN_PID`.
fn activated(daemon: &Daemon, listener: &UnixListener) -> Child {
    activated_through(&[], daemon, listener)
}

/// As [`activated`], through another program. The log goes into the file `log`.
fn activated_through(wrapper: &[String], daemon: &Daemon, listener: &UnixListener) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(daemon.directory().join("log")).unwrap();
    let socket: OwnedFd = listener.as_fd().try_clone_to_owned().unwrap();
    let script = r#"LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@" 3<&0 0</dev/null"#;
    let child = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(wrapper)
        .arg(binary())
        .arg("--config")
        .arg(daemon.config())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    guard::kill_at_end(child.id());
    child
}

#[track_caller]
fn stop(mut child: Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let status = eventually(SOON, "the daemon ended", || child.try_wait().unwrap());
    guard::forget(child.id());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn socket_activation_refuses_nobody_during_a_restart() {
    let mut daemon = Daemon::builder().prepare();
    daemon.set("log.level", "'debug'");
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o620)).unwrap();
    let inode = fs::metadata(daemon.socket()).unwrap().ino();
    let first = activated(&daemon, &listener);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "to the first");
    producer.wait_until_acked();
    stop(first);
    let metadata = fs::metadata(daemon.socket()).expect("the supervisor's path stays");
    assert_eq!((metadata.ino(), metadata.mode() & 0o777), (inode, 0o620), "and is as it was");
    // Nobody is there: the kernel keeps what is said.
    let mut agent = Agent::connect(&daemon);
    agent.line(
        &json!({ "type": "message", "mac_address": MAC, "session_id": "s", "chat_type": 2, "content": "meanwhile", "seq": 1 }),
    );
    let second = activated(&daemon, &listener);
    agent.wait_for_ack(1);
    producer.connect(&daemon);
    producer.say(1, "to the second");
    producer.wait_until_acked();
    assert_eq!(daemon.status()["metrics"]["pending_at_start"], 1);
    stop(second);
}

#[test]
fn a_socket_path_that_vanished_is_bound_anew() {
    let daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    let mode = fs::metadata(daemon.socket()).unwrap().mode();
    for round in 1..=2 {
        if round == 1 {
            fs::remove_file(daemon.socket()).unwrap();
        } else {
            // Somebody else's, stale.
            fs::remove_file(daemon.socket()).unwrap();
            drop(UnixListener::bind(daemon.socket()).unwrap());
        }
        soon("producers can connect again", || Agent::dial(&daemon.socket()).is_some_and(|mut agent| agent.is_answered()));
        soon("it is told", || daemon.log().matches("its path was gone").count() == round);
        assert_eq!(fs::metadata(daemon.socket()).unwrap().mode(), mode);
        producer.say(1, "over the connection of before");
        producer.wait_until_acked();
    }
    assert_eq!(daemon.metric("socket_missing"), 0);
    let (path, mut daemon) = (daemon.socket(), daemon);
    assert!(daemon.term(SOON).success());
    assert!(!path.exists(), "it is the daemon's own, as the first was");
}

#[test]
fn a_supervisors_socket_path_that_vanished_is_missed() {
    let mut daemon = Daemon::builder().prepare();
    let http = std::net::SocketAddr::from(([127, 0, 0, 1], crate::support::eventually::free_port()));
    daemon.set("status.http_listen", &format!("'{http}'"));
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let child = activated(&daemon, &listener);
    let ready = || {
        let mut stream = std::net::TcpStream::connect(http).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    soon("it is ready", || ready().is_some_and(|text| text.contains("200 OK")));
    let aside = daemon.directory().join("aside");
    fs::rename(daemon.socket(), &aside).unwrap();
    let remedy = "systemctl restart chat-historyd.socket chat-historyd.service";
    soon("it is not ready", || ready().is_some_and(|text| text.contains(" 503 ") && text.contains(remedy)));
    assert_eq!(daemon.metric("socket_missing"), 1);
    let doctor = Command::new(binary()).arg("doctor").arg("--config").arg(daemon.config()).output().unwrap();
    let told = String::from_utf8(doctor.stdout).unwrap();
    assert!(told.contains(remedy), "{told}");
    let log = || fs::read_to_string(daemon.directory().join("log")).unwrap();
    assert_eq!(log().matches("no producer can connect").count(), 1, "{}", log());
    fs::rename(&aside, daemon.socket()).unwrap();
    soon("it is ready again", || ready().is_some_and(|text| text.contains("200 OK")));
    stop(child);
}

/// A group that this process does not give its files.
fn another_group() -> String {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let own = nix::unistd::getegid().to_string();
    let another = groups.lines().find(|line| line.split(':').nth(2).is_some_and(|gid| gid != own)).unwrap();
    another.split(':').next().unwrap().to_owned()
}

#[test]
fn a_sandbox_that_refuses_a_chown_costs_the_status_socket_its_group_and_nothing_else() {
    if !disk::strace_works() {
        return;
    }
    let mut daemon = Daemon::builder().prepare();
    daemon.set("socket.group", &format!("'{}'", another_group()));
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let sandboxed = activated_through(&disk::inject("chown,lchown,fchown,fchownat", "error=EPERM"), &daemon, &listener);
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    let status = daemon.directory().join("run/status.sock");
    assert_eq!(fs::metadata(&status).unwrap().gid(), nix::unistd::getegid().as_raw());
    let log = fs::read_to_string(daemon.directory().join("log")).unwrap();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("keeps the daemon's own group")).collect();
    assert!(matches!(*told, [line] if line.contains("WARN") && line.contains("status.sock")), "{log}");
    assert!(daemon.try_status().is_some());
    stop(sandboxed);
}

#[test]
fn settings_that_a_socket_unit_overrules_are_named_once() {
    let overruled = |daemon: &Daemon| {
        let listener = UnixListener::bind(daemon.directory().join("run/unit.sock")).unwrap();
        fs::set_permissions(daemon.directory().join("run/unit.sock"), fs::Permissions::from_mode(0o620)).unwrap();
        let child = activated(daemon, &listener);
        soon("it serves", || daemon.try_status().is_some());
        stop(child);
        let log = fs::read_to_string(daemon.directory().join("log")).unwrap();
        let told = log.lines().filter(|line| line.contains("the socket unit decides this"));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut daemon = Daemon::builder().prepare();
    daemon.set("socket.mode", "'0660'");
    daemon.set("socket.group", &format!("'{}'", another_group()));
    let told = overruled(&daemon);
    for (key, decides) in [("socket.path", "ListenStream="), ("socket.mode", "SocketMode="), ("socket.group", "SocketGroup=")] {
        let of_it: Vec<&String> = told.iter().filter(|line| line.contains(key)).collect();
        assert!(matches!(*of_it, [line] if line.contains("WARN") && line.contains(decides)), "{key}: {told:?}");
    }
    let mut silent = Daemon::builder().prepare();
    silent.set("socket.path", &format!("'{}'", silent.directory().join("run/../run/unit.sock").display()));
    assert_eq!(overruled(&silent), Vec::<String>::new(), "defaults and what is as it is set are not worth a word");
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
    soon("it says that nothing is sent", || {
        daemon
            .log()
            .lines()
            .any(|line| line.contains("WARN") && line.contains("manager_api.url: is not set: the history is only kept"))
    });
    let api = api();
    std::fs::write(daemon.directory().join("secret"), crate::support::manager_api::SECRET).unwrap();
    daemon.set("manager_api.url", &format!("'{}'", api.url()));
    let secret = daemon.directory().join("secret");
    daemon.set("manager_api.secret_file", &format!("'{}'", secret.display()));
    daemon.restart();
    let texts: Vec<String> = api.wait_for_rows("s", 8).into_iter().map(|row| row.content).collect();
    assert_eq!(texts, (0..8).map(|index| format!("message {index}")).collect::<Vec<_>>());
}

// ---- the end of a session ------------------------------------------------------------------------------------------

fn final_transcript(text: &str) -> Value {
    json!({ "type": "user_input_transcribed", "transcript": text, "is_final": true, "speaker_id": null, "language": null, "created_at": 1_758_701_973.5 })
}

/// All backups there are.
fn backups(daemon: &Daemon) -> Vec<(PathBuf, Value)> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let files = entries(&daemon.backups()).iter().flat_map(|date| entries(date)).collect::<Vec<_>>();
    let json = |path: &PathBuf| Some((path.clone(), serde_json::from_slice(&fs::read(path).ok()?).ok()?));
    files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")).filter_map(json).collect()
}

#[test]
fn idle_ends_a_session_only_when_no_producer_holds_it() {
    let daemon = Daemon::builder().set("session.idle_timeout", "'1s'").start();
    let mut held = Agent::connect(&daemon);
    held.bind(MAC, "held");
    held.say(1, "I am silent but here");
    let mut gone = Agent::connect(&daemon);
    gone.bind(MAC, "gone");
    gone.line(&final_transcript("the last words"));
    soon("the last words are held", || daemon.metric("held") == 1);
    drop(gone);
    soon("the abandoned session ended", || daemon.metric("sessions_ended") == 1);
    assert_eq!((daemon.metric("held"), daemon.metric("pending")), (0, 2), "its last words became a message");
    // Unbound lines hold nothing open, whoever's connection lives on.
    let mut unbound = Agent::connect(&daemon);
    unbound.line(&json!({ "type": "message", "mac_address": MAC, "session_id": "unbound", "chat_type": 1, "content": "x" }));
    soon("the session of unbound lines ended", || daemon.metric("sessions_ended") == 2);
    always(Duration::from_secs(3), "a bound session stays open", || daemon.metric("sessions_ended") == 2);
    soon("ended sessions leave no actor behind", || daemon.metric("sessions_open") == 1);
    held.end();
    held.flush("durable");
    assert_eq!(daemon.metric("sessions_ended"), 3);
    drop(held);
    soon("no actor is left", || daemon.metric("sessions_open") == 0);
}

#[test]
fn a_producer_that_comes_back_in_time_finds_its_session_open() {
    let daemon = Daemon::builder().set("session.idle_timeout", "'3s'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "one");
    producer.wait_until_acked();
    producer.disconnect();
    producer.connect(&daemon);
    always(Duration::from_secs(5), "the session is open", || daemon.metric("sessions_ended") == 0);
    producer.disconnect();
    soon("it ends when it is gone for good", || daemon.metric("sessions_ended") == 1);
}

#[test]
fn a_message_after_the_end_opens_the_session_again() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("session.idle_timeout", "'1s'").start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    let line = |id: &str, text: &str| json!({ "type": "message", "chat_type": 1, "content": text, "id": id });
    agent.line(&line("a", "one"));
    agent.end();
    agent.flush("durable");
    agent.line(&line("b", "two"));
    agent.line(&line("a", "one"));
    agent.flush("durable");
    assert_eq!(daemon.metric("sessions_ended"), 1);
    drop(agent);
    soon("it ends a second time", || daemon.metric("sessions_ended") == 2);
    soon("its actor is gone", || daemon.metric("sessions_open") == 0);
    // Its keys are reloaded from the store.
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.line(&line("b", "two"));
    agent.line(&line("c", "three"));
    agent.end();
    agent.flush("delivered");
    let contents: Vec<String> = api.rows("s").into_iter().map(|row| row.content).collect();
    assert_eq!(contents, ["one", "two", "three"]);
    assert_eq!(daemon.labelled("skipped", "duplicate"), 2);
    check_books(&daemon);
}

#[test]
fn sessions_left_open_by_a_kill_are_ended_by_idle_and_their_last_words_delivered() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("session.idle_timeout", "'2s'").start();
    for session in ["a", "b", "c"] {
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, session);
        agent.line(&final_transcript(&format!("last words of {session}")));
        agent.flush("durable");
    }
    assert_eq!(daemon.metric("held"), 3);
    daemon.kill9();
    daemon.start();
    assert_eq!(daemon.metric("held_at_start"), 3);
    let mut back = Agent::connect(&daemon);
    back.bind(MAC, "c");
    for session in ["a", "b"] {
        assert_eq!(api.wait_for_rows(session, 1)[0].content, format!("last words of {session}"));
    }
    always(Duration::from_secs(3), "the one whose producer came back stays open", || api.rows("c").is_empty());
    assert_eq!(daemon.metric("sessions_ended"), 2);
    drop(back);
    assert_eq!(api.wait_for_rows("c", 1)[0].content, "last words of c");
    check_books(&daemon);
}

#[test]
fn sessions_left_open_by_a_kill_are_ended_once_a_disk_that_did_not_read_reads_again() {
    if !disk::strace_works() {
        return;
    }
    let mut daemon = Daemon::builder().set("session.idle_timeout", "'3s'").start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.line(&final_transcript("the last words"));
    agent.flush("durable");
    daemon.kill9();
    daemon.start();
    let failing = disk::Injection::attach(daemon.pid(), "pread64", "error=EIO", &[]);
    wait_for_log(&daemon, "sessions left open by the last run cannot be read");
    drop(failing);
    soon("it is ended", || daemon.metric("sessions_ended") == 1);
    assert_eq!((daemon.metric("held"), daemon.metric("pending")), (0, 1), "its last words became a message");
    check_books(&daemon);
}

#[test]
fn a_stop_ends_no_session() {
    let mut daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.line(&final_transcript("held over the restart"));
    agent.flush("durable");
    daemon.restart();
    assert_eq!(daemon.metric("held"), 1, "what is held stays held");
    assert_eq!(daemon.metric("sessions_ended"), 0);
}

#[test]
fn the_backup_holds_the_session_pending_then_delivered() {
    let api = ManagerApi::start(Variant::Fork);
    let agent_id = api.register(MAC);
    let daemon = Daemon::start_for(&api);
    api.stop();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "../../up_and/away");
    agent.say(1, "How are you?");
    agent.say(2, "Fine, \u{1f42f}.");
    agent.end();
    agent.flush("durable");
    let (path, first) = eventually(SOON, "the backup is written", || backups(&daemon).pop());
    let states = |backup: &Value| {
        let messages = backup["messages"].as_array().unwrap();
        messages.iter().map(|message| message["state"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(states(&first), ["pending", "pending"], "{first}");
    assert_eq!(first["session_id"], "../../up_and/away");
    assert_eq!(first["mac"], MAC);
    let contents: Vec<&str> =
        first["messages"].as_array().unwrap().iter().filter_map(|message| message["content"].as_str()).collect();
    assert_eq!(contents, ["How are you?", "Fine, \u{1f42f}."]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(daemon.backups()).unwrap().mode() & 0o777, 0o700);
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("6825ddba3978_") && !name.contains(".."), "{name}");
    assert!(path.starts_with(daemon.backups()), "{}", path.display());
    api.start_again();
    soon("the backup is written once more when the last message is through", || {
        backups(&daemon).iter().any(|(_, backup)| states(backup) == ["delivered", "delivered"])
    });
    let now = backups(&daemon);
    assert_eq!(now.len(), 1, "one file a session");
    soon("the agent's id stands in the backup or was not known in time", || {
        let id = backups(&daemon)[0].1["agent_id"].clone();
        id == agent_id.as_str() || id.is_null()
    });
    soon("both are counted", || daemon.metric("backups_written") >= 2);
}
