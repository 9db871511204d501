//! Who may connect, what others may read, and what never leaves the daemon.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::manager_api::SECRET;
use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Producer, Rule, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";
const CANARY: &str = "canary-sentence-5d21";

/// Everything under a directory.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_socket_has_its_mode_and_the_rest_is_private() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    assert_eq!(mode(&daemon.socket()), 0o660);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    producer.agent().end();
    soon("a backup", || daemon.metric("backups_written") >= 1);
    soon("it is there", || !tree(&daemon.backups()).is_empty());
    for root in [daemon.store(), daemon.backups()] {
        assert_eq!(mode(&root), 0o700, "{}", root.display());
        let inside = tree(&root);
        assert!(!inside.is_empty(), "{}", root.display());
        for path in inside {
            let wanted = if path.is_dir() { 0o700 } else { 0o600 };
            // A file that is written and renamed may be gone by now.
            if path.exists() {
                assert_eq!(mode(&path), wanted, "{}", path.display());
            }
        }
    }
    let narrow = Daemon::builder().set("socket.mode", "'0600'").start();
    assert_eq!(mode(&narrow.socket()), 0o600);
}

#[test]
fn a_wrong_uid_is_refused() {
    let mine = std::fs::metadata("/proc/self").unwrap().uid();
    let mut daemon = Daemon::builder().set("socket.allowed_uids", &format!("[{}]", mine + 1)).prepare();
    daemon.spawn();
    soon("it listens", || daemon.try_status().is_some() && Agent::dial(&daemon.socket()).is_some());
    let mut agent = Agent::connect(&daemon);
    let _ = agent.try_raw(b"{\"type\":\"ping\"}\n");
    agent.wait_for_close();
    assert!(agent.replies().iter().all(|reply| reply["type"] != "pong"), "{:?}", agent.replies());
    soon("counted", || daemon.metric("peers_refused") >= 1);
    let allowed = Daemon::builder().set("socket.allowed_uids", &format!("[{mine}]")).start();
    Agent::connect(&allowed).bind(MAC, "s");
}

#[test]
fn canary_never_appears() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("log.level", "'trace'").start();
    api.rule(
        Rule::new(Fault::json(&json!({ "code": 500, "msg": format!("{CANARY} {SECRET}"), "data": CANARY }).to_string())).times(2),
    );
    api.rule(Rule::new(Fault::Answer(502, Vec::new(), format!("<html>{CANARY} {SECRET}").into_bytes())).times(2));
    api.rule(Rule::new(Fault::json(&format!("{{\"code\":10034,\"msg\":\"{CANARY}\"}}"))).content("refused"));
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    for text in [CANARY.to_owned(), format!("refused {CANARY}"), format!("{CANARY} ").repeat(200)] {
        agent.say(1, &text);
    }
    for line in [
        CANARY.to_owned(),
        format!("{{\"type\":\"message\",\"chat_type\":\"{CANARY}\",\"content\":\"{CANARY}\"}}"),
        format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":[\"{CANARY}\"]}}"),
        format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":\"{CANARY}\",\"timestamp\":\"{CANARY}\"}}"),
        format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":\"{CANARY}\",\"audio_base64\":\"{CANARY}\"}}"),
        format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":\"{CANARY}"),
        format!(
            "{{\"type\":\"user_input_transcribed\",\"is_final\":true,\"transcript\":\"{CANARY}\",\"created_at\":1758701973.5}}"
        ),
        format!("{{\"type\":\"error\",\"error\":{{\"type\":\"tts_error\",\"label\":\"{CANARY}\"}}}}"),
        format!(
            "{{\"type\":\"message\",\"mac_address\":\"{CANARY}\",\"session_id\":\"x\",\"chat_type\":1,\"content\":\"{CANARY}\"}}"
        ),
    ] {
        agent.text(&line);
    }
    agent.end();
    api.wait_for_rows("s", 2);
    api.set_secret("another");
    agent.say(2, CANARY);
    soon("the gate closes", || daemon.metric("gate_closings") >= 1);
    let status = daemon.status().to_string();
    let replies = format!("{:?}", agent.replies());
    let arguments = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    let environment = std::fs::read(format!("/proc/{}/environ", daemon.pid())).unwrap();
    api.set_secret(SECRET);
    daemon.term(crate::support::eventually::SOON);
    for (place, text) in [
        ("the log", daemon.log()),
        ("the status", status),
        ("a reply", replies),
        ("the arguments", String::from_utf8_lossy(&arguments).into_owned()),
        ("the environment", String::from_utf8_lossy(&environment).into_owned()),
    ] {
        for canary in [CANARY, SECRET] {
            let line = text.lines().find(|line| line.contains(canary));
            assert_eq!(line, None, "{canary} in {place}");
        }
    }
}

#[test]
fn ids_stay_data() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    let ids = [
        "../../../../tmp/escaped",
        "/etc/passwd",
        "..",
        "a/b/c",
        "'; DROP TABLE ai_agent_chat_history; --",
        "%s%n%x {} ${HOME} $(id) `id`",
        "café ☕ 🐯",
        "CON.json",
        "-rf",
    ];
    let mut agent = Agent::connect(&daemon);
    for (index, id) in ids.iter().enumerate() {
        agent.line(&json!({ "mac_address": MAC, "session_id": id, "chat_type": 1, "content": format!("message {index}"), "id": "'\"; --" }));
        agent.line(&json!({ "type": "session_end", "mac_address": MAC, "session_id": id }));
    }
    for bad in ["a\nERROR forged line", "a\u{1b}[31mred", "", &"x".repeat(101)] {
        agent.line(&json!({ "mac_address": MAC, "session_id": bad, "chat_type": 1, "content": "x" }));
    }
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(api.wait_for_rows(id, 1)[0].content, format!("message {index}"), "{id}");
    }
    soon("the bad ones are refused", || agent.errors().len() == 4);
    assert!(agent.errors().iter().all(|error| error["code"] == "bad_field" && error["fatal"] == false), "{:?}", agent.errors());
    let backups = || {
        tree(&daemon.backups()).into_iter().filter(|path| path.extension().is_some_and(|end| end == "json")).collect::<Vec<_>>()
    };
    soon("a backup of each", || backups().len() >= ids.len());
    for path in backups() {
        let inside = path.strip_prefix(daemon.backups()).unwrap();
        assert_eq!(inside.components().count(), 2, "{}", inside.display());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("6825ddba3978_"), "{name}");
    }
    let outside: Vec<PathBuf> = tree(daemon.directory())
        .into_iter()
        .filter(|path| path.is_file() && !path.starts_with(daemon.store()) && !path.starts_with(daemon.backups()))
        .collect();
    assert_eq!(outside.len(), 2, "only our own configuration and secret: {outside:?}");
    assert!(!daemon.log().lines().any(|line| line.starts_with("ERROR forged") || line.contains('\u{1b}')), "forged log line");
    assert_eq!(api.count(Endpoint::Other), 0);
    check_books(&daemon);
}

#[test]
fn no_symlink_is_followed_to_the_store() {
    let mut daemon = Daemon::builder().prepare();
    let victim = daemon.directory().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::create_dir(daemon.store()).unwrap();
    std::fs::set_permissions(daemon.store(), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&victim, daemon.store().join("history.db")).unwrap();
    daemon.spawn();
    soon("it runs or has ended", || Agent::dial(&daemon.socket()).is_some() || !daemon.is_running());
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
}
