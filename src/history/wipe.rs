//! Deletes backups, and looks whether what was forgotten is really gone from the files.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::name::{backup_of, file_name, is_date};
use crate::protocol::{MacAddress, SessionId, SessionIdentity};

/// Read at once while files are searched.
const CHUNK: usize = 1 << 20;

/// Deletes the backups of a device, of a session, or of a device's session; answers how many. What a kill left
/// half-written of them goes, too. What bears no name of ours stays: the directory may be shared.
///
/// # Errors
/// When one cannot be deleted; the others are.
pub fn delete_backups(root: &Path, mac: Option<MacAddress>, session_id: Option<&SessionId>) -> io::Result<u64> {
    let (mut deleted, mut failed) = (0, None);
    for date in entries(root).filter(|path| is_date(name_of(path)) && is_directory(path)) {
        for file in entries(&date) {
            let is_file = file.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
            if !is_file || !backup_of(name_of(&file)).is_some_and(|name| is_meant(name, mac, session_id)) {
                continue;
            }
            match fs::remove_file(&file) {
                Ok(()) => deleted += 1,
                Err(error) => failed = Some(error),
            }
        }
        // Only goes when it is empty.
        let _ = fs::remove_dir(&date);
    }
    failed.map_or(Ok(deleted), Err)
}

/// Whether this file is the backup of another device or session.
#[must_use]
pub fn is_backup_of_another(file: &Path, mac: Option<MacAddress>, session_id: Option<&SessionId>) -> bool {
    backup_of(name_of(file)).is_some_and(|name| !is_meant(name, mac, session_id))
}

/// Whether there is a file in this directory or below.
#[must_use]
pub fn holds_files(directory: &Path) -> bool {
    entries(directory).any(|path| !is_directory(&path) || holds_files(&path))
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Whether a backup of this name is one of those.
fn is_meant(name: &str, mac: Option<MacAddress>, session_id: Option<&SessionId>) -> bool {
    let Some((owner, _)) = name.split_once('_') else { return false };
    let Ok(owner) = owner.parse::<MacAddress>() else { return false };
    let of_device = mac.is_none_or(|mac| mac == owner);
    let of_session =
        session_id.is_none_or(|session_id| name == file_name(&SessionIdentity { mac: owner, session_id: session_id.clone() }));
    of_device && of_session
}

fn entries(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// The files below `roots` that hold one of the texts looked for in them, with the texts found there. What stands below
/// two of them is read once.
///
/// # Errors
/// When a file cannot be read.
pub fn files_with<'t>(roots: &[&Path], texts_in: impl Fn(&Path) -> &'t [String]) -> io::Result<Vec<(PathBuf, Vec<String>)>> {
    let mut found = Vec::new();
    // A root may be reached through a symbolic link (systemd's `StateDirectory=` makes one), what is below may not.
    let roots: BTreeSet<PathBuf> = roots.iter().filter_map(|root| root.canonicalize().ok()).collect();
    let is_below_another = |root: &PathBuf| roots.iter().any(|other| root != other && root.starts_with(other));
    let mut left: Vec<PathBuf> = roots.iter().filter(|root| !is_below_another(root)).cloned().collect();
    while let Some(path) = left.pop() {
        if is_directory(&path) {
            left.extend(entries(&path));
            continue;
        }
        if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let texts_there = match search(&path, texts_in(&path)) {
            Ok(texts_there) => texts_there,
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        if !texts_there.is_empty() {
            found.push((path, texts_there));
        }
    }
    Ok(found)
}

fn search(path: &Path, texts: &[String]) -> io::Result<Vec<String>> {
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    let mut file = File::open(path)?;
    let mut found = HashSet::new();
    let mut window: Vec<u8> = Vec::with_capacity(CHUNK + longest);
    loop {
        let kept = window.len().min(longest);
        window.drain(..window.len() - kept);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut window)?;
        if read == 0 {
            return Ok(found.into_iter().cloned().collect());
        }
        for text in texts {
            if !found.contains(text) && memchr::memmem::find(&window, text.as_bytes()).is_some() {
                found.insert(text);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::name::{aside_name, temporary_name};
    use super::*;

    #[test]
    fn only_the_backups_that_are_meant_go() {
        let root = tempfile::tempdir().unwrap();
        let mac: MacAddress = "68:25:dd:ba:39:78".parse().unwrap();
        let other: MacAddress = "aa:bb:cc:dd:ee:ff".parse().unwrap();
        let id = |text: &str| SessionId::new(text).unwrap();
        let put = |mac, text: &str| {
            let directory = root.path().join("2025-09-24");
            fs::create_dir_all(&directory).unwrap();
            let path = directory.join(file_name(&SessionIdentity { mac, session_id: id(text) }));
            fs::write(&path, "x").unwrap();
            path
        };
        let (a, b, c) = (put(mac, "a"), put(mac, "b"), put(other, "a"));
        assert_eq!(delete_backups(root.path(), Some(mac), Some(&id("a"))).unwrap(), 1);
        assert!(!a.exists() && b.exists() && c.exists());
        assert_eq!(delete_backups(root.path(), Some(mac), None).unwrap(), 1);
        assert!(!b.exists() && c.exists());
        assert_eq!(delete_backups(root.path(), None, Some(&id("a"))).unwrap(), 1);
        assert!(!c.exists() && !root.path().join("2025-09-24").exists());
    }

    #[test]
    fn what_somebody_else_keeps_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let mac: MacAddress = "68:25:dd:ba:39:78".parse().unwrap();
        let ours = file_name(&SessionIdentity { mac, session_id: SessionId::new("a").unwrap() });
        let (date, theirs) = (root.path().join("2025-09-24"), root.path().join("theirs"));
        let empty = root.path().join("empty");
        for directory in [&date, &theirs, &empty] {
            fs::create_dir(directory).unwrap();
        }
        let kept = [
            date.join("6825ddba3978_notes.txt"),
            date.join("6825ddba3978_a_list_of_mine.json"),
            date.join(format!("{ours}.gz")),
            date.join(format!(".{ours}.swp")),
            theirs.join(&ours),
        ];
        for path in &kept {
            fs::write(path, "theirs").unwrap();
        }
        let gone = [ours.clone(), temporary_name(&ours), aside_name(&ours)].map(|name| date.join(name));
        for path in &gone {
            fs::write(path, "ours").unwrap();
        }
        let link = date.join(temporary_name(&ours));
        std::os::unix::fs::symlink(&kept[0], &link).unwrap();
        assert_eq!(delete_backups(root.path(), Some(mac), None).unwrap(), 3);
        assert!(kept.iter().all(|path| path.exists()) && link.is_symlink() && empty.exists());
        assert!(!gone.iter().any(|path| path.exists()));
    }

    #[test]
    fn a_text_is_found_across_the_edge_of_two_reads() {
        let root = tempfile::tempdir().unwrap();
        let mut bytes = vec![b'.'; CHUNK - 5];
        bytes.extend_from_slice("गुप्त secret".as_bytes());
        bytes.extend(vec![b'.'; 100]);
        fs::write(root.path().join("file"), bytes).unwrap();
        let texts = ["गुप्त secret".to_owned(), "not there".to_owned()];
        let found = files_with(&[root.path()], |_| &texts).unwrap();
        assert_eq!(found, [(root.path().canonicalize().unwrap().join("file"), vec!["गुप्त secret".to_owned()])]);
    }

    #[test]
    fn a_file_below_two_roots_is_searched_once_and_a_linked_root_is_searched() {
        let root = tempfile::tempdir().unwrap();
        let (store, link) = (root.path().join("store"), root.path().join("link"));
        fs::create_dir_all(store.join("backup")).unwrap();
        fs::write(store.join("backup/file"), "a secret").unwrap();
        std::os::unix::fs::symlink(&store, &link).unwrap();
        let texts = ["secret".to_owned()];
        assert_eq!(files_with(&[&store, &store.join("backup")], |_| &texts).unwrap().len(), 1);
        assert_eq!(files_with(&[&link], |_| &texts).unwrap().len(), 1);
    }
}
