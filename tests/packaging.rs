//! What ships beside the binary holds: units, image and README say what is true of the daemon.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_chat-historyd");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program of systemd, or says on the terminal that it is not there (the harness would swallow `eprintln!`).
fn systemd(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).env("LC_ALL", "C").output() {
        Ok(output) => Some(output),
        Err(error) => {
            crate::support::skipped(&format!("{program} cannot be run ({error}): install the package systemd"));
            None
        }
    }
}

fn everything(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The values of a key of a unit, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// What `systemd-analyze verify` says about a service and the socket, in a root that holds nothing else.
fn verify(service: &str) -> Option<String> {
    let tree = tempfile::tempdir().unwrap();
    let put = |path: &str, bytes: &[u8]| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = tree.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let mode = if bytes.starts_with(b"#!") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    put("usr/lib/systemd/system/chat-historyd.service", service.as_bytes());
    put("usr/lib/systemd/system/chat-historyd.socket", read("systemd/chat-historyd.socket").as_bytes());
    put("usr/bin/chat-historyd", b"#!/bin/true\n");
    put("bin/kill", b"#!/bin/true\n"); // else verify complains that what the unit starts is not there
    let in_tree = format!("--root={}", tree.path().display());
    let units = ["chat-historyd.service", "chat-historyd.socket"];
    systemd("systemd-analyze", &["verify", "--man=no", "--recursive-errors=no", &in_tree, units[0], units[1]])
        .map(|output| everything(&output))
}

#[test]
fn systemd_accepts_the_units_without_a_word() {
    let service = read("systemd/chat-historyd.service");
    let Some(words) = verify(&service) else { return };
    assert_eq!(words, "");
    let misspelt = verify(&service.replace("NoNewPrivileges=", "NoNewPrivilege=")).unwrap();
    assert!(misspelt.contains("NoNewPrivilege"), "verify does not see a misspelt key: {misspelt:?}");
}

#[test]
fn the_exposure_of_the_service_is_at_most_one_and_a_half() {
    let file = root().join("systemd/chat-historyd.service");
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold=15", file.to_str().unwrap()];
    let Some(output) = systemd("systemd-analyze", &arguments) else { return };
    let words = everything(&output);
    let level = words.rsplit_once("chat-historyd.service: ").and_then(|(_, rest)| rest.split_whitespace().next());
    let level: f64 = level.expect(&words).parse().expect(&words);
    assert!(level <= 1.5 && output.status.success(), "{words}");
}

#[test]
fn sysusers_makes_the_user_and_the_group_that_the_units_name() {
    let service = read("systemd/chat-historyd.service");
    let socket = read("systemd/chat-historyd.socket");
    let sysusers = read("systemd/chat-historyd.sysusers");
    let (user, group) = (values(&service, "User")[0], values(&service, "Group")[0]);
    assert_eq!((values(&socket, "SocketUser")[0], values(&socket, "SocketGroup")[0]), (user, group));
    assert!(sysusers.lines().any(|line| line.starts_with(&format!("u {user} "))), "{sysusers}");
    assert!(sysusers.lines().any(|line| line.starts_with(&format!("g {group} "))), "{sysusers}");

    let tree = tempfile::tempdir().unwrap();
    let file = root().join("systemd/chat-historyd.sysusers");
    let in_tree = format!("--root={}", tree.path().display());
    let Some(output) = systemd("systemd-sysusers", &["--dry-run", &in_tree, file.to_str().unwrap()]) else { return };
    let words = everything(&output);
    assert!(output.status.success() && words.contains("Creating user 'chat-historyd'"), "{words}");
    assert!(words.contains("Creating group 'chat-history'"), "{words}");
}

#[test]
fn the_events_socket_outlives_the_service() {
    let service = read("systemd/chat-historyd.service");
    let socket = read("systemd/chat-historyd.socket");
    let directory = format!("/run/{}/", values(&service, "RuntimeDirectory")[0]);
    assert!(values(&socket, "ListenStream")[0].starts_with(&directory));
    assert_eq!(values(&service, "RuntimeDirectoryPreserve"), ["yes"], "a stop would delete the socket");
    assert_eq!(values(&service, "Sockets"), ["chat-historyd.socket"]);
    assert_eq!(values(&socket, "SocketMode"), ["0660"]);
}

#[test]
fn the_service_keeps_what_the_daemon_needs() {
    let service = read("systemd/chat-historyd.service");
    assert_eq!(values(&service, "Type"), ["notify"]);
    assert_eq!(values(&service, "Restart"), ["on-failure"]);
    assert_eq!(values(&service, "RestartPreventExitStatus"), ["64 78"]);
    assert_eq!(values(&service, "UMask"), ["0077"]);
    assert_eq!(values(&service, "StateDirectoryMode"), ["0700"]);
    assert!(values(&service, "PrivateUsers").is_empty(), "every peer's uid would read 65534");
    assert!(values(&service, "WatchdogSec").len() == 1);
    let credential = values(&service, "LoadCredential")[0];
    let (id, _) = credential.split_once(':').unwrap();
    assert!(values(&service, "SetCredential")[0].starts_with(&format!("{id}:")), "a missing secret file would fail the start");
}

/// The instructions of the image's last stage, continuation lines joined.
fn final_stage() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<_> =
        lines.map(|line| line.split_once(' ').unwrap()).map(|(word, rest)| (word.to_owned(), rest.trim().to_owned())).collect();
    let last = all.iter().rposition(|(word, _)| word == "FROM").unwrap();
    all[last..].to_vec()
}

fn instruction(word: &str) -> String {
    let stage = final_stage();
    stage.iter().rfind(|(name, _)| name == word).unwrap_or_else(|| panic!("the image has no {word}")).1.clone()
}

#[test]
fn the_image_runs_as_a_number_and_stops_in_order() {
    let user = instruction("USER");
    let (uid, gid) = user.split_once(':').expect("uid:gid");
    assert!(uid.parse::<u32>().unwrap() > 0 && gid.parse::<u32>().unwrap() > 0, "{user}");
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
    assert!(instruction("HEALTHCHECK").ends_with(r#"CMD ["/usr/bin/chat-historyd", "status"]"#), "must need no shell");
    assert_eq!(instruction("ENTRYPOINT"), r#"["/usr/bin/chat-historyd"]"#);
    let keys = documented_keys();
    for variable in instruction("ENV").split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(name, _)| name) {
        let key = variable.strip_prefix("CHAT_HISTORYD__").expect(variable).to_ascii_lowercase().replace("__", ".");
        assert!(keys.contains(&key), "{variable} sets no key of chat-historyd.toml");
    }
}

#[test]
fn the_image_is_built_from_all_that_the_source_includes() {
    let copied: BTreeSet<PathBuf> = read("Dockerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| line.split_whitespace().rev().skip(1).map(PathBuf::from).collect::<Vec<_>>())
        .collect();
    let ignore = read(".dockerignore");
    for path in &copied {
        assert!(root().join(path).exists(), "the Dockerfile copies {}, which is not there", path.display());
        assert!(ignore.lines().any(|line| line == format!("!{}", path.display())), "{} is ignored", path.display());
    }
    for file in rust_files(&root().join("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for macro_name in ["include_str!(\"", "include_bytes!(\""] {
            for included in text.split(macro_name).skip(1).filter_map(|rest| rest.split('"').next()) {
                let target = file.parent().unwrap().join(included).canonicalize().expect(included);
                let target = target.strip_prefix(root().canonicalize().unwrap()).unwrap().to_owned();
                let there = copied.iter().any(|path| target.starts_with(path));
                assert!(there, "{} includes {}, which the Dockerfile does not copy", file.display(), target.display());
            }
        }
    }
}

fn manifest() -> toml_edit::Document<String> {
    toml_edit::Document::parse(read("Cargo.toml")).unwrap()
}

/// cargo refuses a manifest that names a target which is not there, also where only the dependencies are built.
#[test]
fn the_image_has_a_stand_in_for_every_target_of_the_manifest() {
    let (manifest, dockerfile) = (manifest(), read("Dockerfile"));
    let layer = dockerfile.split("COPY Cargo.toml").nth(1).unwrap().split("COPY").next().unwrap();
    let mut targets = vec![manifest["lib"]["path"].as_str().unwrap().to_owned()];
    for kind in ["bin", "test", "example", "bench"] {
        for target in manifest[kind].as_array_of_tables().unwrap() {
            let path = target.get("path").and_then(|path| path.as_str()).map(str::to_owned);
            targets.push(path.unwrap_or_else(|| format!("benches/{}.rs", target["name"].as_str().unwrap())));
        }
    }
    assert!(targets.len() > 5, "{targets:?}");
    for target in targets {
        assert!(root().join(&target).is_file(), "{target}");
        assert!(layer.split_whitespace().any(|word| word == target), "the Dockerfile makes no {target}");
    }
}

#[test]
fn the_image_is_built_with_the_features_of_the_package() {
    let manifest = manifest();
    let features = manifest["package"]["metadata"]["deb"]["features"].as_array().unwrap();
    let features: Vec<&str> = features.iter().map(|feature| feature.as_str().unwrap()).collect();
    for feature in &features {
        assert!(manifest["features"].get(feature).is_some(), "there is no feature {feature}");
    }
    let argument = format!("ARG FEATURES=\"{}\"", features.join(","));
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.lines().any(|line| line == argument), "the Dockerfile has no line {argument}");
    let builds = dockerfile.matches("cargo build").count();
    assert_eq!(dockerfile.matches("--features \"$FEATURES\"").count(), builds, "a build without the features");
}

/// What is in the package stands in Cargo.toml; what a unit or the program expects to be installed must be among it.
#[test]
fn the_package_has_what_the_daemon_needs_where_it_is_looked_for() {
    let manifest = manifest();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let assets: BTreeSet<(String, String)> = assets
        .iter()
        .map(|asset| {
            let text = |at: usize| asset.as_array().unwrap().get(at).unwrap().as_str().unwrap();
            let (source, target) = (text(0), text(1));
            let name = source.rsplit('/').next().unwrap();
            (source.to_owned(), if target.ends_with('/') { format!("/{target}{name}") } else { format!("/{target}") })
        })
        .collect();
    for (source, _) in assets.iter().filter(|(source, _)| !source.starts_with("target/release/")) {
        assert!(root().join(source).is_file(), "{source}");
    }
    let service = read("systemd/chat-historyd.service");
    for (source, place) in [
        ("target/release/chat-historyd", values(&service, "ExecStart")[0]),
        ("chat-historyd.toml", "/etc/chat-historyd/chat-historyd.toml"),
        ("systemd/chat-historyd.tmpfiles", "/usr/lib/tmpfiles.d/chat-historyd.conf"),
    ] {
        assert!(assets.contains(&(source.to_owned(), place.to_owned())), "{source} is not installed as {place}");
    }
    let purge = read("contrib/debian/postrm");
    for (key, parent) in [("StateDirectory", "/var/lib"), ("ConfigurationDirectory", "/etc"), ("RuntimeDirectory", "/run")] {
        assert!(purge.contains(&format!("{parent}/{}", values(&service, key)[0])), "a purge leaves {key}");
    }
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Every `section.key` of `chat-historyd.toml`, those in comments included.
fn documented_keys() -> BTreeSet<String> {
    let (mut section, mut keys) = (String::new(), BTreeSet::new());
    for line in read("chat-historyd.toml").lines() {
        let line = line.trim_start_matches(['#', ' ']);
        let name = |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') && !text.is_empty();
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(title, _)| title) {
            if name(title) {
                title.clone_into(&mut section);
            }
        } else if let Some((key, _)) = line.split_once('=').filter(|(key, _)| name(key.trim())) {
            keys.insert(format!("{section}.{}", key.trim()));
        }
    }
    assert!(keys.len() > 20, "chat-historyd.toml reads strangely: {keys:?}");
    keys
}

/// The fenced blocks of the README in a language.
fn blocks(language: &str) -> Vec<String> {
    let readme = read("README.md");
    let opening = format!("```{language}\n");
    readme.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The rows of the README's table whose header starts like this; each row its cells.
fn table(header: &str) -> Vec<Vec<String>> {
    let readme = read("README.md");
    let mut lines = readme.lines().skip_while(|line| !line.starts_with(header)).skip(2);
    let rows: Vec<Vec<String>> = lines
        .by_ref()
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "the README has no table with the header {header}");
    rows
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn check_config(file: Option<&Path>, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("--check-config").env_clear().envs(variables.iter().copied());
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    command.output().unwrap()
}

#[test]
fn the_readmes_configurations_are_accepted() {
    let snippets = blocks("toml");
    assert!(snippets.len() >= 2);
    for snippet in snippets {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("chat-historyd.toml");
        std::fs::write(&file, &snippet).unwrap();
        let state = directory.path().join("state");
        let output = check_config(Some(&file), &[("STATE_DIRECTORY", state.to_str().unwrap())]);
        assert_eq!(output.status.code(), Some(0), "{snippet}\n{}", everything(&output));
        assert!(everything(&output).contains("send_interval"), "nothing was checked");
    }
}

/// The unit gives a blank credential where the admin made no file.
#[test]
fn a_blank_credential_counts_as_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    std::fs::write(directory.path().join("manager-api-secret"), "\n").unwrap();
    let output = check_config(None, &[("STATE_DIRECTORY", path), ("CREDENTIALS_DIRECTORY", path)]);
    assert_eq!(output.status.code(), Some(0), "{}", everything(&output));
    assert!(everything(&output).contains("secret_file"), "nothing was checked");
    assert!(!everything(&output).contains("manager-api-secret"), "{}", everything(&output));
}

#[test]
fn every_key_the_readme_names_exists() {
    let keys = documented_keys();
    let sections: BTreeSet<&str> = keys.iter().filter_map(|key| key.split('.').next()).collect();
    let readme = read("README.md");
    let prose: String = readme.split("```").step_by(2).collect();
    let named: Vec<&str> = quoted(&prose)
        .into_iter()
        .filter(|word| word.split_once('.').is_some_and(|(section, key)| sections.contains(section) && !key.contains('/')))
        .filter(|word| !matches!(*word, "status.sock"))
        .collect();
    assert!(named.len() > 30, "{named:?}");
    for key in named {
        assert!(keys.contains(key), "the README names {key}, which chat-historyd.toml does not know");
    }
    for variable in readme.split("CHAT_HISTORYD__").skip(1) {
        let name: String = variable.chars().take_while(|letter| letter.is_ascii_uppercase() || *letter == '_').collect();
        let key = name.to_ascii_lowercase().replace("__", ".");
        assert!(key == "section.key" || keys.contains(&key), "the README names CHAT_HISTORYD__{name}");
    }
}

#[test]
fn the_readme_names_all_exit_codes_and_what_systemd_makes_of_them() {
    let rows = table("| code |");
    let codes: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(codes, ["0", "1", "64", "69", "70", "73", "75", "78"]);
    let down: Vec<&str> = rows.iter().filter(|row| row[2].contains("stays down")).map(|row| row[0].as_str()).collect();
    assert_eq!(down.join(" "), values(&read("systemd/chat-historyd.service"), "RestartPreventExitStatus")[0]);
}

#[test]
fn the_readmes_commands_exist() {
    for line in blocks("sh").join("\n").lines().filter(|line| line.starts_with("chat-historyd ")) {
        let mut words = line.split_whitespace().skip(1);
        let command = words.clone().next().filter(|word| !word.starts_with('-'));
        let help = Command::new(BINARY).args(command).arg("--help").output().unwrap();
        assert!(help.status.success(), "{line}: {}", everything(&help));
        for option in words.by_ref().filter(|word| word.starts_with("--")) {
            assert!(everything(&help).contains(option), "`{line}`: no option {option} in\n{}", everything(&help));
        }
    }
}

#[test]
fn the_readmes_lines_of_protocol_are_json_objects() {
    let readme = read("README.md");
    let lines: Vec<&str> = readme.lines().map(|line| line.trim_start_matches([' ', '▶', '◀'])).collect();
    let objects: Vec<&&str> = lines.iter().filter(|line| line.starts_with("{\"")).collect();
    assert!(objects.len() > 10);
    for line in objects {
        assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).is_ok(), "{line}");
    }
}

#[test]
fn every_promise_of_the_readme_links_to_tests_that_exist() {
    let rows = table("| | promise |");
    let numbers: Vec<String> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(numbers, (1..=34).map(|number| format!("P{number}")).collect::<Vec<_>>());
    for row in rows {
        for name in quoted(&row[2]) {
            let places = [name.to_owned(), format!("tests/{name}.rs"), format!("tests/{name}/run")];
            let place = places.iter().find(|place| root().join(place).is_file());
            let place = place.unwrap_or_else(|| panic!("{}: there is no tests/{name}.rs", row[0]));
            assert!(row[2].contains(&format!("[`{name}`]({place})")), "{}: {name} is no link to {place}", row[0]);
        }
        assert!(!quoted(&row[2]).is_empty(), "{}: {}", row[0], row[2]);
    }
}

#[test]
fn the_readmes_links_and_files_exist() {
    let readme = read("README.md");
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = readme.split_whitespace().filter(|word| word.starts_with("systemd/chat-historyd.") || *word == "tests/run");
    for path in links.chain(files).filter(|link| !link.contains("://")).filter_map(|link| link.split('#').next()) {
        assert!(root().join(path).exists(), "the README names {path}");
    }
}
