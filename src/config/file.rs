//! The layer of the configuration file: found, read with a bound, and every value with its line.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use config::ValueKind;
use toml_edit::{Document, Item, TableLike, Value};

use super::environment::Environment;
use super::layers::{Layer, Origin};
use super::problem::Problem;
use super::similar;

/// Larger than any configuration, small enough to read at once.
const LONGEST_FILE: u64 = 1 << 20;

/// Unknown keys that are listed; a file with more of them is another program's.
const MOST_UNKNOWN: usize = 50;

/// The file to read: the one that is named, else the first that exists.
pub(super) fn find(named: Option<&Path>, environment: &Environment) -> Option<PathBuf> {
    // One that may or may not be there because its directory is closed to us is taken, and then complained about.
    named
        .map(Path::to_owned)
        .or_else(|| environment.config_files().into_iter().find(|path| !matches!(path.try_exists(), Ok(false))))
}

/// Reads a file into a layer. Everything that is wrong goes to `problems`; the rest is still read. `None`: what it sets is
/// not known.
pub(super) fn read(path: &Path, keys: &[&'static str], problems: &mut Vec<Problem>) -> Option<Layer> {
    match read_text(path).and_then(|text| parse(path, text)) {
        Ok(document) => Some(Walk { path, document: &document, keys, problems, layer: Layer::default() }.sections()),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}

fn read_text(path: &Path) -> Result<String, Problem> {
    let problem = |message: String, hint: &str| Problem {
        key: String::new(),
        place: path.display().to_string(),
        message,
        hint: hint.to_owned(),
    };
    let failed = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => problem("there is no such file".to_owned(), "create it or name another with --config"),
        std::io::ErrorKind::PermissionDenied => {
            problem("cannot be read: permission denied".to_owned(), "let the daemon's user read it")
        }
        _ => problem(format!("cannot be read: {error}"), "name another with --config"),
    };
    // Asked before it is opened: opening a pipe would wait for its writer.
    let kind = fs::metadata(path).map_err(|error| failed(&error))?;
    if !kind.is_file() {
        let what = if kind.is_dir() { "is a directory" } else { "is no regular file" };
        return Err(problem(what.to_owned(), "name a file with --config"));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| failed(&error))?;
    file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(problem("is larger than 1 MiB".to_owned(), "this is no configuration file: name another"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let bad = error.utf8_error().valid_up_to();
        let line = line_of(error.as_bytes(), bad);
        Origin::line(path, line).problem("", "is no UTF-8 text", "save the file as UTF-8")
    })
}

fn parse(path: &Path, text: String) -> Result<Document<String>, Problem> {
    let raw = text.clone();
    Document::parse(text).map_err(|error| {
        let line = line_of(raw.as_bytes(), error.span().map_or(0, |span| span.start));
        // Only the message: the error's own rendering shows the line, which may hold the secret.
        let message = format!("is no TOML: {}", error.message().lines().next().unwrap_or("syntax error"));
        Origin::line(path, line).problem("", message, "write text in quotes, one `key = value` a line, sections as [name]")
    })
}

/// The line, counted from 1, on which a byte stands.
fn line_of(text: &[u8], offset: usize) -> usize {
    text.split(|byte| *byte == b'\n')
        .scan(0, |end, line| {
            *end += line.len() + 1;
            Some(*end)
        })
        .take_while(|end| *end <= offset)
        .count()
        + 1
}

/// One pass over a document.
struct Walk<'a> {
    path: &'a Path,
    document: &'a Document<String>,
    keys: &'a [&'static str],
    problems: &'a mut Vec<Problem>,
    layer: Layer,
}

impl Walk<'_> {
    fn origin(&self, table: &dyn TableLike, name: &str, fallback: usize) -> (Origin, usize) {
        let span = table.key(name).and_then(toml_edit::Key::span).map(|span| span.start);
        let line = span.map_or(fallback, |offset| line_of(self.document.raw().as_bytes(), offset));
        (Origin::line(self.path, line), line)
    }

    /// Whether so much is unknown that the rest is not worth a look; says so once.
    fn is_foreign(&mut self) -> bool {
        if self.problems.len() == MOST_UNKNOWN {
            let place = self.path.display().to_string();
            let message = "there is more that is unknown, not listed here".to_owned();
            self.problems.push(Problem { key: String::new(), place, message, hint: "is this the right file?".to_owned() });
        }
        self.problems.len() > MOST_UNKNOWN
    }

    fn sections(mut self) -> Layer {
        let root = self.document.as_table();
        let mut sections: Vec<&str> = self.keys.iter().filter_map(|key| key.split('.').next()).collect();
        sections.dedup();
        for (section, item) in root {
            if self.is_foreign() {
                break;
            }
            let (origin, line) = self.origin(root, section, 1);
            if !sections.contains(&section) {
                let problem = self.unknown_section(section, item, &sections, &origin);
                self.problems.push(problem);
            } else if let Some(table) = item.as_table_like() {
                self.section(section, table, line);
            } else {
                let hint = format!("write it as a section: [{section}]");
                self.problems.push(origin.problem(section, "is no section", hint));
            }
        }
        self.layer
    }

    fn unknown_section(&self, section: &str, item: &Item, sections: &[&str], origin: &Origin) -> Problem {
        let is_table = item.as_table_like().is_some() || item.is_array_of_tables();
        let message = if is_table { "there is no such section" } else { "there is no such key outside the sections" };
        let hint = match (is_table, similar::word(section, sections), similar::key(section, self.keys)) {
            (true, Some(meant), _) => format!("did you mean [{meant}]?"),
            (false, _, Some(key)) => {
                let (section, name) = key.split_once('.').unwrap_or((key, ""));
                format!("did you mean {name} in [{section}]?")
            }
            _ => format!("the sections are {}", sections.join(", ")),
        };
        origin.problem(section, message, hint)
    }

    fn section(&mut self, section: &str, table: &dyn TableLike, section_line: usize) {
        for (name, item) in table.iter() {
            if self.is_foreign() {
                break;
            }
            let (origin, _) = self.origin(table, name, section_line);
            let full = format!("{section}.{name}");
            let Some(key) = self.keys.iter().find(|key| **key == full) else {
                let names: Vec<&str> = self.keys.iter().filter_map(|key| key.strip_prefix(section)?.strip_prefix('.')).collect();
                let hint = similar::key(&full, self.keys)
                    .map_or_else(|| format!("[{section}] knows {}", names.join(", ")), |key| format!("did you mean {key}?"));
                self.problems.push(origin.problem(&full, "there is no such key", hint));
                continue;
            };
            match item.as_value().filter(|value| !value.is_inline_table()) {
                Some(value) => self.layer.set(key, kind(value), origin),
                None => self.problems.push(origin.problem(key, "is written as a table", format!("write {name} = value"))),
            }
        }
    }
}

fn kind(value: &Value) -> ValueKind {
    match value {
        Value::String(text) => ValueKind::String(text.value().clone()),
        Value::Integer(number) => ValueKind::I64(*number.value()),
        Value::Float(number) => ValueKind::Float(*number.value()),
        Value::Boolean(value) => ValueKind::Boolean(*value.value()),
        Value::Array(values) => ValueKind::Array(values.iter().map(|value| config::Value::new(None, kind(value))).collect()),
        // Of no use for any key; a date as text could even pass for a secret.
        Value::Datetime(_) | Value::InlineTable(_) => ValueKind::Nil,
    }
}
