//! The layer of environment variables: `CHAT_HISTORYD__SECTION__KEY`.
//!
//! Only names with the doubled underscore are ours: Kubernetes sets `CHAT_HISTORYD_SERVICE_HOST` and its like for a
//! service of that name. Every value is text and stays text until its key's own parser reads it.

use super::environment::Environment;
use super::layers::{Layer, Origin};
use super::problem::Problem;
use super::similar;

const PREFIX: &str = "CHAT_HISTORYD__";

/// The variable that sets a key.
pub(super) fn name(key: &str) -> String {
    let mut name = String::from(PREFIX);
    name.push_str(&key.to_ascii_uppercase().replace('.', "__"));
    name
}

/// Reads all variables that are ours. An empty one counts as not set.
pub(super) fn read(environment: &Environment, keys: &[&'static str], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for (variable, value) in &environment.variables {
        let variable = variable.to_string_lossy();
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        let origin = Origin::Environment(variable.clone().into_owned());
        let Some(key) = keys.iter().find(|key| name(key) == variable) else {
            let meant = similar::key(&rest.to_ascii_lowercase().replace("__", "."), keys);
            let hint = meant.map_or_else(
                || format!("unset it; names are {PREFIX}SECTION__KEY with the keys of chat-historyd.toml"),
                |key| format!("did you mean {}?", name(key)),
            );
            problems.push(origin.problem("", "no setting has this name", hint));
            continue;
        };
        match value.to_str() {
            Some("") => {}
            Some(text) => layer.set(key, text, origin),
            None => problems.push(origin.problem(key, "is no UTF-8 text", "set it anew")),
        }
    }
    layer
}

/// Variables that name a key, but for the doubled underscores: they are nobody else's, and are not used.
pub(super) fn misspelt(environment: &Environment, keys: &[&'static str]) -> Vec<Problem> {
    let single = |name: &str| name.replace("__", "_");
    let mut found = Vec::new();
    for variable in environment.variables.keys().filter_map(|variable| variable.to_str()) {
        if variable.starts_with(PREFIX) {
            continue;
        }
        if let Some(key) = keys.iter().find(|key| single(&name(key)) == single(variable)) {
            let origin = Origin::Environment(variable.to_owned());
            found.push(origin.problem("", "is not used", format!("did you mean {}?", name(key))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Environment { variables, ..Environment::default() }
    }

    #[test]
    fn only_the_doubled_underscore_is_ours() {
        let mut problems = Vec::new();
        let environment =
            environment(&[("CHAT_HISTORYD_SERVICE_HOST", "10.0.0.1"), ("CHAT_HISTORYD_SOCKET", "/x"), ("PATH", "/bin")]);
        let _ = read(&environment, &["log.level"], &mut problems);
        assert_eq!(problems, []);
    }

    #[test]
    fn an_unknown_variable_is_named_with_what_was_meant() {
        let mut problems = Vec::new();
        let environment = environment(&[("CHAT_HISTORYD__MANAGER_API__URI", "http://x"), ("CHAT_HISTORYD__", "y")]);
        let _ = read(&environment, &["manager_api.url", "log.level"], &mut problems);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "$CHAT_HISTORYD__: no setting has this name — unset it; names are CHAT_HISTORYD__SECTION__KEY with the keys of \
                 chat-historyd.toml",
                "$CHAT_HISTORYD__MANAGER_API__URI: no setting has this name — did you mean CHAT_HISTORYD__MANAGER_API__URL?",
            ]
        );
    }

    #[test]
    fn a_variable_that_is_no_text_is_refused_where_it_stands() {
        use std::os::unix::ffi::OsStringExt;
        let mut environment = environment(&[]);
        let value = std::ffi::OsString::from_vec(vec![b'/', 0xff]);
        environment.variables.insert("CHAT_HISTORYD__SOCKET__PATH".into(), value);
        let mut problems = Vec::new();
        let _ = read(&environment, &["socket.path"], &mut problems);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].place, "$CHAT_HISTORYD__SOCKET__PATH");
    }
}
