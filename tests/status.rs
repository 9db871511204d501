//! The status from outside: the socket, the command, and what they show of sessions, reports and the store.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::daemon::binary;
use crate::support::{Agent, Daemon, Fault, ManagerApi, Producer, Variant, eventually, skipped, soon};

const MAC: &str = "68:25:dd:ba:39:78";

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
}

fn status(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("status").arg("--config").arg(daemon.config()).args(arguments).output().unwrap()
}

fn printed(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = status(daemon, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn session<'a>(status: &'a Value, id: &str) -> &'a Value {
    let listed = status["sessions"].as_array().unwrap();
    listed.iter().find(|session| session["session"] == id).unwrap_or_else(|| panic!("{id} is not in {listed:?}"))
}

#[test]
fn a_session_shows_its_length_what_waits_and_its_last_event_also_after_a_restart() {
    let mut daemon = Daemon::builder().set("session.send_interval", "'10m'").start();
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    for index in 0..3 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    let mut other = Agent::connect(&daemon);
    other.bind(MAC, "silent");
    let seen = daemon.status();
    let talk = session(&seen, "talk");
    assert_eq!((&talk["messages"], &talk["pending"], &talk["mac"]), (&json!(3), &json!(3), &json!("..39:78")));
    assert!(talk["last_event_seconds"].as_u64().unwrap() < 30 && talk["open_seconds"].as_u64().unwrap() < 30, "{talk}");
    assert_eq!(session(&seen, "silent")["messages"], 0);
    assert!(!seen.to_string().contains(MAC), "no whole MAC address");
    other.end();
    drop(other);
    soon("an ended session leaves the list", || {
        daemon.status()["sessions"].as_array().unwrap().iter().all(|session| session["session"] != "silent")
    });
    daemon.restart();
    producer.connect(&daemon);
    producer.say(2, "one more");
    producer.wait_until_acked();
    assert_eq!(session(&daemon.status(), "talk")["messages"], 4, "counted from the conversation's beginning");
}

#[test]
fn a_hundred_sessions_are_listed_the_latest_first() {
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    for index in 0..130 {
        agent.line(&json!({ "mac_address": MAC, "session_id": format!("s{index}"), "chat_type": 1, "content": "x" }));
    }
    soon("all are open", || daemon.status()["sessions_open"] == 130);
    agent.line(&json!({ "mac_address": MAC, "session_id": "s0", "chat_type": 1, "content": "again" }));
    soon("the latest is the first", || daemon.status()["sessions"][0]["session"] == "s0");
    let seen = daemon.status();
    assert_eq!(seen["sessions"].as_array().unwrap().len(), 100);
    assert!(printed(&daemon, &[]).ends_with("and 110 more\n"));
}

#[test]
fn the_text_says_how_everything_is() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    api.wait_for_rows("talk", 1);
    soon("it is booked", || daemon.metric("delivered") == 1);
    let text = printed(&daemon, &[]);
    for expected in [
        "gate       open\n",
        "store      sound, ",
        "sessions   1 open, 0 with undelivered messages",
        "messages   0 pending, 0 held, 1 delivered, 0 rejected, 0 skipped\n",
        "\ndisk       ",
        "shelf      0 messages, 0 B of 8.0 MiB, ",
        "reports    1 sent (accepted 1), 0 repeated, 0 ambiguous\n",
        "rates      in the last ",
        ": 100.0 % accepted; a minute: ",
        "producers  1 connected",
        "..39:78   talk\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    api.set_secret("another");
    producer.say(1, "Hello again");
    soon("the gate closes", || daemon.metric("gate_closings") >= 1);
    let text = printed(&daemon, &[]);
    assert!(text.contains("gate       closed (operator: ") && text.contains("check secret"), "{text}");
    assert!(text.contains("1 pending (oldest "), "{text}");
}

#[test]
fn repeated_reports_are_counted_and_the_rates_tell_of_failures() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    api.rule(crate::support::Rule::new(Fault::status(503)).times(1));
    producer.say(1, "Hello");
    api.wait_for_rows("talk", 1);
    let seen = eventually(crate::support::eventually::SOON, "it is booked", || {
        let seen = daemon.status();
        (seen["metrics"]["delivered"] == 1).then_some(seen)
    });
    assert!(seen["metrics"]["retries"].as_u64().unwrap() >= 1, "{seen}");
    let share = seen["rates"]["success_ratio"].as_f64().unwrap();
    assert!(share > 0.0 && share < 1.0, "{share}");
    assert!(seen["rates"]["reports_per_minute"].as_f64().unwrap() > 0.0);
    let latency = &seen["metrics"]["request_duration_seconds"];
    assert_eq!(latency["count"], 2, "{latency}");
    soon("the disk is looked at", || daemon.status()["store"]["disk_free_bytes"].is_u64());
    let seen = daemon.status();
    let free = seen["store"]["disk_free_bytes"].as_u64().unwrap();
    assert!(free > 0 && seen["store"]["used_bytes"].as_u64().unwrap() > 0, "{seen}");
    assert!(free <= seen["store"]["disk_size_bytes"].as_u64().unwrap(), "{seen}");
    assert_eq!((&seen["store"]["max_bytes"], &seen["store"]["shelf_max_bytes"]), (&json!(2_u64 << 30), &json!(8 << 20)));
}

#[test]
fn without_a_daemon_the_exit_code_is_69() {
    let daemon = Daemon::builder().prepare();
    std::fs::write(daemon.config(), format!("[status]\nsocket = '{}'\n", daemon.directory().join("none.sock").display()))
        .unwrap();
    let output = status(&daemon, &[]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no daemon answers at"), "{output:?}");
}

/// Waits for three more frames.
fn frames(lines: &mut impl Iterator<Item = String>, begin: &str) {
    for _ in 0..3 {
        let line = lines.find(|line| line.starts_with(begin)).expect("one more frame");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

#[test]
fn watching_shows_it_again_and_again_without_control_characters_in_a_pipe_and_survives_a_restart() {
    let mut daemon = Daemon::builder().start();
    for (format, begin) in [("text", "chat-historyd/"), ("json", "{")] {
        let mut child = Command::new(binary())
            .args(["status", "--watch=100ms", "--format", format, "--config"])
            .arg(daemon.config())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        frames(&mut lines, begin);
        daemon.kill9();
        if format == "text" {
            lines.find(|line| line.contains("no daemon answers")).expect("it says so");
        }
        daemon.start();
        frames(&mut lines, begin);
        drop(lines);
        let status = eventually(crate::support::eventually::SOON, "it ends with its reader", || child.try_wait().unwrap());
        assert!(status.code() == Some(0) || status.code().is_none(), "{status}");
    }
}

#[test]
fn a_client_that_does_not_read_or_says_nonsense_keeps_nobody_waiting() {
    let daemon = Daemon::builder().start();
    let path = daemon.directory().join("run/status.sock");
    let deaf: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let began = std::time::Instant::now();
    assert_eq!(daemon.status()["v"], 1);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
    // Sixteen at once are served; the deaf ones are let go, so a hundred one after the other all get an answer.
    drop(deaf);
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(&[0xff; 64]);
    }
    assert_eq!(daemon.status()["v"], 1);
}

#[test]
fn half_a_request_holds_no_place_of_those_who_ask_for_the_status() {
    let daemon = Daemon::builder().start();
    let path = daemon.directory().join("run/status.sock");
    // More than there are places; each is somebody who may ask for a change, and takes his time.
    let slow: Vec<UnixStream> = (0..24)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            // One that finds the door shut has nobody to write to.
            let _ = stream.write_all(b"{");
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    assert_eq!(daemon.status()["v"], 1);
    let waiting = slow.iter().filter(|stream| is_open(stream)).count();
    assert!((1..=8).contains(&waiting), "{waiting} changes are waited for, beside the status");
}

fn is_open(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn a_daemon_that_is_stopped_and_has_a_full_queue_keeps_nobody_waiting_for_ever() {
    let daemon = Daemon::builder().start();
    daemon.signal("STOP");
    let mut queue = Vec::new();
    for name in ["run/status.sock", "run/events.sock"] {
        let path = daemon.directory().join(name);
        while let Some(stream) = knock(&path) {
            queue.push(stream);
        }
    }
    for arguments in [&["status"][..], &["doctor"], &["send", "--mac", MAC, "--session", "s", "Hello"]] {
        let mut child = Command::new(binary())
            .args(arguments)
            .arg("--config")
            .arg(daemon.config())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        crate::support::guard::kill_at_end(child.id());
        let ended = eventually(crate::support::eventually::SOON, "it gives up", || child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(if arguments[0] == "doctor" { 1 } else { 69 }), "{arguments:?}");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(arguments[0] == "doctor" || said.contains("takes no connection"), "{said}");
    }
    daemon.signal("CONT");
}

/// A connection that nobody takes; `None` when the queue is full.
fn knock(path: &std::path::Path) -> Option<UnixStream> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.connect(&socket2::SockAddr::unix(path).unwrap()).ok()?;
    Some(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

#[test]
fn a_disk_that_does_not_answer_keeps_no_status_waiting() {
    if !crate::support::disk::strace_works() {
        return;
    }
    let daemon = Daemon::builder().start();
    let slow = crate::support::disk::Injection::attach(daemon.pid(), "statfs", crate::support::disk::HANGS, &[]);
    // More often than there are threads that may block.
    for _ in 0..20 {
        assert!(printed(&daemon, &[]).contains("\ndisk       "));
    }
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "talk");
    agent.say(1, "Hello");
    agent.end();
    soon("what else waits for a disk goes on: a backup is written", || daemon.metric("backups_written") == 1);
    drop(slow);
}

#[test]
fn the_age_of_what_waits_counts_from_when_it_was_said_also_after_a_restart() {
    let Some(past) = crate::support::clock::faketime("-3d") else { return };
    let (api, directory) = (api(), tempfile::tempdir().unwrap());
    api.set_secret("another");
    let of = || Daemon::builder().api(&api).directory(directory.path());
    let mut daemon = past.iter().fold(of(), |daemon, (name, value)| daemon.environment(name, value)).start();
    let mut producer = Producer::connected(&daemon, MAC, "old");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    daemon.kill9();
    drop(daemon);
    let daemon = of().start();
    let age = || daemon.status()["upload"]["oldest_pending_seconds"].as_u64().unwrap_or(0);
    soon("the backlog is known", || age() > 0);
    let three_days = 3 * 86_400;
    assert!((three_days - 60..three_days + 3_600).contains(&age()), "{} s", age());
    assert!(printed(&daemon, &[]).contains("1 pending (oldest 3d00h)"), "{}", printed(&daemon, &[]));
}

#[test]
fn rejected_messages_are_told_as_long_as_they_stand_in_the_store() {
    let api = api();
    let mut daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    api.rule(crate::support::Rule::new(Fault::code(10034)).times(2));
    producer.say(1, "one");
    producer.say(1, "two");
    producer.wait_until_acked();
    soon("both are rejected", || daemon.metric("rejected") == 2);
    daemon.restart();
    let row = "rejected   2 in the store (invalid 2); they stay until somebody decides: chat-historyd rejected list\n";
    soon("they are counted, though this daemon rejected none", || printed(&daemon, &[]).contains(row));
    assert_eq!(daemon.metric("rejected"), 0);
    assert!(
        printed(&daemon, &["--format", "prometheus"]).contains("chat_historyd_store_rejected_messages{reason=\"invalid\"} 2\n")
    );
    let dropped =
        Command::new(binary()).args(["rejected", "drop", "--all", "--yes", "--config"]).arg(daemon.config()).output().unwrap();
    assert!(dropped.status.success(), "{}", String::from_utf8_lossy(&dropped.stderr));
    soon("none is left to tell of", || !printed(&daemon, &[]).contains("in the store (invalid"));
}

#[test]
fn messages_of_unknown_devices_wait_beside_those_that_could_be_sent() {
    let api = api();
    let daemon = Daemon::builder().api(&api).set("upload.unknown_device_retry", "'1h'").start();
    let mut stranger = Producer::connected(&daemon, "aa:bb:cc:dd:ee:ff", "stranger");
    stranger.say(1, "Hello");
    soon("the device waits", || daemon.status()["upload"]["devices_waiting"] == 1);
    let upload = daemon.status()["upload"].clone();
    assert!(upload["oldest_pending_seconds"].is_u64() && upload["oldest_sendable_seconds"].is_null(), "{upload}");
}

#[test]
fn in_a_terminal_the_picture_is_redrawn_and_stays_within_the_window() {
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    for index in 0..40 {
        agent.line(
            &json!({ "mac_address": MAC, "session_id": format!("s{index}-{}", "x".repeat(90)), "chat_type": 1, "content": "x" }),
        );
    }
    soon("all are open", || daemon.status()["sessions_open"] == 40);
    let command =
        format!("stty rows 16 cols 60; exec {} status --watch=100ms --config {}", binary().display(), daemon.config().display());
    let spawned = Command::new("script")
        .args(["-q", "-c", &command, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = spawned else {
        skipped("script is not installed (Debian package bsdutils)");
        return;
    };
    crate::support::guard::kill_at_end(child.id());
    let mut terminal = BufReader::new(child.stdout.take().unwrap());
    let mut frames = Vec::new();
    // Each picture ends with the rest of the screen cleared.
    while frames.len() < 3 {
        let mut frame = Vec::new();
        while !frame.ends_with(b"\x1b[J\x1b[?7h") {
            let mut byte = [0];
            terminal.read_exact(&mut byte).expect("one more picture");
            frame.push(byte[0]);
        }
        frames.push(String::from_utf8(frame).unwrap());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(frames[0].contains("\x1b[H\x1b[2J") && frames[1].starts_with("\x1b[H\x1b[?7l"), "{frames:?}");
    for frame in &frames {
        // The terminal makes it of a line feed.
        let lines: Vec<&str> = frame.split("\r\n").collect();
        assert!(lines.len() <= 16, "{} lines", lines.len());
        let shown = |line: &&str| line.rsplit("\x1b[?7l").next().unwrap().trim_end_matches("\x1b[K").chars().count();
        assert!(lines.iter().all(|line| shown(line) <= 60), "{lines:#?}");
        assert!(frame.contains(" UTC, every 100ms (Ctrl-C ends it)"), "{frame}");
    }
}

#[test]
fn the_supervisor_gets_a_live_status_line() {
    let api = api();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let supervisor = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(crate::support::eventually::SOON)).unwrap();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let notes = std::sync::Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = supervisor.recv(&mut buffer) {
            notes.lock().unwrap().push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
    });
    let mut daemon = Daemon::builder().api(&api).environment("NOTIFY_SOCKET", &path.display().to_string()).start();
    let said = |what: &str| heard.lock().unwrap().iter().any(|note| note.lines().any(|line| line.contains(what)));
    soon("READY=1", || said("READY=1"));
    soon("a status line", || said("STATUS=delivering; 0 sessions, 0 pending, 0 delivered, 0 rejected"));
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    producer.say(1, "Hello");
    api.wait_for_rows("talk", 1);
    soon("the line follows what happens", || said("STATUS=delivering; 1 sessions, 0 pending, 1 delivered, 0 rejected"));
    api.set_secret("another");
    producer.say(1, "Hello again");
    soon("the line tells of the gate", || said("STATUS=gate closed (operator: "));
    daemon.hup();
    soon("RELOADING=1", || said("RELOADING=1"));
    api.stop();
    daemon.term(crate::support::eventually::SOON);
    assert!(said("STOPPING=1"));
    assert!(said("STATUS=starting: the store is being opened"));
    assert!(said("STATUS=stopping: 1 messages pending, delivery goes on for 5 s at most"));
    assert!(said("STATUS=stopped: 1 messages pending in the store"));
}

#[test]
fn the_prometheus_format_of_the_command_is_what_promtool_calls_clean() {
    let daemon = Daemon::builder().start();
    let text = printed(&daemon, &["--format", "prometheus"]);
    assert!(text.contains("\nchat_historyd_received_total 0\n"), "{text}");
    match super::metrics::promtool_check(&text) {
        Some(complaints) => assert_eq!(complaints, ""),
        None => skipped("promtool is not installed (Debian package prometheus)"),
    }
}

/// Somebody else at the status socket, who says this; who drips goes on with a space ten times a second, for ever.
fn impostor(says: &'static str, drips: bool) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut goes_on = stream.write_all(says.as_bytes()).is_ok() && drips;
            stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
            while goes_on {
                // Nothing comes but the end, which a client that has heard enough makes.
                let left = matches!(stream.read(&mut [0]), Ok(0));
                goes_on = !left && stream.write_all(b" ").is_ok();
            }
        }
    });
    (directory, path)
}

fn asked(path: &std::path::Path) -> Output {
    Command::new(binary()).args(["status", "--socket"]).arg(path).output().unwrap()
}

#[test]
fn what_is_no_status_is_no_daemon_and_a_status_of_another_version_is_called_that() {
    for says in ["null", "[1,2]", "\"status\"", "7"] {
        let (_directory, path) = impostor(says, false);
        let output = asked(&path);
        assert_eq!(output.status.code(), Some(69), "{says}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("gives no status"), "{says}: {output:?}");
    }
    let (_directory, path) = impostor("{\"v\":9}", false);
    let output = asked(&path);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("version    the status is not of version 1"), "{text}");
    assert!(text.contains("gate       ?\n") && text.contains("store      ?, "), "nothing is called well: {text}");
}

#[test]
fn an_answer_that_never_ends_is_not_waited_for() {
    let (_one, status) = impostor(" ", true);
    let (_other, events) = impostor(" ", true);
    let daemon = Daemon::builder().prepare();
    let sockets = format!("[socket]\npath = '{}'\n[status]\nsocket = '{}'\n", events.display(), status.display());
    std::fs::write(daemon.config(), format!("{sockets}[store]\ndirectory = '{}'\n", daemon.store().display())).unwrap();
    for command in ["status", "doctor"] {
        let mut child = Command::new(binary())
            .args([command, "--config"])
            .arg(daemon.config())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        crate::support::guard::kill_at_end(child.id());
        let ended = eventually(crate::support::eventually::SOON, "it gives up", || child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(if command == "doctor" { 1 } else { 69 }), "{command}");
    }
}

#[test]
fn who_may_not_see_the_status_is_told_so() {
    let (_directory, path) = impostor("{\"refused\":\"this user is not in socket.allowed_uids\"}", false);
    let output = std::process::Command::new(binary()).args(["status", "--socket"]).arg(&path).env_clear().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("this user is not in socket.allowed_uids") && said.contains("sudo"), "{said}");
}

#[test]
fn who_has_no_daemon_of_his_own_sees_the_service_of_the_machine() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, path) = impostor("{\"v\":1,\"daemon\":\"chat-historyd/of-the-machine\"}", false);
    let config = directory.path().join("empty.toml");
    std::fs::write(&config, "").unwrap();
    for (place, mode) in [(directory.path(), 0o755), (&path, 0o666), (&config, 0o644)] {
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let script = r#"mount -t tmpfs tmpfs /run && mkdir /run/chat-historyd && ln -s "$1" /run/chat-historyd/status.sock &&
        exec setpriv --reuid=65534 --regid=65534 --clear-groups env -i HOME=/nonexistent "$0" status --config "$2""#;
    let ours = Command::new("unshare").args(["-m", "sh", "-c", script]).arg(binary()).arg(&path).arg(&config).output();
    let Some(output) = ours.ok().filter(|output| matches!(output.status.code(), Some(0 | 69 | 78))) else {
        return skipped("no mount namespace or no other user here");
    };
    assert!(String::from_utf8_lossy(&output.stdout).contains("chat-historyd/of-the-machine"), "{output:?}");
}
