//! Directories with their rights, and the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};

use super::daemons_user::DaemonsUser;
use super::finding::{Finding, Level};
use crate::config::{Settings, StoreSettings};

/// Below this a store soon stops being written.
const SCARCE_BYTES: u64 = 64 * 1024 * 1024;

/// The directories that the daemon writes to.
pub(super) fn directories(settings: &Settings, user: Option<DaemonsUser>) -> Vec<Finding> {
    let looked = |check, key, path: &Path, private| {
        let seen = directory(check, key, path, private);
        user.filter(|_| seen.level != Level::Broken).and_then(|user| user.cannot_write(check, path)).unwrap_or(seen)
    };
    let mut findings = vec![looked("store", "store.directory", &settings.store.directory, true)];
    if settings.backup.enabled {
        findings.push(looked("backup", "backup.directory", &settings.backup.directory, false));
    }
    findings
}

fn directory(check: &'static str, key: &str, path: &Path, private: bool) -> Finding {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !private => {
            return Finding::sound(check, format!("{key} {shown} is made with the first backup"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::advice(check, format!("{key} {shown} is not there yet"), "the daemon makes it when it starts");
        }
        Err(error) => {
            let mend = "run doctor as root or as the daemon's user";
            return Finding::advice(check, format!("{key} {shown} cannot be looked at: {error}"), mend);
        }
    };
    if !metadata.is_dir() {
        return Finding::broken(check, format!("{key} {shown} is no directory"), &format!("move it away, or set {key}"));
    }
    let (owner, us) = (metadata.uid(), geteuid().as_raw());
    if us != 0 && owner != us {
        let what = format!("{key} {shown} belongs to user {owner}, and doctor runs as user {us}");
        return Finding::advice(check, what, "run doctor as root or as the daemon's user to see more");
    }
    if access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let mend = format!("chown it to the daemon's user and chmod 700 it; under systemd add ReadWritePaths={shown}");
        return Finding::broken(check, format!("{key} {shown} cannot be written"), &mend);
    }
    if private && metadata.mode() & 0o077 != 0 {
        let what = format!("{key} {shown} is open to others (mode {:04o})", metadata.mode() & 0o7777);
        return Finding::advice(check, what, "chmod 700 it, or restart the daemon, which does so");
    }
    Finding::sound(check, format!("{key} {shown} can be written"))
}

/// Whether the store has room to grow.
pub(super) fn disk(settings: &StoreSettings) -> Finding {
    let mut place = settings.directory.as_path();
    while !place.exists()
        && let Some(parent) = place.parent()
    {
        place = parent;
    }
    let shown = settings.directory.display();
    let Ok(statistics) = nix::sys::statvfs::statvfs(place) else {
        return Finding::advice("disk", format!("the file system of {shown} cannot be asked"), "run doctor as root");
    };
    let free = statistics.blocks_available() * statistics.fragment_size();
    let used = fs::metadata(settings.directory.join("history.db")).map_or(0, |metadata| metadata.len());
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let what = format!("{} MiB are free at {shown}", mib(free));
    if free < SCARCE_BYTES {
        return Finding::broken("disk", what, "make room, or move store.directory to another file system");
    }
    let growth = settings.max_bytes.saturating_sub(used);
    if free < growth {
        let mend = format!("the store may grow by {} MiB (store.max_bytes): lower it, or make room", mib(growth));
        return Finding::advice("disk", what, &mend);
    }
    Finding::sound("disk", what)
}
