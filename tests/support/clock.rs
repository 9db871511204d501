//! Another wall clock for the daemon, with its monotonic clock left alone.

use std::path::PathBuf;

/// Environment that gives a program this wall clock (libfaketime's syntax: `+1y`, `-1d`, `@1970-01-02 00:00:00`);
/// `None`, loudly, where libfaketime is missing. The library is loaded directly, for the `faketime` program would stand
/// between us and the process.
pub fn faketime(specification: &str) -> Option<Vec<(String, String)>> {
    let found = std::fs::read_dir("/usr/lib").ok().into_iter().flatten().flatten().map(|entry| entry.path());
    let library = found
        .chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")])
        .map(|directory| directory.join("faketime/libfaketime.so.1"))
        .find(|path| path.is_file());
    let Some(library) = library else {
        super::skipped("libfaketime is missing");
        return None;
    };
    let pairs = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", specification.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    Some(pairs.map(|(name, value)| (name.to_owned(), value)).into())
}
