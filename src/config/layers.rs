//! The layers over the defaults (file, environment, command line) as sources of the `config` crate, which merges them.
//! Every value carries where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, Map, Source, Value, ValueKind};

use super::problem::Problem;
use super::reader::Given;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing set it.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// The command-line option of this name.
    CommandLine(String),
    /// The systemd credential `manager-api-secret`.
    Credential,
}

impl Origin {
    /// A line of a file.
    pub(super) fn line(path: &Path, line: usize) -> Self {
        Self::File { path: path.to_owned(), line }
    }

    /// A problem with the value of `key` that came from here.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem { key: key.to_owned(), place: self.to_string(), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "${name}"),
            Self::CommandLine(option) => f.write_str(option),
            Self::Credential => f.write_str("systemd credential"),
        }
    }
}

/// One layer: values by full key (`section.name`).
#[derive(Clone, Default)]
pub(super) struct Layer {
    values: Vec<(&'static str, ValueKind, Origin)>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values may hold the secret.
        f.debug_list().entries(self.values.iter().map(|(key, ..)| key)).finish()
    }
}

impl Layer {
    /// Sets a key in this layer.
    pub(super) fn set(&mut self, key: &'static str, value: impl Into<ValueKind>, origin: Origin) {
        self.values.push((key, value.into(), origin));
    }
}

/// A layer whose origins are numbered, because the `config` crate carries an origin as text only.
#[derive(Clone, Debug)]
struct Numbered {
    first: usize,
    layer: Layer,
}

impl Source for Numbered {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let numbered = self.layer.values.iter().enumerate();
        Ok(numbered
            .map(|(index, (key, value, _))| {
                ((*key).to_owned(), Value::new(Some(&(self.first + index).to_string()), value.clone()))
            })
            .collect())
    }
}

/// Merges the layers, later ones over earlier ones.
pub(super) fn merge(layers: Vec<Layer>) -> Result<BTreeMap<String, Given>, Problem> {
    let failed = |error: &config::ConfigError| Origin::Default.problem("", format!("cannot merge the settings: {error}"), "");
    let mut origins = Vec::new();
    let mut builder = Config::builder();
    for layer in layers {
        let first = origins.len();
        origins.extend(layer.values.iter().map(|(_, _, origin)| origin.clone()));
        builder = builder.add_source(Numbered { first, layer });
    }
    let merged = builder.build().and_then(|config| config.collect()).map_err(|error| failed(&error))?;
    let mut given = BTreeMap::new();
    for (section, values) in merged {
        for (name, value) in values.into_table().map_err(|error| failed(&error))? {
            let origin = value.origin().and_then(|number| number.parse::<usize>().ok()).and_then(|number| origins.get(number));
            let origin = origin.cloned().unwrap_or(Origin::Default);
            given.insert(format!("{section}.{name}"), Given { value: value.kind, origin });
        }
    }
    Ok(given)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_later_layer_wins_and_keeps_its_origin() {
        let mut file = Layer::default();
        file.set("log.level", "warn", Origin::line(Path::new("/x.toml"), 3));
        file.set("log.format", "json", Origin::line(Path::new("/x.toml"), 4));
        let mut environment = Layer::default();
        environment.set("log.level", "debug", Origin::Environment("LEVEL".into()));
        let merged = merge(vec![file, environment]).unwrap();
        assert_eq!(merged["log.level"].value, ValueKind::from("debug"));
        assert_eq!(merged["log.level"].origin.to_string(), "$LEVEL");
        assert_eq!(merged["log.format"].origin.to_string(), "/x.toml:4");
        assert_eq!(merged.len(), 2);
    }
}
