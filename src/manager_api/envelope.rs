//! The envelope around every answer of the API, `{"code":int,"msg":string,"data":…}`, and the cleaning of its words.
//!
//! Promises: values as they were written (`0`, `0.0` and `"0"` stay apart); a field that stands twice is noticed; what
//! is quoted is printable, on one line and short. Pure; read by `verdict`, `profile` and `lookup`.

use serde::Deserialize;
use serde_json::value::RawValue;

/// The most that is quoted of a message, in characters.
const QUOTE_LIMIT: usize = 200;

/// The envelope of every answer of the API. Raw values, because `0`, `0.0` and `"0"` must stay apart.
#[derive(Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    msg: Option<&'a RawValue>,
}

/// Why a body is no envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoEnvelope {
    /// No JSON object at all.
    NotAnObject,
    /// Begins as an object and ends before its end.
    Unfinished,
    /// An object in which `code`, `data` or `msg` stands twice.
    Contradictory,
}

impl<'a> Envelope<'a> {
    /// Reads the envelope of a body.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, NoEnvelope> {
        // An array would do for serde in the place of an object.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(NoEnvelope::NotAnObject);
        }
        serde_json::from_slice(body).map_err(|error| match error.classify() {
            serde_json::error::Category::Eof => NoEnvelope::Unfinished,
            serde_json::error::Category::Data => NoEnvelope::Contradictory,
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => NoEnvelope::NotAnObject,
        })
    }

    /// The code, when it is an integer.
    pub(super) fn code(&self) -> Option<i64> {
        let text = self.code?.get();
        // Rust reads "-0" as 0; as JSON it is no integer zero.
        if text == "-0" { None } else { text.parse().ok() }
    }

    /// The text of `data`, as JSON; `null` when it is missing.
    pub(super) fn data(&self) -> &'a str {
        self.data.map_or("null", RawValue::get)
    }

    /// The message, when it is a string; as it came.
    pub(super) fn message(&self) -> String {
        self.msg.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// `code N: msg`, fit for a log line.
    pub(super) fn quote(&self, code: i64) -> String {
        let said = printable(&self.message(), QUOTE_LIMIT);
        if said.is_empty() { format!("code {code}") } else { format!("code {code}: {said}") }
    }
}

/// `text` with everything unprintable and every run of white space as one space, at most `limit` characters.
pub(super) fn printable(text: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(limit));
    let mut left = limit;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control() || is_invisible(c)).filter(|word| !word.is_empty()) {
        if left == 0 {
            break;
        }
        if !clean.is_empty() {
            clean.push(' ');
            left -= 1;
        }
        for c in word.chars().take(left) {
            clean.push(c);
        }
        left = left.saturating_sub(word.chars().count());
    }
    clean
}

/// Characters that hide or turn other text in a terminal: zero-width and direction marks.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn code(body: &str) -> Result<Option<i64>, NoEnvelope> {
        Envelope::read(body.as_bytes()).map(|envelope| envelope.code())
    }

    #[test]
    fn only_an_integer_is_a_code() {
        assert_eq!(code(r#"{"code":0}"#), Ok(Some(0)));
        assert_eq!(code(" \n{ \"code\" : -7 } \n"), Ok(Some(-7)));
        for text in ["0.0", "0e0", "-0", "\"0\"", "null", "true", "[0]", "{}", "99999999999999999999"] {
            assert_eq!(code(&format!(r#"{{"code":{text}}}"#)), Ok(None), "{text}");
        }
        assert_eq!(code("{}"), Ok(None));
    }

    #[test]
    fn what_is_no_object_is_told_from_what_is_half_of_one() {
        for body in
            ["", " ", "null", "0", "true", "\"x\"", r#"[0,"",true]"#, "<html>", "\u{feff}{}", "{} x", "{}{}", "{'code':0}"]
        {
            assert_eq!(code(body), Err(NoEnvelope::NotAnObject), "{body}");
        }
        for body in ["{", r#"{"code":0"#, r#"{"code":0,"data":tr"#, r#"{"msg":"a"#] {
            assert_eq!(code(body), Err(NoEnvelope::Unfinished), "{body}");
        }
        assert_eq!(code(r#"{"code":0,"code":500}"#), Err(NoEnvelope::Contradictory));
        assert_eq!(Envelope::read(b"{\"msg\":\"\xff\"}").err(), Some(NoEnvelope::NotAnObject));
    }

    #[test]
    fn a_bomb_of_brackets_in_an_unknown_field_does_no_harm() {
        let body = format!(r#"{{"x":{}{},"code":0}}"#, "[".repeat(30_000), "]".repeat(30_000));
        let _ = code(&body);
    }

    #[test]
    fn a_quoted_message_is_one_short_printable_line() {
        let body = format!(r#"{{"code":7,"msg":" a\u001b[31m\n\tb\u202e{}"}}"#, "x".repeat(500));
        let quote = Envelope::read(body.as_bytes()).unwrap().quote(7);
        assert!(quote.starts_with("code 7: a [31m b xxx"), "{quote}");
        assert_eq!(quote.chars().count(), "code 7: ".len() + QUOTE_LIMIT);
        assert_eq!(Envelope::read(br#"{"msg":7}"#).unwrap().quote(7), "code 7");
        assert_eq!(Envelope::read(b"{}").unwrap().quote(7), "code 7");
    }
}
