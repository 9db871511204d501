//! `--check-config`: says what the daemon would run with, or everything that keeps it from running. Touches nothing.

use std::io::Write;

use crate::config::{Loaded, Problem, Sources, load, rows};
use crate::exit::Exit;

/// Prints the effective settings with their origins to `out`, warnings and problems to `err`.
///
/// A closed pipe (`| head`) does not change the verdict, so failed writes are ignored.
pub fn check_config(sources: &Sources, out: &mut impl Write, err: &mut impl Write) -> Exit {
    match load(sources) {
        Ok(loaded) => {
            let _ = print_settings(&loaded, out);
            let _ = print_problems("warning", &loaded.warnings, err);
            Exit::Success
        }
        Err(error) => {
            let _ = print_problems("warning", &error.warnings, err);
            let _ = print_problems("error", &error.problems, err);
            Exit::Configuration
        }
    }
}

fn print_settings(loaded: &Loaded, out: &mut impl Write) -> std::io::Result<()> {
    match &loaded.file {
        Some(file) => writeln!(out, "# effective settings, from {}", file.display())?,
        None => writeln!(out, "# effective settings; there is no configuration file")?,
    }
    let mut section = "";
    for row in rows(&loaded.settings) {
        let (of, name) = row.key.split_once('.').unwrap_or(("", row.key));
        if of != section {
            writeln!(out, "\n[{of}]")?;
            section = of;
        }
        let origin = loaded.origins.get(row.key).map(ToString::to_string).unwrap_or_default();
        let line = format!("{name} = {}", row.value);
        writeln!(out, "{line:<50} # {}", crate::observe::logging::escape_controls(&origin))?;
    }
    out.flush()
}

fn print_problems(word: &str, problems: &[Problem], err: &mut impl Write) -> std::io::Result<()> {
    problems.iter().try_for_each(|problem| writeln!(err, "{word}: {problem}"))
}
