//! What was meant by a misspelt name: the "did you mean" of every unknown key, section and variable.

/// The key that was meant by an unknown one, each as `section.name`: of nearly the same name, best in the same section.
pub(super) fn key(unknown: &str, keys: &[&'static str]) -> Option<&'static str> {
    let (section, name) = unknown.split_once('.').unwrap_or(("", unknown));
    let candidates = keys.iter().filter_map(|key| {
        let (of, its_name) = key.split_once('.')?;
        let far = distance(name, its_name);
        (far <= slip(name)).then(|| (of != section, far, distance(section, of), *key))
    });
    candidates.min().map(|(.., key)| key)
}

/// The word that was meant by an unknown one.
pub(super) fn word<'a>(unknown: &str, words: &[&'a str]) -> Option<&'a str> {
    let candidates = words.iter().map(|word| (distance(unknown, word), *word));
    candidates.filter(|(far, _)| *far <= slip(unknown)).min().map(|(_, word)| word)
}

/// How many letters may be wrong in a word for it to be a slip.
fn slip(word: &str) -> usize {
    (word.len() / 3).clamp(1, 4)
}

/// Edit distance. A long word is cut: it cannot be close to any of ours.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    let b: Vec<char> = b.chars().take(LONGEST).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, left) in a.chars().take(LONGEST).enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        for (right, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let change = diagonal + usize::from(left != *right);
            diagonal = *cell;
            before = change.min(before + 1).min(*cell + 1);
            *cell = before;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_changed_lost_and_added_letters() {
        for (a, b, far) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("url", "url", 0), ("uri", "url", 1)]
        {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
    }

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let keys = ["socket.path", "session.batch_size", "manager_api.url", "store.directory", "backup.directory", "log.level"];
        for (unknown, meant) in [
            ("manager_api.uri", Some("manager_api.url")),
            ("session.batch-size", Some("session.batch_size")),
            ("upload.batch_size", Some("session.batch_size")),
            ("bach_size", Some("session.batch_size")),
            ("stor.directory", Some("store.directory")),
            ("backups.directory", Some("backup.directory")),
            ("socket.foo", None),
            ("", None),
        ] {
            assert_eq!(key(unknown, &keys), meant, "{unknown}");
        }
        assert_eq!(word("sockets", &["session", "socket"]), Some("socket"));
        assert_eq!(word("garden", &["session", "socket"]), None);
    }
}
