//! Whether the database is whole, and what stands in it that waits for somebody's decision.
//!
//! Only reads, beside a running daemon, too: SQLite would write its shared index (`-shm`) even for a reader, and make one
//! where there is none, so it is told not to. (As root it gives the log to its owner once more: no more than a `ctime`.)

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::finding::Finding;
use crate::config::StoreSettings;
use crate::store::schema::{APPLICATION_ID, VERSION};
use crate::store::{damage_of, left_behind};

/// How long to wait for a lock of the daemon.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn examine(settings: &StoreSettings) -> Vec<Finding> {
    let path = settings.directory.join("history.db");
    let mut findings = Vec::new();
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => findings.extend(database(&path)),
        Ok(_) => {
            let what = format!("{} is no regular file", path.display());
            findings.push(Finding::broken("database", what, "move it away; the daemon makes a new one"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.push(Finding::sound("database", format!("{} is not there yet", path.display())));
        }
        Err(error) => {
            let what = format!("{} cannot be looked at: {error}", path.display());
            findings.push(Finding::advice("database", what, "run doctor as root or as the daemon's user"));
        }
    }
    findings.extend(set_aside(&settings.directory));
    findings
}

fn database(path: &Path) -> Vec<Finding> {
    let shown = path.display();
    vec![match look(path) {
        Ok(Looked::Sound { rejected, with_log }) => {
            // Without it nothing was compared.
            let but = if with_log { "" } else { ", page by page: its log is looked at by the daemon, and by history check" };
            let sound = Finding::sound("database", format!("{shown} is whole{but}"));
            return std::iter::once(sound).chain(decision(rejected)).collect();
        }
        Ok(Looked::Not(finding)) => finding,
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
                let what = format!("{shown} cannot be read by this user: {error}");
                Finding::advice("database", what, "run doctor as root or as the daemon's user")
            }
            _ => Finding::broken("database", format!("{shown} cannot be read: {error}"), "look at the disk (dmesg)"),
        },
    }]
}

/// What is said of rejected messages that stand in the store.
pub(super) fn decision(rejected: u64) -> Option<Finding> {
    (rejected > 0).then(|| {
        let what = format!("{rejected} rejected messages stand in the store: they are not at the server, and retention leaves them");
        let mend = "decide: chat-historyd rejected list tells why, rejected retry sends them again (once the device is registered, \
                    say), rejected drop deletes them";
        Finding::advice("rejected", what, mend)
    })
}

fn damaged(path: &Path, how: &str) -> Finding {
    let mend = "run chat-historyd history check: it has the damaged file set aside and every readable message saved, with a daemon or \
                without one";
    Finding::broken("database", format!("{} is damaged: {how}", path.display()), mend)
}

enum Looked {
    Sound { rejected: u64, with_log: bool },
    Not(Finding),
}

/// Looks into the database without a trace. Where the shared index of its log is missing, or nobody keeps it, the file is
/// read alone: what stands in the log is checked by the daemon at its next start.
fn look(path: &Path) -> rusqlite::Result<Looked> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    if beside("-shm").exists() {
        match check(path, "readonly_shm=1", true) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {}
            looked => return looked,
        }
    }
    let has_log = beside("-wal").metadata().is_ok_and(|log| log.len() > 0);
    check(path, "immutable=1", !has_log)
}

/// A path as SQLite's URI takes it.
fn uri(path: &Path, how: &str) -> String {
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02x}");
        }
    }
    format!("{uri}?{how}")
}

/// What is wrong with it. Without the log that belongs to it pages of two moments may stand side by side, as a kill in the
/// middle of a checkpoint leaves them: then each is looked at for itself.
fn damage(connection: &Connection, with_log: bool) -> rusqlite::Result<Option<String>> {
    if !with_log {
        let answer: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        return Ok(Some(answer).filter(|answer| answer != "ok"));
    }
    damage_of(connection)
}

fn check(path: &Path, how: &str, with_log: bool) -> rusqlite::Result<Looked> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(path, how), flags)?;
    connection.busy_timeout(PATIENCE)?;
    let number = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let shown = path.display();
    if application != i64::from(APPLICATION_ID) {
        // A database that was just created holds nothing yet.
        if application == 0 {
            return Ok(Looked::Sound { rejected: 0, with_log });
        }
        let what = format!("{shown} belongs to another program");
        return Ok(Looked::Not(Finding::broken("database", what, "set store.directory to another place")));
    }
    if version > i64::from(VERSION) {
        let what = format!("{shown} was made by a newer chat-historyd (schema {version}; this one knows {VERSION})");
        let mend = "install that version again, or set store.directory to another place";
        return Ok(Looked::Not(Finding::broken("database", what, mend)));
    }
    if let Some(how) = damage(&connection, with_log)? {
        return Ok(Looked::Not(damaged(path, &how)));
    }
    // Nothing delivers them, nothing shows them: an older daemon left them behind when a session was forgotten and read back.
    let strays: i64 = connection
        .query_row("SELECT count(*) FROM messages WHERE session NOT IN (SELECT id FROM sessions)", [], |row| row.get(0))
        .unwrap_or(0);
    if strays > 0 {
        let what = format!("in {shown} {strays} messages belong to no session: they are neither delivered nor in any history");
        let mend = "read them with sqlite3: SELECT session, content FROM messages WHERE session NOT IN (SELECT id FROM sessions)";
        return Ok(Looked::Not(Finding::broken("database", what, mend)));
    }
    let rejected: i64 = connection.query_row("SELECT count(*) FROM rejected", [], |row| row.get(0)).unwrap_or(0);
    Ok(Looked::Sound { rejected: rejected.unsigned_abs(), with_log })
}

/// Damaged databases that were set aside. What a salvage could not carry over is nowhere else: it is never just deleted.
fn set_aside(store: &Path) -> Option<Finding> {
    let directory = store.join("corrupt");
    let left = left_behind(store);
    let shown = directory.display();
    if left > 0 {
        let what = format!(
            "{left} messages stand in the damaged databases in {shown} and nowhere else: no salvage could carry them over"
        );
        let mend = format!(
            "look at the disk; copy {shown} away and keep it: a person may still read what a checksum refuses. Only then delete \
             it here; the daemon counts anew when it starts"
        );
        return Some(Finding::advice("salvage", what, &mend));
    }
    let count = std::fs::read_dir(&directory).ok()?.count();
    (count > 0).then(|| {
        let what = format!("{shown} holds {count} damaged databases that were salvaged");
        let mend = "look at the disk; copy them away before you delete them: what could not be read at all is counted nowhere";
        Finding::advice("salvage", what, mend)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_steers_the_uri() {
        assert_eq!(uri(Path::new("/a b/?mode=rwc#%"), "immutable=1"), "file:/a%20b/%3fmode%3drwc%23%25?immutable=1");
    }
}
