//! What holds for every key: it is in the shipped file with its default, it is read into its own place, and no value of
//! it does worse than be refused where it stands.

use super::*;

const SHIPPED: &str = include_str!("../../../chat-historyd.toml");

/// The shipped file with every key in force.
fn uncommented() -> String {
    let key = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        let (name, _) = rest.split_once(" = ")?;
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then(|| rest.to_owned())
    };
    SHIPPED.lines().map(|line| key(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_shipped_file_sets_nothing() {
    let loaded = load_text(SHIPPED).unwrap();
    assert_eq!(loaded.settings, Settings::defaults(&Environment::default()));
    assert!(loaded.origins.values().all(|origin| *origin == Origin::Default));
}

#[test]
fn the_shipped_file_documents_every_key_with_its_default() {
    let (_directory, sources) = sources(Some(&uncommented()), &[]);
    let loaded = load(&sources).unwrap();
    let defaults = Settings::defaults(&sources.environment);
    let shown: Vec<(&str, String)> = rows(&loaded.settings).into_iter().map(|row| (row.key, row.value)).collect();
    let expected: Vec<(&str, String)> = rows(&defaults).into_iter().map(|row| (row.key, row.value)).collect();
    assert_eq!(shown, expected);
    assert_eq!(loaded.settings, defaults);
    for row in rows(&defaults) {
        assert!(matches!(loaded.origins[row.key], Origin::File { .. }), "{} is not in the shipped file", row.key);
    }
}

#[test]
fn the_shipped_file_keeps_the_order_and_the_spelling_of_what_is_printed() {
    let document: Vec<String> =
        uncommented().lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect();
    let mut printed = Vec::new();
    for row in rows(&Settings::defaults(&Environment::default())) {
        let (section, name) = row.key.split_once('.').unwrap();
        if !printed.contains(&format!("[{section}]")) {
            printed.push(format!("[{section}]"));
        }
        printed.push(format!("{name} = {}", row.value));
    }
    assert_eq!(document, printed);
}

#[test]
fn every_key_is_read_from_its_own_place_into_its_own_row() {
    // A value other than the default for every key: a key that nobody reads, or that another overwrites, would show.
    let values = [
        ("socket.path", "\"/r/e.sock\""),
        ("socket.mode", "\"0600\""),
        ("socket.group", "\"root\""),
        ("socket.allowed_uids", "[7]"),
        ("socket.max_connections", "11"),
        ("socket.max_line_bytes", "\"12 KiB\""),
        ("session.batch_size", "13"),
        ("session.send_interval", "\"14s\""),
        ("session.idle_timeout", "\"15s\""),
        ("session.max_open", "16"),
        ("manager_api.url", "\"http://h/toy\""),
        ("manager_api.secret_file", "\"/s\""),
        ("manager_api.timeout", "\"18s\""),
        ("manager_api.connect_timeout", "\"17s\""),
        ("manager_api.report_time_unit", "\"seconds\""),
        ("manager_api.max_content", "\"1900B\""),
        ("manager_api.on_long_content", "\"truncate\""),
        ("manager_api.escape_html", "false"),
        ("manager_api.send_audio", "true"),
        ("manager_api.send_tools", "true"),
        ("manager_api.ca_file", "\"/ca\""),
        ("manager_api.proxy", "\"http://p:1\""),
        ("upload.concurrency", "20"),
        ("upload.retry_attempts", "21"),
        ("upload.backoff_initial", "\"22s\""),
        ("upload.backoff_max", "\"23s\""),
        ("upload.unknown_device_retry", "\"24s\""),
        ("upload.unknown_device_hold", "\"25s\""),
        ("upload.poison_attempts", "26"),
        ("upload.shutdown_grace", "\"27s\""),
        ("store.directory", "\"/d\""),
        ("store.durability", "\"os\""),
        ("store.retention", "\"28days\""),
        ("store.max_bytes", "\"29 MiB\""),
        ("store.shelf_bytes", "\"100 KiB\""),
        ("backup.enabled", "false"),
        ("backup.directory", "\"/b\""),
        ("status.socket", "\"/r/s.sock\""),
        ("status.http_listen", "\"127.0.0.1:31\""),
        ("log.level", "\"trace\""),
        ("log.format", "\"journal\""),
    ];
    let text = values.map(|(key, value)| format!("{key} = {value}\n")).concat();
    let loaded = load_text(&text).unwrap();
    for row in rows(&loaded.settings).iter().filter(|row| row.key != "manager_api.secret") {
        let expected = values.iter().find(|(key, _)| *key == row.key).map(|(_, value)| *value);
        assert_eq!(Some(row.value.as_str()), expected, "{}", row.key);
    }
    let changed = changes(&Settings::defaults(&Environment::default()), &loaded.settings);
    assert_eq!(changed.len(), values.len());
}

proptest::proptest! {
    #[test]
    fn any_file_is_answered_with_settings_or_problems(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let (directory, sources) = sources(Some(""), &[]);
        std::fs::write(directory.path().join("c.toml"), bytes).unwrap();
        if let Err(error) = load(&sources) {
            assert!(!error.problems.is_empty());
        }
    }

    #[test]
    fn any_value_of_any_key_is_taken_or_refused_where_it_stands(
        key in proptest::sample::select(rows(&Settings::defaults(&Environment::default())).into_iter().map(|row| row.key).collect::<Vec<_>>()),
        value in r#"(-?[1-9][0-9]{0,17}|-?[1-9][0-9]{0,4}\.[0-9]{1,4}|nan|inf|true|false|\[[0-9]{0,9}\]|"[a-zA-Z0-9/:. @?#~-]{0,40}"|\{ x = 1 \}|1979-05-27)"#,
    ) {
        let (section, name) = key.split_once('.').unwrap();
        let (_directory, sources) = sources(Some(&format!("
[{section}]
{name} = {value}
")), &[]);
        match load(&sources) {
            Ok(loaded) => assert!(matches!(loaded.origins[key], Origin::File { line: 3, .. })),
            Err(error) => assert!(error.problems.iter().all(|problem| problem.place.ends_with("c.toml:3")), "{error}"),
        }
    }
}
