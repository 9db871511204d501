//! P30: `--check-config` names every problem at once with file, line, key and remedy, prints no secret and touches nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

/// A directory in which everything the daemon could touch lies.
struct Place {
    directory: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

/// What a check said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn variable(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.variables.push((name.to_owned(), value.as_ref().to_str().unwrap().to_owned()));
        self
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chat-historyd"));
        command.env_clear().args(arguments).current_dir(self.directory.path());
        // Nothing of the machine the tests run on is looked at, and nothing outside of the directory could be touched.
        for name in ["HOME", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"] {
            command.env(name, self.path(&name.to_lowercase()));
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).output().unwrap()
    }

    fn check(&self, arguments: &[&str]) -> Said {
        let before = self.listing();
        let output = self.run(&[&["--check-config"], arguments].concat());
        assert_eq!(self.listing(), before, "the check touched something");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn check_file(&self, content: &str) -> Said {
        let file = self.file("c.toml", content);
        self.check(&["--config", file.to_str().unwrap()])
    }

    fn listing(&self) -> BTreeMap<PathBuf, (u64, SystemTime)> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.directory.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    open.push(entry.path());
                }
                found.insert(entry.path(), (metadata.len(), metadata.modified().unwrap()));
            }
        }
        found
    }
}

impl Said {
    /// The lines of standard error that begin with a word, without it and without the directory.
    fn lines(&self, word: &str, place: &Place) -> Vec<String> {
        let directory = format!("{}/", place.directory.path().display());
        let lines = self.err.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(": "));
        // The place itself is a temporary one.
        let lines = lines.filter(|line| !line.contains("will not last"));
        lines.map(|line| line.replace(&directory, "")).collect()
    }
}

#[test]
fn every_problem_is_named_at_once_with_file_line_key_and_remedy() {
    let place =
        Place::new().variable("CHAT_HISTORYD__UPLOAD__CONCURENCY", "4").variable("CHAT_HISTORYD__STORE__MAX_BYTES", "lots");
    let said = place.check_file(
        "[session]\nbatch_size = 0\nsend_intervall = \"30s\"\n\n[manager_api]\nurl = \"http://user:canary@127.0.0.1/toy\"\nsecret = \"canary\"\n\
         secret_file = \"/s\"\n[upload]\nbackoff_initial = \"2min\"\n",
    );
    assert_eq!(said.code, Some(78));
    assert_eq!(said.out, "");
    let expected = [
        "c.toml:3: session.send_intervall: there is no such key — did you mean session.send_interval?",
        "$CHAT_HISTORYD__UPLOAD__CONCURENCY: no setting has this name — did you mean CHAT_HISTORYD__UPLOAD__CONCURRENCY?",
        "c.toml:2: session.batch_size: 0 is out of range — write a whole number from 1 to 1000, without quotes",
        "c.toml:6: manager_api.url: holds a user or a password — write it like \"http://127.0.0.1:8080/toy\"; the secret goes into \
         manager_api.secret_file",
        "c.toml:7: manager_api.secret: is set, and manager_api.secret_file too (c.toml:8) — keep one of the two, best secret_file",
        "$CHAT_HISTORYD__STORE__MAX_BYTES: store.max_bytes: \"lots\" is no size — write a size such as \"512 KiB\", \"4 MiB\", \"2 GiB\" \
         or a number of bytes, from 16 MiB to 16384 GiB",
        "c.toml:10: upload.backoff_initial: is longer than upload.backoff_max — let upload.backoff_initial (2m) be at most \
         upload.backoff_max (1m)",
    ];
    assert_eq!(said.lines("error", &place), expected);
    assert!(!said.err.contains("canary"), "{}", said.err);
}

#[test]
fn the_shipped_configuration_is_valid() {
    let place = Place::new();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("chat-historyd.toml");
    let said = place.check(&["--config", shipped.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(said.lines("error", &place), Vec::<String>::new());
}

#[test]
fn effective_settings_come_with_their_origin_and_without_the_secret() {
    let place = Place::new()
        .variable("CHAT_HISTORYD__MANAGER_API__SECRET", "canary-0012345")
        .variable("CHAT_HISTORYD__LOG__LEVEL", "warn");
    let file = place.file("c.toml", "[manager_api]\nurl = \"http://127.0.0.1:8080/toy/\"\n");
    let said = place.check(&["--config", file.to_str().unwrap(), "--log-level", "debug"]);
    let nothing = Vec::<String>::new();
    assert_eq!((said.code, said.lines("error", &place), said.lines("warning", &place)), (Some(0), nothing.clone(), nothing));
    let origin = |line: &str| {
        let found =
            said.out.lines().find(|printed| printed.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {}", said.out));
        found.split_once(" # ").unwrap().1.to_owned()
    };
    assert_eq!(origin("url = \"http://127.0.0.1:8080/toy\" "), format!("{}:2", file.display()));
    assert_eq!(origin("secret = \"***\" "), "$CHAT_HISTORYD__MANAGER_API__SECRET");
    assert_eq!(origin("level = \"debug\" "), "--log-level");
    assert_eq!(origin("batch_size = 5 "), "default");
    assert_eq!(origin(&format!("directory = \"{}\" ", place.path("state_directory").display())), "default");
    assert!(!said.out.contains("canary"), "{}", said.out);
}

#[test]
fn what_is_printed_is_a_configuration_again() {
    let place = Place::new();
    let first = place.check_file("[session]\nbatch_size = 7\n[socket]\nallowed_uids = [1, 2]\n");
    let second = place.check_file(&first.out);
    assert_eq!(second.code, Some(0), "{}", second.err);
    let values = |said: &Said| -> Vec<String> {
        said.out
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" # ").next().unwrap().trim().to_owned())
            .collect()
    };
    assert_eq!(values(&second), values(&first));
}

#[test]
fn missing_files_are_only_warned_of() {
    let place = Place::new();
    let missing = place.path("no/secret");
    let said =
        place.check_file(&format!("[manager_api]\nurl = \"http://127.0.0.1:8080\"\nsecret_file = \"{}\"\n", missing.display()));
    assert_eq!(said.code, Some(0));
    let warnings = said.lines("warning", &place);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(
        warnings[0],
        "c.toml:2: manager_api.url: has no path — the Manager API usually lives under /toy or /xiaozhi: add that"
    );
    assert!(warnings[1].starts_with("c.toml:3: manager_api.secret_file: the secret cannot be read from no/secret: No such file"));
}

#[test]
fn a_history_that_would_be_swept_away_is_only_warned_of() {
    let place = Place::new();
    let said = place.check_file("[store]\ndirectory = \"/var/tmp/history\"\n[backup]\ndirectory = \"/dev/shm/backup\"\n");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for (line, key) in [(2, "store.directory"), (4, "backup.directory")] {
        let of_it = |said: &&str| said.contains(&format!("c.toml:{line}: {key}: ")) && said.contains("will not last");
        let told: Vec<_> = said.err.lines().filter(of_it).collect();
        assert!(matches!(*told, [told] if told.starts_with("warning: ") && told.contains("like /var/lib/")), "{}", said.err);
    }
}

#[test]
fn a_file_without_a_certificate_is_no_authority() {
    let place = Place::new();
    // A bundle that was cut on its way looks like one at its beginning.
    let garbled = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for (content, wrong) in [("nothing\n", "no certificate"), (garbled, "is no PEM file")] {
        let file = place.file("authority.pem", content);
        let said = place.check_file(&format!("[manager_api]\nurl = \"https://h/toy\"\nca_file = \"{}\"\n", file.display()));
        let warnings = said.lines("warning", &place);
        assert!(warnings.iter().any(|line| line.contains("manager_api.ca_file") && line.contains(wrong)), "{warnings:?}");
    }
}

#[test]
fn a_secret_file_that_others_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let secret = place.file("secret", "canary\n");
    let text = format!("[manager_api]\nurl = \"http://h/toy\"\nsecret_file = \"{}\"\n", secret.display());
    for (mode, warned) in [(0o640, 1), (0o600, 0)] {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = place.check_file(&text);
        assert_eq!((said.code, said.lines("warning", &place).len()), (Some(0), warned), "{}", said.err);
        assert!(!format!("{}{}", said.out, said.err).contains("canary"));
    }
}

#[test]
fn without_any_file_the_defaults_hold() {
    // The last place that is looked at is the machine's own.
    if Path::new("/etc/chat-historyd/chat-historyd.toml").exists() {
        return crate::support::skipped("this machine has a configuration of its own in /etc/chat-historyd");
    }
    let place = Place::new().variable("CONFIGURATION_DIRECTORY", "/nonexistent");
    let said = place.check(&[]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(said.lines("error", &place), Vec::<String>::new());
}

#[test]
fn the_file_of_the_unit_is_found() {
    let place = Place::new();
    place.file("chat-historyd.toml", "[session]\nbatch_size = 9\n");
    let directory = place.directory.path().to_owned();
    let place = place.variable("CONFIGURATION_DIRECTORY", directory);
    assert!(place.check(&[]).out.contains("batch_size = 9 "));
}

#[test]
fn variables_of_an_orchestrator_are_not_ours() {
    let place = Place::new()
        .variable("CHAT_HISTORYD_SERVICE_HOST", "10.0.0.1")
        .variable("CHAT_HISTORYD_PORT_9464_TCP", "tcp://10.0.0.1:9464");
    let said = place.check_file("");
    assert_eq!(said.code, Some(0), "{}", said.err);
}

#[test]
fn a_file_that_cannot_be_one_is_named() {
    let place = Place::new();
    std::fs::create_dir(place.path("d")).unwrap();
    place.file("large.toml", vec![b'#'; 2 << 20]);
    place.file("binary.toml", b"[log]\n\nlevel = \"\xff\"\n");
    for (name, said) in [
        ("missing.toml", "missing.toml: there is no such file — create it or name another with --config"),
        ("d", "d: is a directory — name a file with --config"),
        ("large.toml", "large.toml: is larger than 1 MiB — this is no configuration file: name another"),
        ("binary.toml", "binary.toml:3: is no UTF-8 text — save the file as UTF-8"),
    ] {
        let checked = place.check(&["--config", place.path(name).to_str().unwrap()]);
        assert_eq!(checked.code, Some(78));
        assert_eq!(checked.lines("error", &place), [said]);
    }
    // A device never ends, and a pipe would be waited for.
    assert_eq!(
        place.check(&["--config", "/dev/zero"]).lines("error", &place),
        ["/dev/zero: is no regular file — name a file with --config"]
    );
}

#[test]
fn broken_toml_is_named_by_its_line_without_showing_it() {
    let place = Place::new();
    let said = place.check_file("[manager_api]\nurl = \"http://h/toy\"\nsecret = canary\n");
    assert_eq!(said.code, Some(78));
    let errors = said.lines("error", &place);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("c.toml:3: is no TOML: "), "{errors:?}");
    assert!(!said.err.contains("canary"), "{}", said.err);
}

#[test]
fn of_a_file_that_cannot_be_read_it_is_not_said_what_it_does_not_set() {
    let said = Place::new().check_file("[manager_api]\nurl = \"http://127.0.0.1:8080/toy\"\nx = = 1\n");
    assert_eq!(said.code, Some(78));
    assert!(!said.err.contains("is not set"), "{}", said.err);
}

#[test]
fn a_url_that_already_names_the_report_is_warned_of() {
    for end in ["/agent/chat-history/report", "/agent/chat-history"] {
        let place = Place::new();
        let said = place.check_file(&format!("[manager_api]\nurl = \"http://127.0.0.1:8080/toy{end}\"\nsecret = \"x\"\n"));
        assert_eq!(said.code, Some(0));
        let warnings = said.lines("warning", &place);
        let wanted = "c.toml:2: manager_api.url: names an endpoint, not the Manager API — end it with the context path: the daemon \
                      adds /agent/chat-history/report";
        assert!(warnings.iter().any(|warning| warning == wanted), "{warnings:?}");
    }
}

#[test]
fn a_variable_with_single_underscores_is_warned_of_and_not_used() {
    for name in ["CHAT_HISTORYD_MANAGER_API_URL", "CHAT_HISTORYD_MANAGER_API__URL"] {
        let place = Place::new().variable(name, "http://127.0.0.1:8080/toy");
        let said = place.check_file("");
        assert_eq!(said.code, Some(0));
        let wanted = format!("${name}: is not used — did you mean CHAT_HISTORYD__MANAGER_API__URL?");
        assert!(said.err.contains(&wanted), "{}", said.err);
    }
}

#[test]
fn a_hostile_key_cannot_paint_the_terminal() {
    let place = Place::new();
    let said = place.check_file("[log]\n\"\\u001b[2J\\u202e\" = 1\n");
    assert_eq!(said.code, Some(78));
    assert!(!said.err.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{:?}", said.err);
}

#[test]
fn a_mistake_on_the_command_line_is_usage() {
    let place = Place::new();
    for (arguments, code) in [
        (&["--check-config", "demo"][..], 64),
        (&["--no-such-option"], 64),
        (&["send", "--session", "s"], 64),
        (&["--config"], 64),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        assert_eq!(place.run(arguments).status.code(), Some(code), "{arguments:?}");
    }
    let version = String::from_utf8(place.run(&["--version"]).stdout).unwrap();
    assert_eq!(version, format!("chat-historyd {}\n", env!("CARGO_PKG_VERSION")));
}

/// A daemon that cannot start has no settings to log by, but the journal shall know its words as errors all the same.
#[test]
fn what_keeps_the_daemon_from_starting_is_an_error_for_the_journal() {
    let place = Place::new();
    let file = place.file("c.toml", "[session]\nbatch_size = 0\nbatch = 1\n");
    let arguments = ["--config", file.to_str().unwrap()];
    let said = |place: &Place| String::from_utf8(place.run(&arguments).stderr).unwrap();
    let plain = said(&place);
    assert!(plain.lines().count() == 2 && plain.contains("c.toml:2: session.batch_size: "), "{plain}");
    // As under a unit whose output goes to the journal through a pipe.
    let place = place.variable("INVOCATION_ID", "0");
    let marked: Vec<String> = plain.lines().map(|line| format!("<3>{line}")).collect();
    assert_eq!(said(&place).lines().collect::<Vec<_>>(), marked);
}
