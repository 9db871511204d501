//! Text as history keeps it.
//!
//! Promises: every function is total, linear in its input and changes nothing it need not change; what comes out of
//! [`clean`] is trimmed and holds no NUL and no control characters but `\n` and `\t`.
//! Refuses: to judge. Emoji, joiners, direction marks and any other letters pass as they are.
//! Called by the decoder and the LiveKit mapping.

use std::borrow::Cow;

/// Removes NUL and control characters other than `\n` and `\t`, then white space at both ends. Copies borrowed text
/// once; owned text that is clean already is handed back as it is.
#[must_use]
pub fn clean(text: Cow<'_, str>) -> String {
    if text.chars().any(is_unwanted) {
        let kept: String = text.chars().filter(|&character| !is_unwanted(character)).collect();
        return trimmed(Cow::Owned(kept));
    }
    trimmed(text)
}

fn trimmed(text: Cow<'_, str>) -> String {
    let inner = text.trim();
    if inner.len() == text.len() { text.into_owned() } else { inner.to_owned() }
}

fn is_unwanted(character: char) -> bool {
    character.is_control() && character != '\n' && character != '\t'
}

/// The first `max_characters` characters of a text.
#[must_use]
pub fn bounded(text: &str, max_characters: usize) -> &str {
    text.char_indices().nth(max_characters).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// Whether a text has at most `max_characters` characters; looks no further than that.
#[must_use]
pub fn fits(text: &str, max_characters: usize) -> bool {
    text.len() <= max_characters || text.chars().nth(max_characters).is_none()
}

/// Text from UTF-8 in which lone surrogates may stand as three bytes each (WTF-8), as a JSON parser hands out `\ud83d`
/// when asked for bytes. Each lone surrogate becomes U+FFFD, which has three bytes, too.
#[must_use]
pub fn from_wtf8(bytes: &[u8]) -> String {
    let mut bytes = bytes.to_vec();
    let mut rest = bytes.as_mut_slice();
    while let Some(at) = rest.iter().position(|&byte| byte == 0xED) {
        let (_, tail) = rest.split_at_mut(at);
        rest = match tail {
            [first, second @ 0xA0..=0xBF, third, after @ ..] => {
                (*first, *second, *third) = (0xEF, 0xBF, 0xBD);
                after
            }
            [_, after @ ..] => after,
            [] => break,
        };
    }
    // The parser has seen valid UTF-8 and whole escapes only, so nothing is left to replace; total all the same.
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Removes the `<expr …/>` delivery markers that expressive speech synthesis leaves in the text of an assistant item,
/// with the space that their removal would double: the words between an opening and a closing marker stay. The same
/// text as the framework's `ChatMessage.text_content` (livekit-agents 1.8.9), but for white space at the end.
#[must_use]
pub fn strip_markup(text: &str) -> Cow<'_, str> {
    if !text.contains("<expr") && !text.contains("</expr") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = next_marker(rest) {
        let words = before.trim_end_matches(is_inline_space);
        out.push_str(words);
        rest = after;
        // A marker that heads a line takes the space after it along; elsewhere exactly one separator stays.
        if out.is_empty() || out.ends_with('\n') {
            rest = rest.trim_start_matches([' ', '\t']);
        } else if !rest.starts_with([' ', '\t']) {
            out.push_str(before.get(words.len()..).unwrap_or_default());
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn is_inline_space(character: char) -> bool {
    character.is_whitespace() && character != '\n' && character != '\r'
}

/// The text before the first marker and the text after it.
fn next_marker(text: &str) -> Option<(&str, &str)> {
    for (at, _) in text.match_indices('<') {
        let (before, tag) = text.split_at_checked(at)?;
        if let Some(inner) = tag.strip_prefix("<expr")
            && !inner.starts_with(|next: char| next.is_alphanumeric() || next == '_')
        {
            // Without a `>` behind this one no later marker can be whole either.
            let (_, after) = inner.split_once('>')?;
            return Some((before, after));
        }
        if let Some(inner) = tag.strip_prefix("</expr")
            && let Some(after) = inner.trim_start().strip_prefix('>')
        {
            return Some((before, after));
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_go_and_line_breaks_stay() {
        for (given, expected) in [
            ("  Hello \r\n", "Hello"),
            ("a\0b\u{7f}c\u{85}d", "abcd"),
            ("one\r\ntwo\tthree", "one\ntwo\tthree"),
            ("\u{1}  \u{2}", ""),
            ("\u{a0}नमस्ते 😊\u{3000}", "नमस्ते 😊"),
            ("👨\u{200d}👩", "👨\u{200d}👩"),
        ] {
            assert_eq!(clean(Cow::Borrowed(given)), expected);
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(bounded("नमस्ते", 2), "नम");
        assert_eq!(bounded("ab", 2), "ab");
        assert!(fits("éé", 2));
        assert!(!fits("ééé", 2));
    }

    #[test]
    fn lone_surrogates_become_the_replacement_character() {
        assert_eq!(from_wtf8(b"a\xED\xA0\xBDb\xED\xBF\xBF"), "a\u{fffd}b\u{fffd}");
        assert_eq!(from_wtf8("\u{d7ff}한".as_bytes()), "\u{d7ff}한");
        assert_eq!(from_wtf8(b"\xED\xA0"), "\u{fffd}\u{fffd}");
    }

    /// The expected texts are what `strip_expr_markup` of livekit-agents 1.8.9 answers.
    #[test]
    fn delivery_markup_is_stripped_as_the_framework_does() {
        for (given, expected) in [
            (r#"<expr type="expression" label="warm"/> Oh no. <expr type="x" label="y"/> I can see."#, "Oh no. I can see."),
            (r#"Hi <expr type="sound" label="laugh"/>"#, "Hi "),
            (r#"Hi<expr type="sound"/>there"#, "Hithere"),
            (r#"Hi <expr type="sound"/>there"#, "Hi there"),
            (r#"say <expr type="spell">A B</expr> now"#, "say A B now"),
            ("one\n<expr a/>  two", "one\ntwo"),
            ("<expression value=\"x\"/> stays", "<expression value=\"x\"/> stays"),
            ("a <expr without end", "a <expr without end"),
            ("if a<b and b>c", "if a<b and b>c"),
            ("a </expr > b </exprs>", "a b </exprs>"),
            ("<expr/><expr/> x", "x"),
            ("a  <expr/> <expr/> b", "a b"),
        ] {
            assert_eq!(strip_markup(given), expected, "{given}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(text in any::<String>()) {
            let once = clean(Cow::Borrowed(&text));
            prop_assert_eq!(clean(Cow::Owned(once.clone())), once);
        }

        #[test]
        fn text_without_markers_is_left_alone(text in "[a-z<>/ \n]{0,40}") {
            prop_assume!(!text.contains("expr"));
            prop_assert_eq!(strip_markup(&text), text.as_str());
        }
    }
}
