//! Behaviours of [`load`] over all layers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::time::Duration;

use super::*;

mod every_key;

/// As root under no supervisor, with a file (if any) and variables.
fn sources(file: Option<&str>, variables: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
    let directory = tempfile::tempdir().unwrap();
    let path = file.map(|text| {
        let path = directory.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        path
    });
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let environment = Environment { variables, system_config: directory.path().join("etc"), ..Environment::default() };
    (directory, Sources { file: path, environment, ..Sources::default() })
}

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    let (_directory, sources) = sources(Some(text), &[]);
    load(&sources)
}

/// The problems as `line: key: message — hint`, without the directory.
fn problems(text: &str) -> Vec<String> {
    let (directory, sources) = sources(Some(text), &[]);
    let prefix = format!("{}/c.toml:", directory.path().display());
    let error = load(&sources).unwrap_err();
    error.problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
}

fn warnings(text: &str) -> Vec<String> {
    load_text(text).unwrap().warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.message)).collect()
}

#[test]
fn the_defaults_are_those_of_the_design() {
    let settings = Settings::defaults(&Environment::default());
    assert_eq!(settings.socket.path, Path::new("/run/chat-historyd/events.sock"));
    assert_eq!(settings.status.socket, Path::new("/run/chat-historyd/status.sock"));
    assert_eq!((settings.socket.mode, settings.socket.max_connections, settings.socket.max_line_bytes), (0o660, 4_096, 4 << 20));
    assert_eq!((settings.session.batch_size, settings.session.max_open), (5, 20_000));
    assert_eq!(settings.session.send_interval, Duration::from_secs(30));
    assert_eq!(settings.upload.unknown_device_hold, Duration::from_secs(7 * 86_400));
    assert_eq!(settings.store.max_bytes, 2 << 30);
    assert_eq!(settings.backup, BackupSettings { enabled: true, directory: "/var/lib/chat-historyd/backup".into() });
}

#[test]
fn who_calls_a_daemon_finds_the_machines_where_none_is_at_the_usual_place_and_nothing_names_one() {
    let (directory, mut sources) = sources(None, &[]);
    let (own, machine) = (directory.path().join("own"), directory.path().join("machine"));
    sources.environment.variables.insert("RUNTIME_DIRECTORY".into(), own.clone().into());
    sources.environment.system_runtime.clone_from(&machine);
    let status = |sources: &Sources| load_to_call(sources).unwrap().settings.status.socket;
    let stands = |directory: &Path| {
        std::fs::create_dir(directory).unwrap();
        std::fs::write(directory.join("status.sock"), "").unwrap();
    };
    assert_eq!(status(&sources), own.join("status.sock"), "there is none");
    stands(&machine);
    assert_eq!(status(&sources), machine.join("status.sock"));
    assert_eq!(load(&sources).unwrap().settings.status.socket, own.join("status.sock"), "a daemon is not moved by it");
    stands(&own);
    assert_eq!(status(&sources), own.join("status.sock"));
    std::fs::remove_dir_all(&own).unwrap();
    sources.environment.variables.insert("CHAT_HISTORYD__STATUS__SOCKET".into(), "/named/status.sock".into());
    assert_eq!(status(&sources), Path::new("/named/status.sock"));
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let file = "[log]\nlevel = 'warn'\nformat = 'json'\n[session]\nbatch_size = 7\nsend_interval = 2.5\n";
    let variables = [("CHAT_HISTORYD__LOG__LEVEL", "error"), ("CHAT_HISTORYD__SESSION__BATCH_SIZE", "9")];
    let (_directory, mut sources) = sources(Some(file), &variables);
    sources.overrides.push(Override { key: "log.level", value: "debug".into(), option: "--log-level" });
    let loaded = load(&sources).unwrap();
    assert_eq!((loaded.settings.log.level, loaded.settings.log.format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!((loaded.settings.session.batch_size, loaded.settings.session.send_interval), (9, Duration::from_millis(2_500)));
    let origin = |key| loaded.origins[key].to_string();
    assert_eq!(origin("log.level"), "--log-level");
    assert_eq!(origin("session.batch_size"), "$CHAT_HISTORYD__SESSION__BATCH_SIZE");
    assert!(origin("session.send_interval").ends_with("/c.toml:6"), "{}", origin("session.send_interval"));
    assert_eq!(origin("session.idle_timeout"), "default");
    assert_eq!(loaded.file, sources.file);
}

#[test]
fn every_kind_of_value_can_come_from_the_environment() {
    let variables = [
        ("CHAT_HISTORYD__SOCKET__ALLOWED_UIDS", "1000, 1001"),
        ("CHAT_HISTORYD__SOCKET__MODE", "0600"),
        ("CHAT_HISTORYD__SOCKET__MAX_LINE_BYTES", "65536"),
        ("CHAT_HISTORYD__SESSION__SEND_INTERVAL", "10"),
        ("CHAT_HISTORYD__SESSION__IDLE_TIMEOUT", "5 min"),
        ("CHAT_HISTORYD__MANAGER_API__SEND_TOOLS", "true"),
        ("CHAT_HISTORYD__MANAGER_API__MAX_CONTENT", "2048"),
        ("CHAT_HISTORYD__STATUS__HTTP_LISTEN", "127.0.0.1:9464"),
        ("CHAT_HISTORYD__STORE__DIRECTORY", ""),
        ("CHAT_HISTORYD_SERVICE_HOST", "10.0.0.1"),
    ];
    let (_directory, sources) = sources(None, &variables);
    let settings = load(&sources).unwrap().settings;
    assert_eq!(settings.socket.allowed_uids, [1000, 1001]);
    assert_eq!((settings.socket.mode, settings.socket.max_line_bytes), (0o600, 65_536));
    assert_eq!(
        (settings.session.send_interval, settings.session.idle_timeout),
        (Duration::from_secs(10), Duration::from_secs(300))
    );
    assert!(settings.manager_api.send_tools);
    assert_eq!(settings.manager_api.max_content, Some(MaxContent::Characters(2048)));
    assert_eq!(settings.status.http_listen.unwrap().port(), 9464);
    assert_eq!(settings.store.directory, Path::new("/var/lib/chat-historyd"));
}

#[test]
fn a_secret_that_looks_like_a_number_stays_text() {
    let (_directory, sources) = sources(None, &[("CHAT_HISTORYD__MANAGER_API__SECRET", "0012345")]);
    let source = load(&sources).unwrap().settings.manager_api.secret.unwrap();
    assert_eq!(source.read().unwrap().expose(), "0012345");
    assert_eq!(problems("[manager_api]\nsecret = 12345\n"), ["2: manager_api.secret: is no text — write it in quotes"]);
}

#[test]
fn all_problems_come_at_once_with_place_and_remedy() {
    let text = "\
[sockets]
path = \"/x\"
[socket]
mode = 660
allowed_uids = [1000, \"root\"]
max_line_bytes = \"4 MB/s\"
[session]
batch_sise = 5
batch_size = 0
send_interval = \"soon\"
[manager_api]
url = \"ftp://h/toy\"
escape_html = \"yes\"
[upload]
backoff_initial = \"5min\"
retry_attempts = \"3\"
[store]
directory = \"history\"
durability = \"paper\"
";
    assert_eq!(
        problems(text),
        [
            "1: sockets: there is no such section — did you mean [socket]?",
            "8: session.batch_sise: there is no such key — did you mean session.batch_size?",
            "4: socket.mode: 660 is no text — write the octal permissions in quotes, for example \"0660\"",
            "5: socket.allowed_uids: \"root\" is no whole number — write a whole number from 0 to 4294967294, without quotes",
            "6: socket.max_line_bytes: \"4 MB/s\" is no size — write a size such as \"512 KiB\", \"4 MiB\", \"2 GiB\" or a number of \
             bytes, from 1 KiB to 64 MiB",
            "9: session.batch_size: 0 is out of range — write a whole number from 1 to 1000, without quotes",
            "10: session.send_interval: \"soon\" is no time — write a time such as \"30s\", \"5min\", \"7days\" or a number of seconds, \
             from 100ms to 1h",
            "12: manager_api.url: begins with neither http:// nor https:// — write it like \"http://127.0.0.1:8080/toy\"; the secret \
             goes into manager_api.secret_file",
            "13: manager_api.escape_html: \"yes\" is neither true nor false — write true or false, without quotes",
            "16: upload.retry_attempts: \"3\" is no whole number — write a whole number from 1 to 100, without quotes",
            "18: store.directory: is no absolute path — begin it with / ('~' and variables are not expanded)",
            "19: store.durability: \"paper\" is not known here — write one of \"fsync\", \"os\"",
            "15: upload.backoff_initial: is longer than upload.backoff_max — let upload.backoff_initial (5m) be at most \
             upload.backoff_max (1m)",
        ]
    );
}

#[test]
fn a_file_of_the_wrong_shape_is_told_how_it_should_be() {
    assert_eq!(
        problems("batch_size = 5\nsocket = 'x'\n[[log]]\nlevel = 'info'\n"),
        [
            "1: batch_size: there is no such key outside the sections — did you mean batch_size in [session]?",
            "2: socket: is no section — write it as a section: [socket]",
            "3: log: is no section — write it as a section: [log]",
        ]
    );
    assert_eq!(
        problems("[log.level]\nx = 1\n[session]\nbatch_size = 1979-05-27\n"),
        [
            "1: log.level: is written as a table — write level = value",
            "4: session.batch_size: a date or a table is no whole number — write a whole number from 1 to 1000, without quotes",
        ]
    );
}

#[test]
fn a_file_full_of_strange_keys_is_not_listed_to_its_end() {
    use std::fmt::Write;
    let mut text = String::from("[log]\n");
    for number in 0..50_000 {
        writeln!(text, "strange{number} = 1").unwrap();
    }
    let problems = problems(&text);
    assert_eq!(problems.len(), 51);
    assert!(problems[50].contains("there is more that is unknown"), "{}", problems[50]);
}

#[test]
fn inline_and_dotted_spellings_are_understood() {
    let loaded = load_text("log = { level = 'warn', format = 'json' }\nsocket.mode = '0600'\n").unwrap();
    assert_eq!((loaded.settings.log.level, loaded.settings.socket.mode), (LogLevel::Warn, 0o600));
    assert!(loaded.origins["socket.mode"].to_string().ends_with(":2"));
}

#[test]
fn broken_toml_is_named_by_its_line_and_not_shown() {
    for text in [
        "[manager_api]\nsecret = hunter2\n",
        "[manager_api]\nsecret = \"hunter2\n",
        "[manager_api]\nsecret = 'hunter2' hunter2\n",
    ] {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("2: is no TOML: "), "{problems:?}");
        assert!(!problems[0].contains("hunter2"), "{problems:?}");
    }
    let (directory, sources) = sources(Some(""), &[]);
    std::fs::write(directory.path().join("c.toml"), b"[log]\n# \xff\n").unwrap();
    let error = load(&sources).unwrap_err().to_string();
    assert!(error.ends_with("c.toml:2: is no UTF-8 text — save the file as UTF-8"), "{error}");
}

#[test]
fn no_complaint_repeats_a_secret_or_a_password() {
    let text = "\
[manager_api]
url = \"http://canary:canary@h/toy?canary=1\"
proxy = \"canary\"
secret_file = \"canary\"
secret = \"canary\\u0007\"
secrets = \"canary\"
";
    let problems = problems(text);
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert!(!problems.join("\n").contains("canary"), "{problems:?}");
}

#[test]
fn a_secret_inline_and_in_a_file_is_a_contradiction() {
    let (_directory, mut sources) =
        sources(Some("[manager_api]\nsecret_file = '/s'\n"), &[("CHAT_HISTORYD__MANAGER_API__SECRET", "x")]);
    sources.purpose = Purpose::Serve;
    let error = load(&sources).unwrap_err();
    assert_eq!(error.problems.len(), 1, "{error}");
    assert_eq!(error.problems[0].place, "$CHAT_HISTORYD__MANAGER_API__SECRET");
    assert!(error.problems[0].message.contains("c.toml:2"), "{error}");
}

#[test]
fn what_is_missing_stops_the_daemon_and_only_warns_who_looks() {
    let text = "[socket]\ngroup = 'no-such-group-here'\n[manager_api]\nurl = 'http://h/toy'\nsecret_file = '/no/such/secret'\nca_file = '/'\n";
    let (_directory, mut sources) = sources(Some(text), &[]);
    let warned = load(&sources).unwrap().warnings;
    sources.purpose = Purpose::Serve;
    let ConfigError { problems: refused, warnings } = load(&sources).unwrap_err();
    sources.purpose = Purpose::Reload;
    let kept_out = load(&sources).unwrap_err().problems;
    let keys = |problems: &[Problem]| problems.iter().map(|problem| problem.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&warned), ["manager_api.secret_file", "manager_api.ca_file", "socket.group"]);
    assert_eq!(keys(&refused), ["socket.group"]);
    let late = ["manager_api.secret_file", "manager_api.ca_file"];
    assert_eq!(keys(&warnings), late, "what only delivery needs keeps nobody from being heard");
    assert_eq!(keys(&kept_out), ["manager_api.secret_file", "manager_api.ca_file", "socket.group"]);
    assert!(kept_out.iter().all(|problem| problem.place.contains("c.toml:") && !problem.hint.is_empty()));
}

#[test]
fn a_secret_in_a_file_that_others_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let text = "[manager_api]\nurl = 'http://h/toy'\nsecret = 's'\n";
    let (_directory, sources) = sources(Some(text), &[]);
    for (mode, warned) in [(0o644, 1), (0o600, 0)] {
        std::fs::set_permissions(sources.file.as_ref().unwrap(), std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(load(&sources).unwrap().warnings.len(), warned);
    }
}

#[test]
fn doubtful_settings_are_warned_of() {
    assert_eq!(
        warnings(""),
        ["manager_api.url: is not set: the history is only kept on this machine and leaves by store.retention"]
    );
    let text = "[socket]\nmode = '0666'\nmax_line_bytes = '16 MiB'\n[status]\nhttp_listen = '0.0.0.0:1'\n[manager_api]\nurl = 'http://h:8080/'\n";
    assert_eq!(
        warnings(text),
        [
            "socket.max_line_bytes: the longest line does not fit on the shelf while the disk fails",
            "socket.mode: every local user may connect",
            "status.http_listen: the metrics can be read from the network",
            "manager_api.url: has no path",
            "manager_api.secret_file: there is no secret: the Manager API will refuse every message",
        ]
    );
}

#[test]
fn a_history_where_nothing_lasts_is_warned_of() {
    let warned = |store: &str, backup: &str| {
        let url = "[manager_api]\nurl = 'http://h/toy'\nsecret = 's'\n";
        let (_directory, sources) = sources(Some(&format!("[store]\ndirectory = '{store}'\n[backup]\n{backup}\n{url}")), &[]);
        let warnings = load(&sources).unwrap().warnings.into_iter().filter(|warning| warning.message.contains("will not last"));
        warnings.map(|warning| (warning.place.rsplit(':').next().unwrap_or_default().to_owned(), warning.key)).collect::<Vec<_>>()
    };
    for place in ["/tmp", "/tmp/store", "/var/tmp/x/y", "/dev/shm/x", "/run/chat-historyd", "/var/run/x"] {
        assert_eq!(warned(place, ""), [("2".to_owned(), "store.directory".to_owned())], "{place}");
        let elsewhere = format!("directory = '{place}'");
        assert_eq!(warned("/srv/history", &elsewhere), [("4".to_owned(), "backup.directory".to_owned())], "{place}");
        assert_eq!(warned("/srv/history", &format!("{elsewhere}\nenabled = false")), [], "{place}: none is written");
    }
    for place in ["/var/lib/chat-historyd", "/tmpfoo", "/srv/tmp", "/var/runner"] {
        assert_eq!(warned(place, ""), [], "{place}");
    }
}

#[test]
fn an_address_loses_its_trailing_slash() {
    for (given, kept) in
        [("http://h/toy/", "http://h/toy"), ("https://H:8443/xiaozhi", "https://h:8443/xiaozhi"), ("http://h/", "http://h")]
    {
        let settings = load_text(&format!("[manager_api]\nurl = '{given}'\n")).unwrap().settings;
        assert_eq!(settings.manager_api.url.as_deref(), Some(kept));
    }
}

#[test]
fn what_depends_on_another_setting_follows_it() {
    let settings = load_text("[socket]\npath = '/a/b.sock'\n[store]\ndirectory = '/data'\n").unwrap().settings;
    assert_eq!(settings.status.socket, Path::new("/a/status.sock"));
    assert_eq!(settings.backup.directory, Path::new("/data/backup"));
    let text = "[socket]\npath = '/a/status.sock'\n";
    assert_eq!(problems(text), ["2: socket.path: socket.path and status.socket are the same — give each socket its own path"]);
}

#[test]
fn a_user_without_a_home_must_say_where_the_history_is_kept() {
    let (_directory, mut sources) = sources(None, &[]);
    sources.environment.uid = 7;
    let error = load(&sources).unwrap_err();
    assert_eq!(error.problems[0].key, "store.directory");
    sources.environment.variables.insert("CHAT_HISTORYD__STORE__DIRECTORY".into(), "/data".into());
    assert_eq!(load(&sources).unwrap().settings.backup.directory, Path::new("/data/backup"));
}

#[test]
fn the_credential_of_systemd_is_used_when_nothing_else_is_set() {
    let (directory, mut sources) = sources(None, &[]);
    sources.environment.variables.insert("CREDENTIALS_DIRECTORY".into(), directory.path().into());
    assert_eq!(load(&sources).unwrap().settings.manager_api.secret, None);
    let credential = directory.path().join("manager-api-secret");
    std::fs::write(&credential, "s3cret\n").unwrap();
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.settings.manager_api.secret, Some(SecretSource::Credential(credential)));
    assert_eq!(loaded.origins["manager_api.secret_file"], Origin::Credential);
    sources.environment.variables.insert("CHAT_HISTORYD__MANAGER_API__SECRET".into(), "other".into());
    let inline = load(&sources).unwrap().settings.manager_api.secret;
    assert_eq!(inline, Some(SecretSource::Inline(Secret::new("other".into()))));
}

#[test]
fn the_first_file_that_exists_is_read() {
    let (directory, mut sources) = sources(None, &[]);
    assert_eq!(load(&sources).unwrap().file, None);
    for place in ["etc", "systemd"] {
        let folder = directory.path().join(place);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("chat-historyd.toml"), "[log]\nlevel = 'warn'\n").unwrap();
    }
    assert_eq!(load(&sources).unwrap().file, Some(directory.path().join("etc/chat-historyd.toml")));
    sources.environment.variables.insert("CONFIGURATION_DIRECTORY".into(), directory.path().join("systemd").into());
    assert_eq!(load(&sources).unwrap().file, Some(directory.path().join("systemd/chat-historyd.toml")));
}
