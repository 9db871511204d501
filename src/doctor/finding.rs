//! One thing that was looked at.

use std::fmt;

use serde_json::{Value, json};

use crate::config::Problem;
use crate::observe::logging::escape_controls;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Level {
    Sound,
    /// The system works; this is worth knowing.
    Advice,
    /// The system does not work until this is mended.
    Broken,
}

impl Level {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Advice => "advice",
            Self::Broken => "broken",
        }
    }
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    /// What was looked at; a fixed word, for programs.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What is so.
    pub(super) what: String,
    /// How to mend it; empty when it is sound.
    pub(super) mend: String,
}

impl Finding {
    pub(super) const fn sound(check: &'static str, what: String) -> Self {
        Self { check, level: Level::Sound, what, mend: String::new() }
    }

    pub(super) fn advice(check: &'static str, what: String, mend: &str) -> Self {
        Self { check, level: Level::Advice, what, mend: mend.to_owned() }
    }

    pub(super) fn broken(check: &'static str, what: String, mend: &str) -> Self {
        Self { check, level: Level::Broken, what, mend: mend.to_owned() }
    }

    pub(super) fn of_problem(level: Level, problem: &Problem) -> Self {
        let place = [problem.place.as_str(), problem.key.as_str(), problem.message.as_str()];
        let what: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        Self { check: "config", level, what: what.join(": "), mend: problem.hint.clone() }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "check": self.check, "level": self.level.as_str(), "what": self.what, "mend": self.mend })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<7} {:<12} {}", self.level.as_str(), self.check, escape_controls(&self.what))?;
        if self.mend.is_empty() { Ok(()) } else { writeln!(f, "{:20} → {}", "", escape_controls(&self.mend)) }
    }
}
