//! What can go wrong with a command on the history, and how the process then ends.

use std::io;

use crate::exit::Exit;
use crate::history::export::Unavailable;
use crate::history::output::OutputError;
use crate::store::{ArchiveError, StoreError};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// What was asked for makes no sense, or is not there.
    #[error("{0}")]
    Usage(String),
    /// The history cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The format cannot be had.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Standard output, or something like it.
    #[error("cannot write the output: {0}")]
    Io(#[from] io::Error),
    /// The store cannot be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon did not do it.
    #[error("{0}")]
    Daemon(String),
    /// The writer says no, and why.
    #[error("{0}")]
    Refused(String),
    /// The store cannot do it now.
    #[error("{0}")]
    NotNow(String),
    /// The input is no export.
    #[error("{0}")]
    Input(String),
    /// It was done, but not wholly.
    #[error("{0}")]
    Incomplete(String),
}

impl Failure {
    /// The reader of the output went away: its wish, not a failure.
    pub(super) fn is_closed_pipe(&self) -> bool {
        let error = match self {
            Self::Io(error) => error,
            Self::Output(error) => &error.source,
            _ => return false,
        };
        error.kind() == io::ErrorKind::BrokenPipe
    }

    pub(super) const fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Input(_) | Self::Refused(_) | Self::Unavailable(_) => Exit::Usage,
            Self::Store(StoreError::AlreadyRunning { .. }) => Exit::AlreadyRunning,
            Self::Archive(_) | Self::Output(_) | Self::Io(_) | Self::Store(_) | Self::NotNow(_) => Exit::CannotCreate,
            Self::Daemon(_) => Exit::Unavailable,
            Self::Incomplete(_) => Exit::CoreTask,
        }
    }
}
