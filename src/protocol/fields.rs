//! One JSON object, read once into a table of its known fields, without building a tree.
//!
//! Promises: one pass over the text; nothing is copied (values are slices of the line, megabytes of audio included);
//! no recursion, however deep the nesting; duplicates of a known field and too deep nesting are noted while reading
//! goes on, so that `seq` is found wherever it stands. A field that is `null` counts as absent.
//! Refuses: to coerce, and to repeat any of the text in an error.
//! Called by the decoder and the LiveKit mapping.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::text::from_wtf8;

/// How deep values may nest in a line, the outermost object included: as deep as `serde_json` reads.
const MAX_DEPTH: usize = 128;

macro_rules! fields {
    ($($variant:ident = $name:literal $(| $alias:literal)*),+ $(,)?) => {
        /// A field that means something somewhere.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Field { $($variant),+ }

        impl Field {
            const COUNT: usize = [$(Self::$variant),+].len();

            /// The canonical name.
            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            fn of(name: &str) -> Option<Self> {
                match name {
                    $($name $(| $alias)* => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

fields! {
    Ack = "ack",
    AgentId = "agent_id",
    Arguments = "arguments",
    AudioBase64 = "audio_base64" | "audioBase64",
    CallId = "call_id",
    ChatType = "chat_type" | "chatType",
    Client = "client",
    Content = "content",
    CreatedAt = "created_at",
    Dropped = "dropped",
    Error = "error",
    Extra = "extra",
    FunctionCallOutputs = "function_call_outputs",
    FunctionCalls = "function_calls",
    Id = "id",
    Interrupted = "interrupted",
    IsError = "is_error",
    IsFinal = "is_final",
    Item = "item",
    ItemId = "item_id",
    Level = "level",
    MacAddress = "mac_address" | "macAddress",
    Metadata = "metadata",
    Metrics = "metrics",
    Name = "name",
    Output = "output",
    Reason = "reason",
    Role = "role",
    Seq = "seq",
    SessionId = "session_id" | "sessionId",
    Stream = "stream",
    Timeout = "timeout",
    Timestamp = "timestamp" | "reportTime",
    Transcript = "transcript",
    TranscriptConfidence = "transcript_confidence",
    Type = "type",
    V = "v",
}

/// What is wrong with a field, in words that hold nothing of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    /// Its name, with the names of what it stands in: `item.content`.
    pub(super) field: Cow<'static, str>,
    /// A phrase that follows the name.
    pub(super) message: &'static str,
}

impl Problem {
    pub(super) const fn new(field: Field, message: &'static str) -> Self {
        Self { field: Cow::Borrowed(field.name()), message }
    }

    /// The same problem, seen from the object around it.
    pub(super) fn within(mut self, outer: Field) -> Self {
        self.field = format!("{}.{}", outer.name(), self.field).into();
        self
    }
}

/// A JSON value by its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind<'a> {
    Boolean(bool),
    /// The digits as they stand.
    Number(&'a str),
    /// The text between the quotes, escapes as they stand.
    String(&'a str),
    Array,
    Object,
}

/// The kind of a value that a parser has found sound; `None` for `null`.
pub(super) fn kind(value: &str) -> Option<Kind<'_>> {
    match value.as_bytes().first()? {
        b'"' => Some(Kind::String(value.get(1..value.len().saturating_sub(1)).unwrap_or_default())),
        b'{' => Some(Kind::Object),
        b'[' => Some(Kind::Array),
        b't' => Some(Kind::Boolean(true)),
        b'f' => Some(Kind::Boolean(false)),
        b'n' => None,
        _ => Some(Kind::Number(value)),
    }
}

/// The text of a JSON string (with its quotes): lone surrogates become U+FFFD.
pub(super) fn unescape(value: &str) -> Cow<'_, str> {
    struct Bytes;
    impl Visitor<'_> for Bytes {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
            Ok(from_wtf8(bytes))
        }
    }
    match kind(value) {
        Some(Kind::String(inner)) if !inner.contains('\\') => Cow::Borrowed(inner),
        // It was found sound, so this cannot fail; an empty text is the answer that harms nobody.
        _ => Cow::Owned(serde_json::Deserializer::from_str(value).deserialize_bytes(Bytes).unwrap_or_default()),
    }
}

/// The known fields of one object.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    slots: [Option<&'a RawValue>; Field::COUNT],
    /// A known field that is there twice, under whichever of its names.
    pub(super) duplicate: Option<Field>,
    /// Something nests deeper than [`MAX_DEPTH`].
    pub(super) too_deep: bool,
}

impl<'a> Fields<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// When the text is not one JSON object.
    pub(super) fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        let mut parser = serde_json::Deserializer::from_str(text);
        let fields = parser.deserialize_map(ObjectVisitor)?;
        parser.end()?;
        Ok(fields)
    }

    /// Reads an object inside a line, which the reader of the line has found sound.
    ///
    /// # Errors
    /// When it is no object, or holds a known field twice.
    pub(super) fn nested(value: &'a str, place: Field) -> Result<Self, Problem> {
        let fields = Self::read(value).map_err(|_| Problem::new(place, "must be an object"))?;
        match fields.duplicate {
            Some(twice) => Err(Problem::new(twice, "is there twice").within(place)),
            None => Ok(fields),
        }
    }

    /// The value of a field, as it stands; `None` when absent or `null`.
    pub(super) fn raw(&self, field: Field) -> Option<&'a str> {
        let value = self.slots.get(field as usize).copied().flatten()?.get();
        kind(value).map(|_| value)
    }

    /// The kind of a field.
    pub(super) fn kind(&self, field: Field) -> Option<Kind<'a>> {
        self.raw(field).and_then(kind)
    }

    /// A string.
    pub(super) fn text(&self, field: Field) -> Result<Option<Cow<'a, str>>, Problem> {
        match self.raw(field) {
            None => Ok(None),
            Some(value) if matches!(kind(value), Some(Kind::String(_))) => Ok(Some(unescape(value))),
            Some(_) => Err(Problem::new(field, "must be a string")),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, field: Field) -> Result<Option<bool>, Problem> {
        match self.kind(field) {
            None => Ok(None),
            Some(Kind::Boolean(value)) => Ok(Some(value)),
            Some(_) => Err(Problem::new(field, "must be true or false")),
        }
    }

    /// A whole number from 0, written without fraction and exponent, that fits the store's 63 bits.
    pub(super) fn unsigned(&self, field: Field) -> Result<Option<u64>, Problem> {
        let wrong = Problem::new(field, "must be a whole number from 0 to 2^63-1");
        match self.kind(field) {
            None => Ok(None),
            Some(Kind::Number(digits)) => {
                digits.parse().ok().filter(|&number| i64::try_from(number).is_ok()).map(Some).ok_or(wrong)
            }
            Some(_) => Err(wrong),
        }
    }
}

/// Calls `each` with every element of a JSON array that the reader of the line has found sound.
///
/// # Errors
/// The first error of `each`.
pub(super) fn each_element<'a, E>(array: &'a str, each: impl FnMut(&'a str) -> Result<(), E>) -> Result<(), E> {
    struct Elements<F>(F);
    impl<'de, E, F: FnMut(&'de str) -> Result<(), E>> Visitor<'de> for Elements<F> {
        type Value = Result<(), E>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Self::Value, A::Error> {
            let mut result = Ok(());
            while let Some(element) = elements.next_element::<&RawValue>()? {
                if result.is_ok() {
                    result = (self.0)(element.get());
                }
            }
            Ok(result)
        }
    }
    serde_json::Deserializer::from_str(array).deserialize_seq(Elements(each)).unwrap_or(Ok(()))
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields { slots: [None; Field::COUNT], duplicate: None, too_deep: false };
        while let Some(field) = map.next_key_seed(FieldName)? {
            let value = map.next_value::<&'de RawValue>()?;
            fields.too_deep |= nests_deeper_than(value.get(), MAX_DEPTH - 1);
            let Some(slot) = field.and_then(|field| fields.slots.get_mut(field as usize)) else { continue };
            if slot.is_some() {
                fields.duplicate = fields.duplicate.or(field);
            }
            *slot = Some(value);
        }
        Ok(fields)
    }
}

/// Reads a key as bytes, since a lone surrogate in it is a parse error for a string.
struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Option<Field>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Option<Field>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }
    fn visit_bytes<E>(self, name: &[u8]) -> Result<Self::Value, E> {
        Ok(std::str::from_utf8(name).ok().and_then(Field::of))
    }
}

/// Whether a sound JSON value nests more than `limit` arrays and objects in each other.
fn nests_deeper_than(value: &str, limit: usize) -> bool {
    if value.len() <= 2 * limit || !value.starts_with(['[', '{']) {
        return false;
    }
    let mut depth = 0_usize;
    let (mut in_string, mut escaped) = (false, false);
    for byte in value.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn known_fields_are_found_under_all_their_names() {
        let fields = Fields::read(r#"{"macAddress":"a","x":[{}],"t\u0079pe":"b","\ud800":1,"seq":7}"#).unwrap();
        assert_eq!(fields.text(Field::MacAddress).unwrap().unwrap(), "a");
        assert_eq!(fields.text(Field::Type).unwrap().unwrap(), "b");
        assert_eq!(fields.unsigned(Field::Seq).unwrap(), Some(7));
        assert_eq!(fields.duplicate, None);
    }

    #[test]
    fn both_names_of_a_field_together_are_a_duplicate() {
        assert_eq!(Fields::read(r#"{"chat_type":1,"chatType":1}"#).unwrap().duplicate, Some(Field::ChatType));
        assert_eq!(Fields::read(r#"{"x":1,"x":2}"#).unwrap().duplicate, None);
    }

    #[test]
    fn nesting_is_measured_outside_of_strings() {
        let bomb = |depth: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(!Fields::read(&bomb(127)).unwrap().too_deep);
        assert!(Fields::read(&bomb(128)).unwrap().too_deep);
        assert!(Fields::read(&bomb(200_000)).unwrap().too_deep);
        let text = format!(r#"{{"x":["{}\"{}"]}}"#, "[".repeat(999), "[".repeat(999));
        assert!(!Fields::read(&text).unwrap().too_deep);
    }

    #[test]
    fn whole_numbers_are_taken_as_written() {
        let read = |text: &str| Fields::read(&format!(r#"{{"seq":{text}}}"#)).unwrap().unsigned(Field::Seq);
        assert_eq!(read("0"), Ok(Some(0)));
        assert_eq!(read("9223372036854775807"), Ok(Some(9_223_372_036_854_775_807)));
        assert_eq!(read("null"), Ok(None));
        for wrong in ["9223372036854775808", "-1", "1.0", "1e3", "\"1\"", "true", "[1]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn escapes_are_undone_and_lone_surrogates_replaced() {
        assert_eq!(unescape(r#""a\n\ud83d\ude00 \ud83d \ude00 \ud83dx""#), "a\n😀 \u{fffd} \u{fffd} \u{fffd}x");
        assert!(matches!(unescape(r#""plain""#), Cow::Borrowed("plain")));
    }
}
