//! What can go wrong with the store, said with path, verb and cause. No message holds content.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use rusqlite::ErrorCode;

use super::files::SUFFIXES;
use super::types::StreamTaken;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon holds the instance lock: exit code 75.
    #[error("another chat-historyd uses {} (stop it, or set store.directory)", .directory.display())]
    AlreadyRunning {
        /// The store's directory.
        directory: PathBuf,
    },
    /// A file or directory of the store cannot be used.
    #[error("cannot {op} {}: {source}{}", .path.display(), remedy(.source))]
    File {
        /// What was tried.
        op: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The directory is not the store's own: making it private would lock out who else uses it.
    #[error("{} is open to others (mode {mode:04o}) and holds other files than the store's: it is left alone (set store.directory to a directory of its own, or chmod 0700 this one)", .directory.display())]
    Shared {
        /// The directory.
        directory: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// SQLite says no.
    #[error("cannot {op} {}: {source}{}", .path.display(), .foreign.as_ref().map(ToString::to_string).unwrap_or_default())]
    Database {
        /// What was tried.
        op: &'static str,
        /// With which database.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
        /// The file of it that another user keeps from this one.
        foreign: Option<Box<Foreign>>,
    },
    /// The file was written by a newer daemon. It is left alone.
    #[error("{} has schema version {found}, this daemon knows {known} (install the newer chat-historyd again, or set store.directory)", .path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// Ours.
        known: i32,
    },
    /// What may be in the database cannot be read now (disk failure, or salvage under way). Try again later.
    #[error("the store cannot be read now")]
    Unavailable,
    /// No room left: store limit reached, or shelf full.
    #[error("the store has no room left (store.max_bytes, store.shelf_bytes)")]
    Overloaded,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// A file of another user, which SQLite only says it cannot open or write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(" ({} belongs to user {owner}, this is user {us}: chown -R store.directory to the daemon's user)", .path.display())]
pub struct Foreign {
    path: PathBuf,
    owner: u32,
    us: u32,
}

impl Foreign {
    /// The first such file of a database, when that may be why.
    fn behind(error: &rusqlite::Error, database: &Path) -> Option<Self> {
        let us = geteuid();
        let may_be_why =
            matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly));
        if us.is_root() || !may_be_why {
            return None;
        }
        SUFFIXES.iter().find_map(|suffix| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            let owner = std::fs::symlink_metadata(&path).ok()?.uid();
            (owner != us.as_raw()).then(|| Self { path: path.into(), owner, us: us.as_raw() })
        })
    }
}

/// What to do about a file that cannot be used.
fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => " (chown -R store.directory to the daemon's user: a copy may belong to another)",
        _ => "",
    }
}

impl StoreError {
    pub(super) fn file(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { op, path, source }
    }

    pub(super) fn database(op: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        move |source| {
            let foreign = Foreign::behind(&source, &path).map(Box::new);
            Self::Database { op, path, source, foreign }
        }
    }
}

/// Why a stream was not bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It belongs to another session.
    #[error(transparent)]
    Taken(#[from] StreamTaken),
    /// The store cannot say.
    #[error(transparent)]
    Store(#[from] StoreError),
}
