//! Takes the merged values key by key, each with its parser, and collects what is wrong instead of stopping at it.

use std::collections::BTreeMap;

use config::ValueKind;

use super::layers::Origin;
use super::parse::{Raw, Wrong};
use super::problem::Problem;

/// A merged value and where it came from.
pub(super) struct Given {
    /// The value.
    pub value: ValueKind,
    /// Where it came from.
    pub origin: Origin,
}

/// What a reading found.
pub(super) struct Findings {
    /// Where each key came from.
    pub origins: BTreeMap<&'static str, Origin>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What is doubtful.
    pub warnings: Vec<Problem>,
}

/// Reads typed values.
pub(super) struct Reader {
    given: BTreeMap<String, Given>,
    origins: BTreeMap<&'static str, Origin>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Reader {
    /// Starts with the problems that the layers had.
    pub(super) const fn new(given: BTreeMap<String, Given>, problems: Vec<Problem>) -> Self {
        Self { given, origins: BTreeMap::new(), problems, warnings: Vec::new() }
    }

    /// Replaces the default in `slot` by the value of `key`, if one was given and it can be read.
    pub(super) fn read<T>(&mut self, key: &'static str, slot: &mut T, parse: impl FnOnce(&Raw) -> Result<T, Wrong>) {
        let Some(Given { value, origin }) = self.given.remove(key) else { return };
        match parse(&Raw::from_value(value, &origin)) {
            Ok(value) => *slot = value,
            Err(Wrong { message, hint }) => self.problems.push(origin.problem(key, message, hint)),
        }
        self.origins.insert(key, origin);
    }

    /// Where the value of `key` came from.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Whether somebody set `key`.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    /// Says that a key came from elsewhere than a layer.
    pub(super) fn set_origin(&mut self, key: &'static str, origin: Origin) {
        self.origins.insert(key, origin);
    }

    /// Notes a problem with the value of `key`.
    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        let problem = self.origin(key).problem(key, message, hint);
        self.problems.push(problem);
    }

    /// Notes a doubt about the value of `key`.
    pub(super) fn warn(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        let warning = self.origin(key).problem(key, message, hint);
        self.warnings.push(warning);
    }

    /// Whether the value of `key` was refused, so that checks against it would only repeat that.
    pub(super) fn is_refused(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.key == key)
    }

    /// What was found; every key of `keys` gets an origin.
    pub(super) fn finish(mut self, keys: &[&'static str]) -> Findings {
        for key in keys {
            self.origins.entry(key).or_insert(Origin::Default);
        }
        Findings { origins: self.origins, problems: self.problems, warnings: self.warnings }
    }
}
