//! Another wall clock for the daemon, with its monotonic clock left alone.

use std::path::{Path, PathBuf};

/// Environment that gives a program this wall clock (libfaketime's syntax: `+1y`, `-1d`, `@1970-01-02 00:00:00`);
/// `None`, loudly, where libfaketime is missing. The library is loaded directly, for the `faketime` program would stand
/// between us and the process.
pub fn faketime(specification: &str) -> Option<Vec<(String, String)>> {
    preload(&[("FAKETIME", specification)])
}

/// As [`faketime`], with the clock in a file: who changes that sets the clock of the running program.
pub fn faketime_from(file: &Path) -> Option<Vec<(String, String)>> {
    preload(&[("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()), ("FAKETIME_NO_CACHE", "1")])
}

fn preload(clock: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
    let found = std::fs::read_dir("/usr/lib").ok().into_iter().flatten().flatten().map(|entry| entry.path());
    let library = found
        .chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")])
        .map(|directory| directory.join("faketime/libfaketime.so.1"))
        .find(|path| path.is_file());
    let Some(library) = library else {
        super::skipped("libfaketime is missing");
        return None;
    };
    let library = library.display().to_string();
    let pairs = [("LD_PRELOAD", library.as_str()), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    Some(pairs.iter().chain(clock).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}
