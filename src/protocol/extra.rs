//! What else was said of a message, as the text of one JSON object.
//!
//! Promises: at most `MAX_BYTES` of values, readable by every JSON reader; what does not fit or is not readable is
//! left out and named under `omitted`, since no detail is worth the sentence it belongs to.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The bound of all values together.
const MAX_BYTES: usize = 16 * 1024;

/// The object in the making.
#[derive(Default)]
pub(super) struct Extra {
    text: String,
    omitted: Vec<&'static str>,
}

impl Extra {
    /// Adds a sound JSON value; an empty object says nothing and is not added.
    pub(super) fn add(&mut self, name: &'static str, value: &str) {
        if value == "{}" {
            return;
        }
        if self.text.len() + value.len() > MAX_BYTES || !is_strict(value) {
            self.omitted.push(name);
            return;
        }
        self.text.extend([if self.text.is_empty() { "{" } else { "," }, "\"", name, "\":", value]);
    }

    /// The object; `None` when there is nothing in it.
    pub(super) fn finish(mut self) -> Option<String> {
        if !self.omitted.is_empty() {
            self.text.extend([
                if self.text.is_empty() { "{" } else { "," },
                "\"omitted\":[\"",
                &self.omitted.join("\",\""),
                "\"]",
            ]);
        }
        (!self.text.is_empty()).then(|| self.text + "}")
    }
}

/// Whether every JSON reader takes a sound value: no lone surrogates, no numbers beyond the range of a double, no depth
/// beyond that of `serde_json`. What is kept as text for later readers must pass.
#[must_use]
pub fn is_strict(value: &str) -> bool {
    struct Anything;
    impl<'de> Deserialize<'de> for Anything {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Self)
        }
    }
    impl<'de> Visitor<'de> for Anything {
        type Value = Self;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("anything")
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
            Ok(self)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
            Ok(self)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
            Ok(self)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
            Ok(self)
        }
        fn visit_str<E>(self, _: &str) -> Result<Self, E> {
            Ok(self)
        }
        fn visit_unit<E>(self) -> Result<Self, E> {
            Ok(self)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
            while elements.next_element::<Self>()?.is_some() {}
            Ok(self)
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
            while map.next_entry::<Self, Self>()?.is_some() {}
            Ok(self)
        }
    }
    serde_json::from_str::<Anything>(value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_as_they_stand() {
        let mut extra = Extra::default();
        extra.add("a", "{\"x\": 1.50}");
        extra.add("b", "{}");
        extra.add("c", "0.97");
        assert_eq!(extra.finish().as_deref(), Some(r#"{"a":{"x": 1.50},"c":0.97}"#));
        assert_eq!(Extra::default().finish(), None);
    }

    #[test]
    fn what_is_too_large_or_unreadable_is_named_as_omitted() {
        let mut extra = Extra::default();
        extra.add("a", &format!("\"{}\"", "x".repeat(MAX_BYTES)));
        extra.add("b", r#"{"x":"\ud800"}"#);
        assert_eq!(extra.finish().as_deref(), Some(r#"{"omitted":["a","b"]}"#));
    }

    #[test]
    fn what_a_strict_reader_refuses_is_found() {
        assert!(is_strict(r#"{"a":[1,2.5,-3,"x",null,true,{"b":"😀"}]}"#));
        for lax in [r#"{"a":"\ud800"}"#, r#"{"a":1e400}"#, r#"{"\udfff":1}"#] {
            assert!(!is_strict(lax), "{lax}");
        }
    }
}
