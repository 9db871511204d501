//! What is wrong with a configuration, said so that it can be mended: where, which key, what, how.

use std::fmt;

/// One thing that is wrong, or (among the warnings) merely doubtful.
///
/// Never holds a secret, nor the text of an address that could carry one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, `section.name`; empty when a whole file is meant.
    pub key: String,
    /// `file:line`, `$VARIABLE`, `--option` or `default`.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        for part in [&self.place, &self.key] {
            if !part.is_empty() {
                line.push_str(part);
                line.push_str(": ");
            }
        }
        line.push_str(&self.message);
        if !self.hint.is_empty() {
            line.push_str(" — ");
            line.push_str(&self.hint);
        }
        // Keys and values of a hostile file must not paint the terminal of whoever checks it.
        f.write_str(&crate::observe::logging::escape_controls(&line))
    }
}

/// A configuration that cannot be used: every problem at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// What keeps the configuration from being used; never empty.
    pub problems: Vec<Problem>,
    /// What was merely doubtful.
    pub warnings: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
