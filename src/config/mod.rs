//! Typed settings from all layers, every problem at once, and secrets that cannot be printed.
//!
//! Promises: [`load`] reads the file, the environment it is handed and the command line, in this order over the
//! defaults, and answers with settings that were checked, or with *every* problem it found. It writes nothing, sets
//! nothing and needs no directory, socket or credential to exist. Refuses unknown keys. Called at start, on SIGHUP and
//! by `--check-config`; nobody else reads the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

mod assemble;
pub mod authorities;
mod changes;
mod environment;
mod file;
mod layers;
mod parse;
mod problem;
mod reader;
mod rows;
pub mod secret;
pub mod settings;
mod similar;
mod surroundings;
#[cfg(test)]
mod tests;
mod variables;

pub use changes::{Change, apply, changes};
pub use environment::Environment;
pub use layers::Origin;
pub use problem::{ConfigError, Problem};
pub use rows::{Row, rows};
pub use secret::{InvalidSecret, Secret, SecretError, SecretSource};
pub use settings::{
    BackupSettings, Durability, LogFormat, LogLevel, LogSettings, ManagerApiSettings, MaxContent, OnLongContent, ReportTimeUnit,
    SessionSettings, Settings, SocketSettings, StatusSettings, StoreSettings, UploadSettings,
};

/// What settings are loaded from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`: this file and no other.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Environment,
    /// What the command line sets, over everything else.
    pub overrides: Vec<Override>,
    /// What the settings are for.
    pub purpose: Purpose,
}

/// A setting given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The key, `section.name`.
    pub key: &'static str,
    /// The value as text.
    pub value: String,
    /// The option that carried it, as typed: `--log-level`.
    pub option: &'static str,
}

/// What settings are loaded for: it decides how bad it is when a file they name is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To start serving: what the daemon needs must be there, but for secret and authorities, which may come later.
    Serve,
    /// To go on serving with changed settings: those two, too, must be there, else the old settings stay.
    Reload,
    /// To look at them, or for a tool that only needs the sockets' paths: what is missing is a warning.
    #[default]
    Look,
}

/// Settings that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each key came from; all keys of [`rows`] are there.
    pub origins: BTreeMap<&'static str, Origin>,
    /// What is doubtful.
    pub warnings: Vec<Problem>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// Loads the settings from all layers.
///
/// # Errors
/// When anything keeps the settings from being used: all problems at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut defaults = Settings::defaults(&sources.environment);
    let keys: Vec<&'static str> = rows(&defaults).into_iter().map(|row| row.key).collect();
    let mut problems = Vec::new();

    let (file, in_file) = match file::find(sources.file.as_deref(), &sources.environment) {
        Some(path) => {
            let layer = file::read(&path, &keys, &mut problems);
            (Some(path), layer)
        }
        None => (None, Some(layers::Layer::default())),
    };
    let is_file_known = in_file.is_some();
    let in_file = in_file.unwrap_or_default();
    let in_environment = variables::read(&sources.environment, &keys, &mut problems);
    let mut on_command_line = layers::Layer::default();
    for Override { key, value, option } in &sources.overrides {
        on_command_line.set(key, value.clone(), Origin::CommandLine((*option).to_owned()));
    }

    let given = layers::merge(vec![in_file, in_environment, on_command_line])
        .map_err(|problem| ConfigError { problems: vec![problem], warnings: Vec::new() })?;
    let mut reader = reader::Reader::new(given, problems);
    assemble::settings(&mut reader, &mut defaults, &sources.environment);
    let settings = defaults;
    surroundings::check(&settings, sources.purpose, &mut reader);
    let reader::Findings { origins, problems, mut warnings } = reader.finish(&keys);
    // What a file that cannot be read does not set is not known.
    warnings.retain(|warning| is_file_known || warning.place != Origin::Default.to_string());
    warnings.extend(variables::misspelt(&sources.environment, &keys));
    if problems.is_empty() { Ok(Loaded { settings, origins, warnings, file }) } else { Err(ConfigError { problems, warnings }) }
}

/// Loads the settings for who calls a daemon: where nothing names its sockets and none stands at their usual place, the
/// service of the whole machine is meant, if there is one. The producers' clients find it the same way.
///
/// # Errors
/// As [`load`].
pub fn load_to_call(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut loaded = load(sources)?;
    let is_named = |key| loaded.origins.get(key).is_some_and(|origin| *origin != Origin::Default);
    if !is_named("socket.path") && !is_named("status.socket") {
        for socket in [&mut loaded.settings.socket.path, &mut loaded.settings.status.socket] {
            let of_the_service = socket.file_name().map(|name| sources.environment.system_runtime.join(name));
            if let Some(path) = of_the_service.filter(|path| !socket.exists() && path.exists()) {
                *socket = path;
            }
        }
    }
    Ok(loaded)
}

impl Settings {
    /// The defaults in an environment. Without a home for the store, `store.directory` is empty and must be set.
    #[must_use]
    pub fn defaults(environment: &Environment) -> Self {
        assemble::defaults(environment)
    }
}
