//! Whether the database is whole. Only reads, beside a running daemon, too.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::finding::Finding;
use crate::config::StoreSettings;
use crate::store::schema::{APPLICATION_ID, VERSION};

/// How long to wait for a lock of the daemon.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn examine(settings: &StoreSettings) -> Vec<Finding> {
    let path = settings.directory.join("history.db");
    let mut findings = Vec::new();
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => findings.push(database(&path)),
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
    findings.extend(set_aside(&settings.directory.join("corrupt")));
    findings
}

fn database(path: &Path) -> Finding {
    let shown = path.display();
    match check(path) {
        Ok(None) => Finding::sound("database", format!("{shown} is whole")),
        Ok(Some(finding)) => finding,
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
                let what = format!("{shown} cannot be read by this user: {error}");
                Finding::advice("database", what, "run doctor as root or as the daemon's user")
            }
            _ => Finding::broken("database", format!("{shown} cannot be read: {error}"), "look at the disk (dmesg)"),
        },
    }
}

fn damaged(path: &Path, how: &str) -> Finding {
    let mend = "restart the daemon: it sets the damaged file aside and saves every readable message";
    Finding::broken("database", format!("{} is damaged: {how}", path.display()), mend)
}

fn check(path: &Path) -> rusqlite::Result<Option<Finding>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    let number = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let shown = path.display();
    if application != i64::from(APPLICATION_ID) {
        // A database that was just created holds nothing yet.
        return Ok((application != 0).then(|| {
            Finding::broken("database", format!("{shown} belongs to another program"), "set store.directory to another place")
        }));
    }
    if version > i64::from(VERSION) {
        let what = format!("{shown} was made by a newer chat-historyd (schema {version}; this one knows {VERSION})");
        return Ok(Some(Finding::broken(
            "database",
            what,
            "install that version again, or set store.directory to another place",
        )));
    }
    let answer: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((answer != "ok").then(|| damaged(path, &answer)))
}

fn set_aside(directory: &Path) -> Option<Finding> {
    let count = std::fs::read_dir(directory).ok()?.count();
    (count > 0).then(|| {
        let what = format!("{} holds {count} files of damaged databases that were salvaged", directory.display());
        Finding::advice("database", what, "look at the disk; delete them when nobody wants to look into them any more")
    })
}
