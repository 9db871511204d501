//! From what stands in a file or a variable to a typed value. Pure; says what is wrong and how to mend it, and never
//! repeats a text that could carry a secret.

use config::ValueKind;

use super::layers::Origin;

mod places;
mod quantities;

pub(super) use places::{listen_address, optional_path, path, proxy, socket_path, url};
pub(super) use quantities::{count, duration, integer, max_content, mode, size};

/// A value before it has a type.
#[derive(Clone)]
pub(in crate::config) enum Raw {
    /// Text of a file.
    Text(String),
    /// Text of a variable or an option, where everything is text: it may stand for a number, too.
    Loose(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// A list.
    List(Vec<Raw>),
    /// Anything else: no key takes it.
    Other,
}

/// Why a value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct Wrong {
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

fn wrong<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), hint: hint.into() })
}

impl Raw {
    /// The value as its layer gave it.
    pub(in crate::config) fn from_value(value: ValueKind, origin: &Origin) -> Self {
        match value {
            ValueKind::String(text) if matches!(origin, Origin::File { .. }) => Self::Text(text),
            ValueKind::String(text) => Self::Loose(text.trim().to_owned()),
            ValueKind::Boolean(value) => Self::Boolean(value),
            ValueKind::I64(value) => Self::Integer(value),
            ValueKind::Float(value) => Self::Float(value),
            ValueKind::Array(values) => {
                Self::List(values.into_iter().map(|value| Self::from_value(value.kind, origin)).collect())
            }
            _ => Self::Other,
        }
    }

    fn describe(&self) -> String {
        const LONGEST: usize = 40;
        match self {
            Self::Text(text) | Self::Loose(text) if text.chars().nth(LONGEST).is_some() => "a long text".to_owned(),
            Self::Text(text) | Self::Loose(text) => format!("{text:?}"),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Boolean(value) => value.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Other => "a date or a table".to_owned(),
        }
    }

    const fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Loose(text) => Some(text.as_str()),
            _ => None,
        }
    }

    fn number(&self) -> Option<i64> {
        match self {
            Self::Integer(value) => Some(*value),
            Self::Loose(text) => text.parse().ok(),
            _ => None,
        }
    }
}

/// `true` or `false`.
pub(in crate::config) fn boolean(raw: &Raw) -> Result<bool, Wrong> {
    match raw {
        Raw::Boolean(value) => Ok(*value),
        Raw::Loose(text) if text.eq_ignore_ascii_case("true") || text == "1" => Ok(true),
        Raw::Loose(text) if text.eq_ignore_ascii_case("false") || text == "0" => Ok(false),
        _ => wrong(format!("{} is neither true nor false", raw.describe()), "write true or false, without quotes"),
    }
}

/// One of a few words.
pub(in crate::config) fn word<T: Copy>(raw: &Raw, words: &[(&str, T)]) -> Result<T, Wrong> {
    let found = raw.text().and_then(|text| words.iter().find(|(word, _)| text.trim().eq_ignore_ascii_case(word)));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        Wrong { message: format!("{} is not known here", raw.describe()), hint: format!("write one of {}", all.join(", ")) }
    })
}

/// Text, where the empty one means "none".
pub(in crate::config) fn optional_text(raw: &Raw) -> Result<Option<String>, Wrong> {
    match raw.text() {
        Some(text) if text.chars().any(char::is_control) => {
            wrong("holds control characters", "write it on one line, without them")
        }
        Some(text) => Ok(Some(text.to_owned()).filter(|text| !text.is_empty())),
        None => wrong(format!("{} is no text", raw.describe()), "write it in quotes"),
    }
}

/// User ids.
pub(in crate::config) fn uids(raw: &Raw) -> Result<Vec<u32>, Wrong> {
    /// A list longer than this belongs into a group.
    const MOST: usize = 64;
    let split;
    let entries = match raw {
        Raw::List(entries) => entries,
        Raw::Loose(text) => {
            let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            let entries = inner.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            split = entries.map(|entry| Raw::Loose(entry.to_owned())).collect();
            &split
        }
        other => return wrong(format!("{} is no list", other.describe()), "write a list of user ids, for example [1000, 1001]"),
    };
    if entries.len() > MOST {
        return wrong(format!("names more than {MOST} users"), "put them into a group and set socket.group");
    }
    entries.iter().map(|entry| integer(entry, 0..=u32::MAX - 1)).collect()
}
