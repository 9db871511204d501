//! The subcommands, through the real binary: what a person at a shell sees.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::daemon::binary;
use crate::support::{Daemon, ManagerApi, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the binary with nothing in its environment but what is given.
fn run(words: &[&str], stdin: &[u8], environment: &[(&str, &Path)]) -> Said {
    let mut child = Command::new(binary())
        .args(words)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not want its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

fn count_entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn demo_works_with_nothing_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let said = run(&["demo"], b"", &[("TMPDIR", directory.path())]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(said.out.contains("16 messages"), "{}", said.out);
    assert!(said.out.contains("184 events"), "{}", said.out);
    assert_eq!(count_entries(directory.path()), 0, "the throw-away daemon is gone with all it had");
    let said = run(&["demo"], b"", &[]);
    assert_eq!(said.code, Some(0), "and with no environment at all: {}", said.err);
}

#[test]
fn demo_says_what_is_wrong_where_it_cannot_run() {
    let said = run(&["demo"], b"", &[("TMPDIR", Path::new("/dev/null/nowhere"))]);
    assert_eq!(said.code, Some(70));
    assert!(said.err.starts_with("chat-historyd demo: "), "{}", said.err);
}

#[test]
fn send_stores_one_message_and_an_id_only_once() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    let config = daemon.config().display().to_string();
    let socket = daemon.socket().display().to_string();
    let said = run(&["--config", &config, "send", "--mac", MAC, "--session", "s", "Hello"], b"", &[]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", "stored\n"));
    // From standard input, with line breaks and quotes, by the socket alone.
    let text = "two \"lines\"\nand a tiger \u{1f42f}\n";
    let said = run(
        &["send", "--socket", &socket, "--mac", "68-25-DD-BA-39-78", "--session", "s", "--role", "agent", "-"],
        text.as_bytes(),
        &[],
    );
    assert_eq!(said.code, Some(0), "{}", said.err);
    for _ in 0..3 {
        let said = run(
            &[
                "send",
                "--socket",
                &socket,
                "--mac",
                MAC,
                "--session",
                "s",
                "--id",
                "once",
                "--time",
                "2026-01-02T03:04:05Z",
                "dated",
            ],
            b"",
            &[],
        );
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
    // The device may be part of the session's name.
    let room = "d3746a02-1c3e_6825ddba3978_story";
    assert_eq!(run(&["send", "--socket", &socket, "--session", room, "in a room"], b"", &[]).code, Some(0));
    let rows = api.wait_for_rows("s", 3);
    let seen: Vec<(i8, &str)> = rows.iter().map(|row| (row.chat_type, row.content.as_str())).collect();
    assert_eq!(seen, [(1, "Hello"), (2, text.trim()), (1, "dated")]);
    assert_eq!(daemon.labelled("skipped", "duplicate"), 2);
    assert_eq!(api.wait_for_rows(room, 1)[0].mac, MAC);
}

#[test]
fn send_says_why_it_was_refused() {
    let daemon = Daemon::builder().start();
    let socket = daemon.socket().display().to_string();
    let send = |words: &[&str], stdin: &[u8]| run(&[&["send", "--socket", &socket], words].concat(), stdin, &[]);
    for (words, stdin, hint) in [
        (&["--mac", "68:25", "--session", "s", "x"][..], &b""[..], "MAC"),
        (&["--mac", MAC, "--session", "a\nb", "x"], b"", "control characters"),
        (&["--mac", MAC, "--session", "s", "--role", "robot", "x"], b"", "robot"),
        (&["--mac", MAC, "--session", "s", "--time", "yesterday", "x"], b"", "timestamp"),
        (&["--session", "no-device-in-it", "x"], b"", "--mac"),
        (&["--mac", MAC, "--session", "s", "-"], b" \n", "empty"),
        (&["--mac", MAC, "--session", "s", "-"], b"\xff\xfe", "UTF-8"),
    ] {
        let said = send(words, stdin);
        assert_eq!(said.code, Some(64), "{words:?}: {}", said.err);
        assert!(said.err.contains(hint), "{words:?}: {}", said.err);
    }
    let said = send(&["--mac", MAC, "--session", "s", "-"], &vec![b'x'; (1 << 20) + 1]);
    assert_eq!(said.code, Some(64), "{}", said.err);
    assert!(said.err.contains("1 MiB"), "{}", said.err);
    assert_eq!(daemon.metric("pending"), 0);
}

#[test]
fn send_and_status_without_a_daemon_exit_69_and_name_the_socket() {
    let daemon = Daemon::builder().start();
    let config = daemon.config().display().to_string();
    let sockets = [daemon.directory().join("run/events.sock"), daemon.directory().join("run/status.sock")];
    let mut daemon = daemon;
    daemon.kill9();
    // A stale socket is there, and nobody behind it.
    for (words, socket) in [(&["send", "--mac", MAC, "--session", "s", "x"][..], &sockets[0]), (&["status"], &sockets[1])] {
        let said = run(&[&["--config", config.as_str()], words].concat(), b"", &[]);
        assert_eq!(said.code, Some(69), "{}", said.err);
        assert!(said.err.contains(&socket.display().to_string()), "{}", said.err);
        assert!(said.err.contains("is chat-historyd running?"), "{}", said.err);
    }
}

#[test]
fn send_tells_a_message_without_confirmation_from_a_daemon_that_is_not_there() {
    let daemon = Daemon::builder().start();
    let socket = daemon.socket().display().to_string();
    daemon.signal("STOP");
    let words = ["send", "--socket", &socket, "--mac", MAC, "--session", "s"];
    let (bare, named) = std::thread::scope(|scope| {
        let bare = scope.spawn(|| run(&[&words[..], &["once"]].concat(), b"", &[]));
        let named = scope.spawn(|| run(&[&words[..], &["--id", "i", "twice"]].concat(), b"", &[]));
        (bare.join().unwrap(), named.join().unwrap())
    });
    daemon.signal("CONT");
    for (said, advice) in [(&bare, "twice"), (&named, "same --id")] {
        assert_eq!(said.code, Some(69), "{}", said.err);
        assert!(said.err.contains("did not confirm within 10 s that it is stored"), "{}", said.err);
        assert!(said.err.contains(advice) && !said.err.contains("is chat-historyd running?"), "{}", said.err);
    }
    soon("it had taken both", || daemon.metric("pending") == 2);
}

#[test]
fn send_of_a_user_who_is_not_allowed_is_told_so() {
    let mut daemon = Daemon::builder().set("socket.allowed_uids", "[54321]").prepare();
    daemon.spawn();
    soon("it serves", || daemon.try_status().is_some());
    let socket = daemon.socket().display().to_string();
    for text in ["short".to_owned(), "x".repeat(60_000)] {
        let said = run(&["send", "--socket", &socket, "--mac", MAC, "--session", "s", &text], b"", &[]);
        assert_eq!(said.code, Some(69), "{}", said.err);
        assert!(said.err.contains("socket.allowed_uids"), "{}", said.err);
        assert!(!said.err.contains("is chat-historyd running?"), "{}", said.err);
    }
}

#[test]
fn status_is_for_people_and_for_machines() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    let config = daemon.config().display().to_string();
    let socket = daemon.socket().display().to_string();
    for text in ["one", "two"] {
        assert_eq!(run(&["send", "--socket", &socket, "--mac", MAC, "--session", "s", text], b"", &[]).code, Some(0));
    }
    soon("both are delivered", || daemon.metric("delivered") == 2);
    let said = run(&["status", "--config", &config], b"", &[]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    for words in ["chat-historyd/", "gate       open", "store      sound", "0 pending, 0 held, 2 delivered, 0 rejected"] {
        assert!(said.out.contains(words), "{words:?} is missing: {}", said.out);
    }
    let said = run(&["status", "--config", &config, "--format", "json"], b"", &[]);
    let status: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(status["v"], 1);
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["gate"]["state"], "open");
    assert_eq!(status["metrics"]["delivered"], 2);
    api.stop();
    assert_eq!(run(&["send", "--socket", &socket, "--mac", MAC, "--session", "s", "three"], b"", &[]).code, Some(0));
    soon("the outage shows", || {
        let said = run(&["status", "--config", &config], b"", &[]);
        said.out.contains("gate       closed (") && said.out.contains("1 pending")
    });
}
