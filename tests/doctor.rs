//! `doctor` against the real daemon and the stand-in API: every finding it can make, by making it true.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::daemon::{Builder, binary};
use crate::support::database::{page_bytes, root_page};
use crate::support::eventually::{SOON, eventually, free_port};
use crate::support::manager_api::SECRET;
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Producer, Rule, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";

/// What the doctor said.
struct Diagnosis {
    code: i32,
    said: Value,
}

impl Diagnosis {
    fn finding(&self, check: &str, level: &str, what: &str) -> &Value {
        let findings = self.said["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| {
            finding["check"] == check && finding["level"] == level && finding["what"].as_str().unwrap().contains(what)
        });
        let found = found.unwrap_or_else(|| panic!("no {level} {check} with {what:?} in {:#}", self.said));
        assert!(level == "sound" || !found["mend"].as_str().unwrap().is_empty(), "every trouble has a remedy: {found}");
        found
    }

    #[track_caller]
    fn has(&self, check: &str, level: &str, what: &str) {
        self.finding(check, level, what);
    }

    #[track_caller]
    fn verdict(&self, verdict: &str) {
        assert_eq!(self.said["verdict"], verdict, "{:#}", self.said);
        assert_eq!(self.code, i32::from(verdict == "broken"), "{:#}", self.said);
    }
}

fn examine(daemon: &Daemon, arguments: &[&str]) -> Diagnosis {
    let output = Command::new(binary())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .args(["doctor", "--format", "json", "--config"])
        .arg(daemon.config())
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let everything = text.clone() + &String::from_utf8_lossy(&output.stderr);
    assert!(!everything.contains(SECRET), "the secret is never shown");
    let said = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {everything}"));
    Diagnosis { code: output.status.code().unwrap(), said }
}

fn api(variant: Variant) -> ManagerApi {
    let api = ManagerApi::start(variant);
    api.register(MAC);
    api
}

fn said_once(daemon: &Daemon, api: &ManagerApi) {
    Producer::connected(daemon, MAC, "s").say(1, "Hello");
    api.wait_for_rows("s", 1);
}

/// What doctor says when another user runs it; nothing where that one cannot reach the binary.
fn told_to_nobody(daemon: &Daemon) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(binary())
        .args(["doctor", "--config"])
        .arg(daemon.config())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_sound_system_is_sound_with_either_server() {
    for (variant, version) in [(Variant::Fork, "0.7.5"), (Variant::Upstream, "0.9.6")] {
        let api = api(variant);
        let daemon = Daemon::start_for(&api);
        said_once(&daemon, &api);
        let reports = api.row_count();
        let found = examine(&daemon, &["--mac", MAC]);
        // Not the disk: a small one under the tests is advice.
        for check in ["config", "store", "backup", "database", "socket", "status", "gate", "reachable", "path", "secret"] {
            found.has(check, "sound", "");
        }
        found.has("time_unit", "sound", version);
        assert_eq!(found.code, 0);
        assert_eq!(api.row_count(), reports, "nothing was stored by looking");
        if variant == Variant::Fork {
            found.has("device", "sound", MAC);
        } else {
            found.has("device", "advice", "does not tell");
        }
    }
}

#[test]
fn the_text_names_each_finding_with_its_remedy_and_the_verdict() {
    let api = api(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    api.set_secret("another");
    let output = Command::new(binary()).args(["doctor", "--config"]).arg(daemon.config()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("sound   reachable") && text.contains("broken  secret"), "{text}");
    assert!(text.contains("→ put the API's system parameter server.secret"), "{text}");
    assert!(text.ends_with("something is broken\n"), "{text}");
}

#[test]
fn a_configuration_that_cannot_be_used_is_all_it_speaks_of() {
    let daemon = Daemon::builder().prepare();
    std::fs::write(daemon.config(), "[upload]\nconcurency = 4\n[session]\nbatch_size = 0\n").unwrap();
    let found = examine(&daemon, &[]);
    assert_eq!((&found.said["verdict"], found.code), (&json!("broken"), 78), "{:#}", found.said);
    found.has("config", "broken", "concurency");
    found.has("config", "broken", "session.batch_size");
    assert!(found.said["findings"].as_array().unwrap().iter().all(|finding| finding["check"] == "config"));
}

#[test]
fn a_daemon_that_is_not_there_was_never_there_or_does_not_answer_is_broken() {
    let api = api(Variant::Fork);
    let mut daemon = Daemon::start_for(&api);
    daemon.kill9();
    let found = examine(&daemon, &[]);
    found.verdict("broken");
    found.has("socket", "broken", "nobody listens at");
    found.has("status", "broken", "nobody listens at");
    found.has("secret", "sound", "takes the secret");
    std::fs::remove_file(daemon.socket()).unwrap();
    examine(&daemon, &[]).has("socket", "broken", "there is no socket");
    daemon.start();
    daemon.signal("STOP");
    let found = examine(&daemon, &[]);
    daemon.signal("CONT");
    found.verdict("broken");
    found.has("socket", "broken", "does not answer within");
}

#[test]
fn directories_are_looked_at_with_their_rights() {
    let mut daemon = Daemon::builder().start();
    std::fs::set_permissions(daemon.store(), std::fs::Permissions::from_mode(0o755)).unwrap();
    examine(&daemon, &[]).has("store", "advice", "open to others (mode 0755)");
    daemon.kill9();
    let file = daemon.directory().join("file");
    std::fs::write(&file, "").unwrap();
    daemon.set("backup.directory", &format!("'{}'", file.display()));
    daemon.set("store.directory", &format!("'{}'", daemon.directory().join("nowhere").display()));
    let found = examine(&daemon, &[]);
    found.has("backup", "broken", "is no directory");
    found.has("store", "advice", "is not there yet");
    found.has("database", "sound", "is not there yet");
    found.verdict("broken");
}

#[test]
fn a_directory_that_cannot_be_written_is_broken_and_one_of_another_user_is_advice() {
    let Some(disk) = crate::support::disk::SmallDisk::mount("8m") else { return };
    let daemon = Daemon::builder().set("store.directory", &format!("'{}'", disk.path().join("store").display())).prepare();
    std::fs::write(daemon.config(), format!("[store]\ndirectory = '{}'\n", disk.path().join("store").display())).unwrap();
    std::fs::create_dir(disk.outside().join("store")).unwrap();
    disk.remount("ro");
    let mut words = disk.wrapper();
    words.extend([binary().display().to_string()]);
    let output = Command::new(&words[0]).args(&words[1..]).args(["doctor", "--config"]).arg(daemon.config()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("broken  store        store.directory") && text.contains("cannot be written"), "{text}");
    assert!(text.contains("broken  disk"), "eight megabytes are too few: {text}");
    assert_eq!(output.status.code(), Some(1));
    if nix::unistd::geteuid().is_root() {
        let daemon = Daemon::builder().start();
        for path in [daemon.directory(), daemon.config().as_path()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let text = told_to_nobody(&daemon);
        if text.is_empty() {
            return crate::support::skipped("another user cannot reach the binary here");
        }
        assert!(text.contains("belongs to user 0, and doctor runs as user 65534"), "{text}");
        assert!(text.contains("advice  database") && text.contains("broken  socket       this user may not connect"), "{text}");
    }
}

#[test]
fn a_database_that_is_damaged_foreign_or_too_new_is_broken() {
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..200 {
        producer.say(1, &format!("{index} {}", "x".repeat(200)));
    }
    producer.wait_until_acked();
    daemon.term(crate::support::eventually::SOON);
    let path = daemon.store().join("history.db");
    let sound = std::fs::read(&path).unwrap();
    examine(&daemon, &[]).has("database", "sound", "is whole");
    let with = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        examine(&daemon, &[])
    };
    let mut torn = sound.clone();
    torn[5 * 4096..12 * 4096].fill(0xa5);
    with(&torn).has("database", "broken", "is damaged");
    with(&[0x55; 8192]).has("database", "broken", "is damaged");
    // Beside its log, without which nobody can say what its indexes should hold.
    let mut behind = sound.clone();
    let index = root_page(&sound, "messages_by_session") * page_bytes(&sound);
    behind[index - 2] ^= 1;
    with(&behind).has("database", "broken", "is damaged");
    let _ = std::fs::remove_file(daemon.store().join("history.db-shm"));
    std::fs::write(daemon.store().join("history.db-wal"), "what a kill left").unwrap();
    with(&behind).has("database", "sound", "is whole, page by page");
    std::fs::remove_file(daemon.store().join("history.db-wal")).unwrap();
    let mut newer = sound.clone();
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    with(&newer).has("database", "broken", "schema 99");
    let mut foreign = sound.clone();
    foreign[68..72].copy_from_slice(b"GPKG");
    with(&foreign).has("database", "broken", "belongs to another program");
    assert_eq!(std::fs::read(&path).unwrap(), foreign, "looking changes nothing");
    std::fs::create_dir(daemon.store().join("corrupt")).unwrap();
    std::fs::write(daemon.store().join("corrupt/history.db"), "x").unwrap();
    with(&sound).has("salvage", "advice", "1 damaged databases");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("DELETE FROM sessions", []).unwrap();
    connection.close().unwrap();
    examine(&daemon, &[]).has("database", "broken", "200 messages belong to no session");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    examine(&daemon, &[]).has("database", "broken", "is no regular file");
}

/// Every file with what would show that somebody wrote it. Not the time of change: SQLite as root gives the log to its
/// owner once more.
fn traces(directory: &std::path::Path) -> Vec<(std::path::PathBuf, u64, [i64; 2])> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, metadata.len(), [metadata.mtime(), metadata.mtime_nsec()]));
    }
    found.sort();
    found
}

#[test]
fn it_leaves_no_trace_in_the_store_whatever_state_that_is_in() {
    let mut daemon = Daemon::builder().start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    daemon.kill9();
    let no_trace = |daemon: &Daemon, state: &str| {
        let before = traces(daemon.store().as_path());
        examine(daemon, &[]).has("database", "sound", "is whole");
        assert_eq!(traces(daemon.store().as_path()), before, "{state}");
    };
    no_trace(&daemon, "killed: log and index are left");
    std::fs::remove_file(daemon.store().join("history.db-shm")).unwrap();
    no_trace(&daemon, "the index is gone");
    daemon.start();
    daemon.term(crate::support::eventually::SOON);
    no_trace(&daemon, "ended in order: there is no log");
    daemon.start();
    Producer::connected(&daemon, MAC, "t").say(1, "Hello");
    examine(&daemon, &[]).has("database", "sound", "is whole");
}

#[test]
fn rejected_messages_are_told_with_and_without_a_daemon() {
    let api = api(Variant::Fork);
    let mut daemon = Daemon::start_for(&api);
    api.rule(Rule::new(Fault::code(10034)).times(1));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    soon("it is rejected", || daemon.metric("rejected") == 1);
    let told = |daemon: &Daemon| {
        let found = examine(daemon, &[]);
        let findings = found.said["findings"].as_array().unwrap();
        findings.iter().filter(|finding| finding["check"] == "rejected" && finding["level"] == "advice").count()
    };
    soon("it stands in the store", || told(&daemon) == 1);
    daemon.kill9();
    assert_eq!(told(&daemon), 1);
}

#[test]
fn a_server_that_does_not_answer_is_named_with_what_to_check() {
    let daemon = Daemon::builder().set("manager_api.url", &format!("'http://127.0.0.1:{}/toy'", free_port())).start();
    let found = examine(&daemon, &[]);
    found.has("reachable", "broken", "does not answer");
    found.verdict("broken");
}

#[test]
fn a_wrong_path_and_a_wrong_secret_are_told_apart() {
    let api = api(Variant::Fork);
    let mut daemon = Daemon::start_for(&api);
    api.set_secret("another");
    let found = examine(&daemon, &[]);
    found.has("path", "sound", "is right");
    found.has("secret", "broken", "refuses the secret");
    found.verdict("broken");
    api.set_secret(SECRET);
    let host = api.url().trim_end_matches("/toy").to_owned();
    for wrong in [host.clone(), format!("{host}/elsewhere"), format!("{host}/toy/agent")] {
        daemon.set("manager_api.url", &format!("'{wrong}'"));
        let found = examine(&daemon, &[]);
        found.has("path", "broken", "");
        found.verdict("broken");
    }
    api.put_behind_nginx();
    daemon.set("manager_api.url", &format!("'{host}'"));
    examine(&daemon, &[]).has("path", "broken", "");
}

#[test]
fn a_missing_or_open_secret_is_found_before_anything_is_sent() {
    let api = api(Variant::Fork);
    let mut daemon = Daemon::start_for(&api);
    std::fs::set_permissions(daemon.secret_file(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let found = examine(&daemon, &[]);
    found.has("secret", "advice", "others may read");
    found.has("secret", "sound", "takes the secret");
    std::fs::write(daemon.secret_file(), "\n").unwrap();
    examine(&daemon, &[]).has("secret", "broken", "is empty");
    std::fs::remove_file(daemon.secret_file()).unwrap();
    examine(&daemon, &[]).has("secret", "broken", "cannot be read");
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    let without: String = text.lines().filter(|line| !line.starts_with("secret_file")).map(|line| format!("{line}\n")).collect();
    std::fs::write(daemon.config(), without).unwrap();
    if !std::path::Path::new("/run/credentials/chat-historyd.service").exists() {
        examine(&daemon, &[]).has("secret", "broken", "there is no server secret");
        // The credential of a unit that is stopped cannot be seen.
        daemon.kill9();
        examine(&daemon, &[]).has("secret", "advice", "cannot be seen from here");
    }
}

#[test]
fn a_server_in_trouble_is_no_wrong_secret() {
    let api = api(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    api.fault(Fault::database_down());
    let found = examine(&daemon, &[]);
    found.has("answers", "broken", "in trouble");
    assert!(found.said["findings"].as_array().unwrap().iter().all(|finding| finding["check"] != "secret"));
}

#[test]
fn the_time_unit_must_fit_the_server() {
    let api = api(Variant::Upstream);
    let mut daemon = Daemon::builder().api(&api).set("manager_api.report_time_unit", "'seconds'").start();
    examine(&daemon, &[]).has("time_unit", "broken", "wants milliseconds");
    daemon.set("manager_api.report_time_unit", "'milliseconds'");
    examine(&daemon, &[]).has("time_unit", "sound", "0.9.6");
    api.rule(Rule::new(Fault::html()).on(Endpoint::PubConfig));
    examine(&daemon, &[]).has("time_unit", "advice", "as configured");
    daemon.set("manager_api.report_time_unit", "'auto'");
    examine(&daemon, &[]).has("time_unit", "broken", "unknown");
    api.clear_faults();
    api.set_version(None);
    examine(&daemon, &[]).has("time_unit", "sound", "before 0.9.3");
}

#[test]
fn a_clock_that_differs_from_the_servers_is_found() {
    let api = api(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    let answer = json!({ "code": 0, "data": { "version": "0.7.5" } }).to_string().into_bytes();
    let dated = |seconds: i64| {
        let now = std::time::SystemTime::now();
        let distance = std::time::Duration::from_secs(seconds.unsigned_abs());
        let date = httpdate::fmt_http_date(if seconds < 0 { now - distance } else { now + distance });
        api.clear_faults();
        let headers = vec![("Date".to_owned(), date), ("Content-Type".to_owned(), "application/json".to_owned())];
        api.rule(Rule::new(Fault::Answer(200, headers, answer.clone())).on(Endpoint::PubConfig));
        examine(&daemon, &[])
    };
    dated(0).has("clock", "sound", "agree");
    dated(600).has("clock", "advice", "behind the server's");
    dated(-600).has("clock", "advice", "ahead of the server's");
    let found = dated(-200_000);
    found.has("clock", "broken", "ahead of");
    found.verdict("broken");
}

#[test]
fn a_device_that_is_not_registered_is_found() {
    let api = api(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    let found = examine(&daemon, &["--mac", "AA:BB:CC:DD:EE:FF"]);
    found.has("device", "broken", "aa:bb:cc:dd:ee:ff");
    found.verdict("broken");
    api.rule(Rule::new(Fault::database_down()).on(Endpoint::AgentId));
    examine(&daemon, &["--mac", MAC]).has("device", "advice", "cannot be told");
}

#[test]
fn the_daemons_own_troubles_are_told() {
    let api = api(Variant::Fork);
    let daemon = Daemon::start_for(&api);
    let mut agent = Agent::connect(&daemon);
    agent.bind("aa:bb:cc:dd:ee:ff", "stranger");
    agent.say(1, "Hello");
    soon("the device waits", || daemon.status()["upload"]["devices_waiting"] == 1);
    examine(&daemon, &[]).has("devices", "advice", "does not know 1 devices");
    api.fault(Fault::code(10034));
    agent.bind(MAC, "s");
    agent.say(1, "Hello");
    soon("it is rejected", || daemon.metric("rejected") == 1);
    api.clear_faults();
    eventually(SOON, "it is told", || {
        let found = examine(&daemon, &[]);
        let findings = found.said["findings"].as_array().unwrap().clone();
        findings.into_iter().find(|finding| finding["check"] == "rejected" && finding["level"] == "advice")
    });
    api.set_secret("another");
    agent.say(1, "Hello again");
    soon("the gate closes", || daemon.status()["gate"]["state"] == "closed");
    let found = examine(&daemon, &[]);
    found.has("gate", "broken", "operator");
    found.verdict("broken");
}

#[test]
fn without_a_server_configured_it_is_advice() {
    let daemon = Daemon::builder().start();
    let found = examine(&daemon, &[]);
    found.verdict("advice");
    found.has("reachable", "advice", "no manager_api.url");
    found.has("gate", "advice", "no manager_api.url");
}

/// A daemon that runs as nobody, in a directory of its own; `None`, loudly, where that cannot be.
fn nobodys(daemon: Builder) -> Option<Daemon> {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let reachable = || {
        let output = Command::new("setpriv").args(nobody).arg(binary()).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    if !nix::unistd::geteuid().is_root() || !reachable() {
        crate::support::skipped("another user cannot reach the binary here, or tests do not run as root");
        return None;
    }
    let script = r#"chown 65534 "$3" && exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@""#;
    let daemon = daemon.wrapper(&["sh", "-c", script, "sh"]).prepare();
    give(daemon.directory(), 65534);
    give(&daemon.directory().join("run"), 65534);
    Some(daemon)
}

fn give(path: &std::path::Path, user: u32) {
    std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
}

#[test]
fn root_sees_what_the_daemons_user_may_not_write() {
    let Some(mut daemon) = nobodys(Daemon::builder()) else { return };
    std::fs::create_dir(daemon.backups()).unwrap();
    daemon.start();
    let found = examine(&daemon, &[]);
    found.has("store", "sound", "can be written");
    found.has("backup", "broken", "the daemon (user 65534) may not write");
    found.verdict("broken");
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "Hello");
    agent.end();
    soon("a backup is missed", || daemon.metric("backups_due") > 0);
    examine(&daemon, &[]).has("backup", "advice", "whose backup cannot be written now: 1");
    give(&daemon.backups(), 65534);
    // A copy of the store that root brought back.
    give(&daemon.store().join("lock"), 0);
    let found = examine(&daemon, &[]);
    found.has("backup", "sound", "can be written");
    found.has("store", "broken", "/store/lock");
    daemon.kill9();
    daemon.spawn();
    assert_eq!(daemon.wait(SOON).code(), Some(73));
    soon("the log has the remedy", || daemon.log().contains("chown -R store.directory to the daemon's user"));
}

#[test]
fn root_sees_that_the_daemons_user_may_not_read_the_secret() {
    let api = api(Variant::Fork);
    let Some(mut daemon) = nobodys(Daemon::builder().api(&api)) else { return };
    daemon.start();
    examine(&daemon, &[]).has("secret", "broken", "the daemon (user 65534) may not read");
    give(&daemon.secret_file(), 65534);
    examine(&daemon, &[]).has("secret", "sound", "takes the secret");
}

#[test]
fn who_may_not_read_the_secret_is_told_that_and_not_that_it_is_broken() {
    let api = api(Variant::Fork);
    let Some(mut daemon) = nobodys(Daemon::builder().api(&api)) else { return };
    daemon.start();
    let text = told_to_nobody(&daemon);
    assert!(text.contains("advice  secret       this user may not read the secret in "), "{text}");
}

#[test]
fn who_is_not_among_the_allowed_users_does_not_knock() {
    let mut daemon = Daemon::builder().set("socket.allowed_uids", "[54321]").prepare();
    daemon.spawn();
    soon("it serves", || daemon.try_status().is_some());
    let found = examine(&daemon, &[]);
    found.has("socket", "advice", "is not in socket.allowed_uids");
    found.verdict("advice");
    assert_eq!(daemon.metric("peers_refused"), 0);
    assert!(!daemon.log().contains("was refused"), "{}", daemon.log());
}

#[test]
fn a_daemon_without_room_for_one_connection_more_says_so() {
    let daemon = Daemon::builder().set("socket.max_connections", "1").start();
    soon("the readiness check has gone", || daemon.metric("connections") == 0);
    let mut kept = Agent::connect(&daemon);
    assert!(kept.is_answered());
    let found = examine(&daemon, &[]);
    found.has("socket", "broken", "has no room for one connection more");
    assert!(found.finding("socket", "broken", "")["mend"].as_str().unwrap().contains("socket.max_connections"));
}

#[test]
fn nothing_is_said_of_a_version_where_the_path_is_wrong() {
    let api = api(Variant::Fork);
    let mut daemon = Daemon::start_for(&api);
    for endpoint in [Endpoint::Report, Endpoint::PubConfig] {
        api.rule(Rule::new(Fault::status(404)).on(endpoint));
    }
    let found = examine(&daemon, &[]);
    found.has("path", "broken", "");
    found.has("time_unit", "advice", "cannot be told");
    api.clear_faults();
    daemon.set("manager_api.url", &format!("'http://127.0.0.1:{}/toy'", free_port()));
    examine(&daemon, &["--mac", MAC]).has("device", "advice", "could not be asked");
    daemon.unset("manager_api.url");
    examine(&daemon, &["--mac", MAC]).has("device", "advice", "could not be asked");
}

#[test]
fn a_refused_reload_is_told_also_when_the_file_is_mended_since() {
    let mut daemon = Daemon::builder().start();
    daemon.set("session.batch_size", "0");
    daemon.hup();
    soon("it is refused", || daemon.metric("config_last_reload_successful") == 0);
    daemon.set("session.batch_size", "7");
    examine(&daemon, &[]).has("reload", "advice", "the last reload was refused");
    let output = Command::new(binary()).args(["status", "--config"]).arg(daemon.config()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("settings   the last reload was refused"), "{text}");
    daemon.hup();
    soon("it is taken", || daemon.metric("config_last_reload_successful") == 1);
    assert!(examine(&daemon, &[]).said["findings"].as_array().unwrap().iter().all(|finding| finding["check"] != "reload"));
}

/// A history whose message `text` is damaged: a salvage finds it and cannot carry it over.
fn with_a_damaged_message(daemon: &mut Daemon, text: &str) {
    let mut producer = Producer::connected(daemon, MAC, "s");
    for content in ["the first", text, "the third"] {
        producer.say(1, content);
    }
    producer.wait_until_acked();
    daemon.term(SOON);
    let path = daemon.store().join("history.db");
    let mut database = std::fs::read(&path).unwrap();
    // It is salvaged because of this, whatever the message says.
    database[..16].fill(0);
    let at = database.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
    database[at] ^= 4;
    std::fs::write(&path, database).unwrap();
}

#[test]
fn what_a_salvage_left_behind_is_counted_until_it_is_taken_away_and_never_just_to_be_deleted() {
    let mut daemon = Daemon::builder().set("backup.enabled", "false").start();
    with_a_damaged_message(&mut daemon, "the second");
    daemon.start();
    for _ in 0..2 {
        assert_eq!(daemon.metric("messages_left_behind"), 1);
        let found = examine(&daemon, &[]);
        let finding = found.finding("salvage", "advice", "1 messages");
        assert!(finding["mend"].as_str().unwrap().contains("copy"), "{finding}");
        let status = Command::new(binary()).args(["status", "--config"]).arg(daemon.config()).output().unwrap();
        assert!(String::from_utf8(status.stdout).unwrap().contains("left       1 messages"));
        // It is known after a restart, too.
        daemon.restart();
    }
    std::fs::remove_dir_all(daemon.store().join("corrupt")).unwrap();
    daemon.restart();
    assert_eq!(daemon.metric("messages_left_behind"), 0);
}

#[test]
fn root_sees_that_the_daemons_user_may_not_make_a_directory() {
    let Some(mut daemon) = nobodys(Daemon::builder()) else { return };
    let roots = daemon.directory().join("roots");
    std::fs::create_dir(&roots).unwrap();
    std::fs::set_permissions(&roots, std::fs::Permissions::from_mode(0o755)).unwrap();
    daemon.set("backup.directory", &format!("'{}'", roots.join("deep/backup").display()));
    daemon.start();
    let found = examine(&daemon, &[]);
    let finding = found.finding("backup", "broken", "the daemon (user 65534) cannot make");
    assert!(finding["what"].as_str().unwrap().contains(roots.to_str().unwrap()), "{finding}");
    give(&roots, 65534);
    examine(&daemon, &[]).has("backup", "sound", "is made with the first backup");
}

#[test]
fn a_url_that_only_the_daemon_knows_is_not_said_to_be_missing() {
    let api = api(Variant::Fork);
    let mut daemon = Daemon::start_for(&api);
    said_once(&daemon, &api);
    // As where the daemon has it from its own environment.
    daemon.unset("manager_api.url");
    let found = examine(&daemon, &[]);
    found.has("gate", "sound", "messages are sent");
    let finding = found.finding("reachable", "advice", "the running daemon has a manager_api.url");
    assert!(finding["mend"].as_str().unwrap().contains("environment"), "{finding}");
    assert!(!found.said.to_string().contains("only kept"), "{:#}", found.said);
}
