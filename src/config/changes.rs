//! What a reload changes, and which of it must wait for a restart.

use super::assemble::backup_in;
use super::rows::rows;
use super::secret::SecretSource;
use super::settings::Settings;

/// What the running daemon is built around.
const FIXED: &[&str] = &[
    "socket.path",
    "socket.mode",
    "socket.group",
    "store.directory",
    "store.durability",
    "status.socket",
    "status.http_listen",
    "log.format",
];

/// A key whose value differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, `section.name`.
    pub key: &'static str,
    /// Whether it takes effect now; else at the next start.
    pub applies: bool,
}

/// The keys whose values differ, in the order of the configuration file.
#[must_use]
pub fn changes(old: &Settings, new: &Settings) -> Vec<Change> {
    let inline = |settings: &Settings| match &settings.manager_api.secret {
        Some(SecretSource::Inline(secret)) => Some(secret.clone()),
        _ => None,
    };
    let inline_differs = inline(old) != inline(new);
    let pairs = rows(old).into_iter().zip(rows(new));
    pairs
        .filter(|(before, after)| before.value != after.value || (before.key == "manager_api.secret" && inline_differs))
        .map(|(before, _)| Change { key: before.key, applies: !FIXED.contains(&before.key) })
        .collect()
}

/// The settings to run on after a reload: the new ones, but the old ones where a restart is needed.
#[must_use]
pub fn apply(old: &Settings, mut new: Settings) -> (Settings, Vec<Change>) {
    if new.backup.directory == backup_in(&new.store.directory) && old.backup.directory == backup_in(&old.store.directory) {
        new.backup.directory.clone_from(&old.backup.directory);
    }
    let changed = changes(old, &new);
    new.socket.path.clone_from(&old.socket.path);
    new.socket.mode = old.socket.mode;
    new.socket.group.clone_from(&old.socket.group);
    new.store.directory.clone_from(&old.store.directory);
    new.store.durability = old.store.durability;
    new.status = old.status.clone();
    new.log.format = old.log.format;
    (new, changed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::environment::Environment;
    use super::super::secret::Secret;
    use super::*;

    fn settings() -> Settings {
        Settings::defaults(&Environment::default())
    }

    #[test]
    fn nothing_changes_between_equals() {
        assert_eq!(changes(&settings(), &settings()), []);
    }

    #[test]
    fn every_fixed_key_is_a_key() {
        let rows = rows(&settings());
        assert!(FIXED.iter().all(|key| rows.iter().any(|row| row.key == *key)));
    }

    #[test]
    fn a_change_says_whether_it_takes_effect_now() {
        let mut new = settings();
        new.session.batch_size = 7;
        new.store.directory = "/elsewhere".into();
        let (applied, changed) = apply(&settings(), new);
        let expected = [Change { key: "session.batch_size", applies: true }, Change { key: "store.directory", applies: false }];
        assert_eq!(changed, expected);
        assert_eq!(applied.session.batch_size, 7);
        assert_eq!(applied.store, settings().store);
    }

    #[test]
    fn only_what_may_change_is_taken_over() {
        let mut new = settings();
        new.socket.path = "/x".into();
        new.socket.mode = 0o600;
        new.socket.group = Some("g".into());
        new.socket.allowed_uids = vec![7];
        new.store.durability = super::super::Durability::Os;
        new.store.retention = Duration::from_secs(60);
        new.status.http_listen = "127.0.0.1:1".parse().ok();
        new.log.format = super::super::LogFormat::Json;
        new.log.level = super::super::LogLevel::Debug;
        let (applied, changed) = apply(&settings(), new);
        let mut expected = settings();
        expected.socket.allowed_uids = vec![7];
        expected.store.retention = Duration::from_secs(60);
        expected.log.level = super::super::LogLevel::Debug;
        assert_eq!(applied, expected);
        assert_eq!(changed.iter().filter(|change| change.applies).count(), 3);
        assert_eq!(changed.len(), 9);
    }

    #[test]
    fn a_default_that_follows_a_fixed_key_stays_with_it() {
        let mut new = settings();
        new.store.directory = "/elsewhere".into();
        new.backup.directory = "/elsewhere/backup".into();
        let (applied, changed) = apply(&settings(), new);
        assert_eq!(applied.backup, settings().backup);
        assert_eq!(changed, [Change { key: "store.directory", applies: false }]);
    }

    #[test]
    fn a_new_inline_secret_is_a_change_that_shows_neither() {
        let with = |secret: &str| {
            let mut settings = settings();
            settings.manager_api.secret = Some(SecretSource::Inline(Secret::new(secret.to_owned())));
            settings
        };
        let changed = changes(&with("old-canary"), &with("new-canary"));
        assert_eq!(changed, [Change { key: "manager_api.secret", applies: true }]);
        assert!(!format!("{:?}", with("canary")).contains("canary"));
        assert!(rows(&with("canary")).iter().all(|row| !row.value.contains("canary")));
    }
}
