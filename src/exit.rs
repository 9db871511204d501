//! The exit codes, after sysexits(3), so that a supervisor can tell "mend the configuration" from "try again".

use std::process::{ExitCode, Termination};

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Success,
    /// 1: `doctor` found something broken.
    Broken,
    /// 64: the command line makes no sense.
    Usage,
    /// 69: the daemon is not there.
    Unavailable,
    /// 70: a core task died, or a history was not forgotten everywhere.
    CoreTask,
    /// 73: the socket or the store cannot be created.
    CannotCreate,
    /// 75: another daemon already serves this socket or store.
    AlreadyRunning,
    /// 78: the configuration cannot be used.
    Configuration,
}

impl Exit {
    /// The number the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Broken => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::CoreTask => 70,
            Self::CannotCreate => 73,
            Self::AlreadyRunning => 75,
            Self::Configuration => 78,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}
