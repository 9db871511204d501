//! Who may connect, what others may read, and what never leaves the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::support::daemon::binary;
use crate::support::eventually::SOON;
use crate::support::manager_api::SECRET;
use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Producer, Rule, Variant, disk, skipped, soon};

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
fn a_directory_that_others_use_is_not_made_private_for_the_store() {
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("/run/lock", shared.path().join("lock")).unwrap();
    let mut daemon = Daemon::builder().set("store.directory", &format!("'{}'", shared.path().display())).prepare();
    daemon.spawn();
    assert_eq!(daemon.wait(SOON).code(), Some(73), "{}", daemon.log());
    for words in [shared.path().to_str().unwrap(), "holds other files", "a directory of its own, or chmod 0700"] {
        assert!(daemon.log().contains(words), "{words}: {}", daemon.log());
    }
    assert_eq!(mode(shared.path()), 0o755);
    // Nothing was left there either.
    assert_eq!(tree(shared.path()).len(), 1);
    std::fs::remove_file(shared.path().join("lock")).unwrap();
    std::fs::create_dir(shared.path().join("lost+found")).unwrap();
    daemon.start();
    assert_eq!(mode(shared.path()), 0o700, "a new file system is empty, and the store's own");
    daemon.kill9();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(shared.path().join("notes"), "beside a store").unwrap();
    daemon.start();
    assert_eq!(mode(shared.path()), 0o700, "where a store is, it is at home");
}

#[test]
fn a_volume_of_somebody_else_that_can_be_written_is_good_enough_for_the_store() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can give a directory to somebody else");
    }
    let volume = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(volume.path(), Some(65534), None).unwrap();
    std::fs::set_permissions(volume.path(), std::fs::Permissions::from_mode(0o2775)).unwrap();
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::builder()
        .api(&api)
        .set("store.directory", &format!("'{}'", volume.path().display()))
        .set("backup.directory", &format!("'{}'", volume.path().join("backup").display()))
        .wrapper(&["setpriv", "--bounding-set=-fowner"])
        .start();
    assert!(daemon.log().contains("belongs to another user and stays open to others"), "{}", daemon.log());
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    producer.agent().end();
    soon("a backup", || daemon.metric("backups_written") >= 1);
    daemon.restart();
    assert_eq!(mode(volume.path()), 0o2775);
    for path in tree(volume.path()) {
        // Below such a directory the group is inherited, and the mark of that with it.
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path) & 0o777, wanted, "{}", path.display());
    }
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
fn who_is_not_in_allowed_uids_does_not_see_the_status_either() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can be somebody else");
    }
    let mut daemon = Daemon::builder().set("socket.mode", "'0666'").set("socket.allowed_uids", "[65533]").prepare();
    for path in [daemon.directory(), &daemon.directory().join("run")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    daemon.spawn();
    soon("root and the daemon's own user see it, named or not", || daemon.try_status().is_some());
    let script = r#"socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($ARGV[0])) or die "$!"; print while <S>;"#;
    let seen_by = |uid: u32| {
        let output = Command::new("setpriv")
            .args([&format!("--reuid={uid}"), "--regid=65534", "--clear-groups", "perl", "-MSocket", "-e", script])
            .arg(daemon.directory().join("run/status.sock"))
            .output()
            .expect("setpriv runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(seen_by(65533).contains("\"sessions_open\""));
    let refused = seen_by(65534);
    assert!(refused.contains("socket.allowed_uids") && !refused.contains("session"), "{refused}");
    assert_eq!(daemon.metric("peers_refused"), 1);
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

// ---- from the first instant ----------------------------------------------------------------------------------------

#[test]
fn the_socket_is_never_wider_than_its_mode_not_even_for_an_instant() {
    for wanted in [0o600, 0o660] {
        let mut daemon = Daemon::builder()
            .set("socket.mode", &format!("'{wanted:04o}'"))
            .wrapper(&["sh", "-c", "umask 0; exec \"$@\"", "sh"])
            .prepare();
        let stop = AtomicBool::new(false);
        let path = daemon.socket();
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(metadata) = fs::symlink_metadata(&path) {
                        seen.insert(metadata.mode() & 0o7777);
                    }
                }
                seen
            });
            for _ in 0..10 {
                daemon.start();
                assert!(daemon.term(SOON).success());
            }
            stop.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(seen.contains(&wanted) && seen.iter().all(|mode| mode & !wanted == 0), "wanted {wanted:o}, seen {seen:?}");
    }
}

#[test]
fn the_socket_listens_only_after_it_has_its_mode() {
    if !disk::strace_works() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let words =
        ["strace", "-D", "-f", "-qq", "-y", "-o", trace.to_str().unwrap(), "-e", "trace=bind,chmod,fchmod,fchmodat,listen"];
    let mut daemon = Daemon::builder().wrapper(&words).start();
    assert!(daemon.term(SOON).success());
    let trace = fs::read_to_string(&trace).unwrap();
    // The status socket comes before it, and listens.
    let calls: Vec<&str> = trace.lines().skip_while(|line| !(line.contains(" bind(") && line.contains("events.sock"))).collect();
    let first = |call: &str| calls.iter().position(|line| line.contains(call)).unwrap_or_else(|| panic!("no {call} in {trace}"));
    assert!(calls[first("chmod(\"")].contains("events.sock") && first("chmod(\"") < first(" listen("), "{trace}");
}

#[test]
fn a_socket_directory_under_tmp_is_private_and_nobody_elses() {
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let directory = shared.path().join("chat-historyd-0");
    let path = format!("'{}'", directory.join("events.sock").display());
    let mut daemon = Daemon::builder().set("socket.path", &path).start();
    assert_eq!(mode(&directory), 0o700);
    assert!(daemon.term(SOON).success());
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let mut daemon = Daemon::builder().set("socket.path", &path).prepare();
    daemon.spawn();
    assert_eq!(daemon.wait(SOON).code(), Some(73), "others could put a socket of theirs there");
    soon("it says so", || daemon.log().contains("is not safe"));
    fs::remove_dir(&directory).unwrap();
    let elsewhere = shared.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &directory).unwrap();
    let mut daemon = Daemon::builder().set("socket.path", &path).prepare();
    daemon.spawn();
    assert_eq!(daemon.wait(SOON).code(), Some(73), "a link in a shared directory may be anybody's");
    assert_eq!(tree(&elsewhere), Vec::<PathBuf>::new());
}

#[test]
fn files_are_private_whatever_the_umask() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).wrapper(&["sh", "-c", "umask 0; exec \"$@\"", "sh"]).start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "Hello");
    agent.end();
    soon("a backup", || daemon.metric("backups_written") >= 1);
    for root in [daemon.store(), daemon.backups()] {
        assert_eq!(mode(&root), 0o700, "{}", root.display());
        for path in tree(&root) {
            assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        }
    }
}

#[test]
fn what_a_kill_in_a_salvage_leaves_is_private_whatever_the_umask() {
    if !disk::strace_works() {
        return;
    }
    let umask = ["sh", "-c", "umask 0; exec \"$@\"", "sh"].map(str::to_owned);
    let killed = disk::inject("rename,renameat,renameat2", "signal=KILL:when=1");
    let mut daemon = Daemon::builder().wrapper(&umask).wrapper(&killed).prepare();
    fs::create_dir(daemon.store()).unwrap();
    fs::write(daemon.store().join("history.db"), "no database at all").unwrap();
    fs::set_permissions(daemon.store().join("history.db"), fs::Permissions::from_mode(0o600)).unwrap();
    daemon.spawn();
    daemon.wait(SOON);
    let left = tree(&daemon.store());
    assert!(left.iter().any(|path| path.ends_with("unfinished")), "{left:?}");
    for path in left {
        assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
}

// ---- links ---------------------------------------------------------------------------------------------------------

#[test]
fn no_link_in_the_store_is_written_through() {
    for name in ["history.db", "history.db-wal", "history.db-shm", "lock", "corrupt"] {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::builder().directory(directory.path()).start();
        let mut producer = Producer::connected(&daemon, MAC, "s");
        producer.say(1, "before");
        producer.wait_until_acked();
        daemon.kill9();
        let victim = directory.path().join("victim");
        if name == "corrupt" {
            fs::create_dir(&victim).unwrap();
            fs::write(daemon.store().join("history.db"), "no database at all").unwrap();
        } else {
            fs::write(&victim, "precious").unwrap();
        }
        let place = daemon.store().join(name);
        let _ = fs::remove_file(&place);
        symlink(&victim, &place).unwrap();
        daemon.spawn();
        soon("it serves or has ended", || {
            Agent::dial(&daemon.socket()).is_some_and(|mut agent| agent.is_answered()) || !daemon.is_running()
        });
        if daemon.is_running() {
            let mut producer = Producer::connected(&daemon, MAC, "t");
            producer.say(1, "after");
            producer.wait_until_acked();
            assert!(daemon.term(SOON).success());
        }
        if name == "corrupt" {
            assert_eq!(tree(&victim), Vec::<PathBuf>::new(), "{name}");
        } else {
            assert_eq!(fs::read(&victim).unwrap(), b"precious", "{name}");
        }
    }
}

#[test]
fn a_link_in_place_of_the_search_index_is_replaced_and_not_followed() {
    for name in ["search.db", "search.db-wal", "search.db-shm"] {
        let directory = tempfile::tempdir().unwrap();
        // Empty, it would be taken for a new database.
        let victim = directory.path().join("victim");
        fs::write(&victim, "").unwrap();
        let mut daemon = Daemon::builder().directory(directory.path()).prepare();
        // The directory itself is reached through a link, as systemd makes one.
        let store = directory.path().canonicalize().unwrap().join("private");
        fs::create_dir(&store).unwrap();
        symlink(&store, daemon.store()).unwrap();
        symlink(&victim, store.join(name)).unwrap();
        daemon.start();
        let mut producer = Producer::connected(&daemon, MAC, "s");
        producer.say(1, CANARY);
        producer.wait_until_acked();
        soon("it is indexed", || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NOFOLLOW;
            let index = Connection::open_with_flags(store.join("search.db"), flags);
            index.is_ok_and(|index| {
                index.query_row("SELECT count(*) FROM words", [], |row| row.get(0)).is_ok_and(|count: i64| count == 1)
            })
        });
        assert!(!store.join(name).is_symlink(), "{name}");
        assert_eq!(fs::read(&victim).unwrap(), b"", "{name}");
    }
}

#[test]
fn a_search_reads_no_index_through_a_link() {
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, CANARY);
    producer.wait_until_acked();
    assert!(daemon.term(SOON).success());
    // An index that says that all is indexed, and nothing was said.
    let elsewhere = daemon.directory().join("elsewhere.db");
    let index = Connection::open(&elsewhere).unwrap();
    index
        .execute_batch("CREATE TABLE state (name, value); INSERT INTO state VALUES ('watermark', 1000000); CREATE VIRTUAL TABLE words USING fts5(text);")
        .unwrap();
    drop(index);
    let place = daemon.store().join("search.db");
    let _ = fs::remove_file(&place);
    symlink(&elsewhere, &place).unwrap();
    let words = ["history", "search", CANARY, "--config", daemon.config().to_str().unwrap()].map(str::to_owned);
    let (code, found) = said(&words.each_ref().map(String::as_str), &[]);
    assert!(code == Some(0) && found.contains(CANARY), "{code:?} {found}");
}

#[test]
fn no_link_among_the_backups_is_followed() {
    let daemon = Daemon::builder().start();
    let victim = daemon.directory().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::create_dir_all(daemon.backups()).unwrap();
    let end = |session: &str| {
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, session);
        agent.say(1, "Hello");
        agent.end();
        agent.flush("durable");
    };
    end("first");
    soon("a backup", || daemon.metric("backups_written") >= 1);
    let file = tree(&daemon.backups()).into_iter().find(|path| path.is_file()).unwrap();
    // A link in place of the file is replaced …
    fs::write(victim.join("precious"), "data").unwrap();
    fs::remove_file(&file).unwrap();
    symlink(victim.join("precious"), &file).unwrap();
    end("first");
    soon("it is written again", || fs::symlink_metadata(&file).is_ok_and(|metadata| metadata.is_file()));
    // … and one in place of the directory is not followed.
    let date = file.parent().unwrap();
    fs::rename(date, daemon.directory().join("moved")).unwrap();
    symlink(&victim, date).unwrap();
    end("second");
    soon("the failure is counted", || daemon.metric("backup_errors") >= 1);
    assert_eq!(fs::read(victim.join("precious")).unwrap(), b"data");
    assert_eq!(tree(&victim).len(), 1);
}

// ---- what never leaves ---------------------------------------------------------------------------------------------

/// What the binary says to these words and this environment.
fn said(words: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output =
        Command::new(binary()).args(words).env_clear().envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_secret_in_a_broken_configuration_is_never_echoed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let path = file.display().to_string();
    let store = format!("[store]\ndirectory = '{}'\n", directory.path().join("store").display());
    for text in [
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = '{SECRET}\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = {SECRET}\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = ['{SECRET}']\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = '{SECRET}'\nsecret = '{SECRET}'\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = '{SECRET}\u{7}'\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = '{SECRET}'\nsecret_file = '/x'\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsekret = '{SECRET}'\n"),
        format!("[manager_api]\nurl = 'http://user:{SECRET}@127.0.0.1:9/toy'\nsecret = 'x'\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nproxy = 'http://user:{SECRET}@127.0.0.1:9'\nsecret = 'x'\n"),
        format!("[manager_api]\nurl = 'http://127.0.0.1:9/toy'\nsecret = '{SECRET}'\n"),
    ] {
        fs::write(&file, format!("{store}{text}")).unwrap();
        let (code, heard) = said(&["--check-config", "--config", &path], &[]);
        assert!(!heard.contains(SECRET), "{code:?} {text}: {heard}");
        for command in [&["status"][..], &["send", "--mac", MAC, "--session", "s", "x"]] {
            let (_, heard) = said(&[&["--config", path.as_str()], command].concat(), &[]);
            assert!(!heard.contains(SECRET), "{command:?} {text}: {heard}");
        }
    }
    for (name, value) in [
        ("CHAT_HISTORYD__MANAGER_API__SECRET", SECRET.to_owned()),
        ("CHAT_HISTORYD__MANAGER_API__SECRETS", SECRET.to_owned()),
        ("CHAT_HISTORYD__MANAGER_API__URL", format!("http://user:{SECRET}@127.0.0.1:9/toy")),
    ] {
        let (_, heard) = said(&["--check-config"], &[(name, value.as_str())]);
        assert!(!heard.contains(SECRET), "{name}: {heard}");
    }
}

#[test]
fn canary_never_appears_in_any_shape_of_the_log_nor_with_an_inline_secret() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    for format in ["'json'", "'journal'"] {
        let mut daemon = Daemon::builder()
            .api(&api)
            .set("manager_api.secret", &format!("'{SECRET}'"))
            .set("log.level", "'trace'")
            .set("log.format", format)
            .start();
        let unknown = "02:00:00:00:00:78";
        for (mac, session) in [(MAC, "known"), (unknown, "unknown")] {
            let mut producer = Producer::connected(&daemon, mac, &format!("{session}-{}", format.len()));
            producer.say(1, CANARY);
            producer.say(2, &format!("{CANARY} <&> \u{a0}  \u{1f42f}").repeat(9000));
            producer.wait_until_acked();
            producer.agent().line(&json!({ "type": "user_input_transcribed", "transcript": CANARY, "is_final": true, "created_at": 1_758_701_973.5, "seq": 3 }));
            producer.agent().raw(format!("{{\"type\":\"message\",\"content\":\"{CANARY}").as_bytes());
            producer.agent().finish();
        }
        soon("something was delivered", || daemon.metric("delivered") >= 2);
        soon("a device is unknown", || daemon.status()["upload"]["devices_waiting"] == 1);
        // The store breaks under it, and its configuration goes bad.
        fs::write(daemon.config(), format!("[manager_api]\nsecret = '{SECRET}\n")).unwrap();
        daemon.hup();
        soon("it says so", || daemon.log().contains("the old settings stay"));
        let status = daemon.status().to_string();
        assert!(daemon.term(SOON).success());
        for (place, text) in [("the log", daemon.log()), ("the status", status)] {
            for canary in [CANARY, SECRET] {
                let line = text.lines().find(|line| line.contains(canary)).map(|line| line.chars().take(300).collect::<String>());
                assert_eq!(line, None, "{canary} in {place}");
            }
        }
        // It is where it belongs, and nowhere else.
        let holds = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(CANARY));
        let inside = |path: &PathBuf| path.starts_with(daemon.store()) || path.starts_with(daemon.backups());
        let files: Vec<PathBuf> = tree(daemon.directory())
            .into_iter()
            .filter(|path| {
                fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && !metadata.file_type().is_socket())
            })
            .collect();
        assert!(files.iter().any(|path| inside(path) && holds(path)));
        assert_eq!(files.iter().find(|path| !inside(path) && holds(path)), None);
        assert!(api.reports().iter().any(|report| report.report.as_ref().is_some_and(|report| report.content.contains(CANARY))));
    }
}
