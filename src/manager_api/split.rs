//! Cutting text that is longer than one report may be.
//!
//! Promises: parts are sent in order and joined equal the text byte for byte; each has something the server does not
//! call blank; a cut stands between words where that leaves a part at least half full, else between graphemes, and
//! within one only when that single grapheme is over the limit. A part depends on text, offset and limit alone, so
//! that after a restart the text goes on where it stopped. The one exception: white space that no part can take with
//! a word beside it (a run as long as a whole part) is left out, because the server refuses blank reports for ever.
//! Refuses: marks of its own in split text. Pure; called by the uploader.

use std::borrow::Cow;
use std::ops::Range;

use unicode_segmentation::{GraphemeCursor, UnicodeSegmentation};

/// Stands for what was cut off.
const ELLIPSIS: char = '…';

/// The longest content of one report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentLimit {
    /// Unicode code points.
    Characters(usize),
    /// UTF-8 bytes.
    Bytes(usize),
}

impl ContentLimit {
    /// How many bytes of `text`, from its start, fit: up to a code point's end, and at least one code point (a limit
    /// below that would send nothing for ever).
    fn fitting(self, text: &str) -> usize {
        let first = text.chars().next().map_or(0, char::len_utf8);
        match self {
            // A text of so many bytes has no more characters: the common case, without counting.
            Self::Characters(limit) | Self::Bytes(limit) if text.len() <= limit => text.len(),
            Self::Characters(limit) => text.char_indices().nth(limit).map_or(text.len(), |(at, _)| at.max(first)),
            Self::Bytes(limit) => boundary_at_or_before(text, limit).max(first),
        }
    }
}

/// One report's share of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Bytes of the text. Its end is the offset of the next part.
    pub range: Range<usize>,
    /// Nothing needs to be sent after it.
    pub is_last: bool,
}

/// The next part of `content`, from byte `offset` on: 0, or where the part before ended. At (or after) the end of the
/// text, and where only white space is left, the part is empty and the last.
#[must_use]
pub fn next_part(content: &str, offset: usize, limit: ContentLimit) -> Part {
    // An offset within a character cannot come from here; whatever it comes from, sending too much is better.
    let start = boundary_at_or_before(content, offset);
    let rest = content.get(start..).unwrap_or_default();
    let Some(text) = Text::of(rest) else {
        return Part { range: content.len()..content.len(), is_last: true };
    };
    let fitting = limit.fitting(rest);
    if fitting == rest.len() {
        return Part { range: start..content.len(), is_last: true };
    }
    if fitting < text.first_end {
        // White space fills a whole part: it is left out.
        let skipped = start + text.first_start;
        let Part { range, is_last } = next_part(content, skipped, limit);
        return Part { range: skipped..range.end, is_last };
    }
    // Both sides of the cut need text. With a single character of it, white space behind it is what gives way.
    let bounds = text.first_end..=fitting.min(text.last_start);
    let end = if bounds.is_empty() { fitting } else { cut(rest, bounds) };
    let is_last = rest.get(end..).is_none_or(is_blank);
    Part { range: start..start + end, is_last }
}

/// The text itself, or its beginning with `…` when it is over the limit.
#[must_use]
pub fn truncate(content: &str, limit: ContentLimit) -> Cow<'_, str> {
    if limit.fitting(content) == content.len() {
        return Cow::Borrowed(content);
    }
    let less = match limit {
        ContentLimit::Characters(count) => ContentLimit::Characters(count.saturating_sub(1)),
        ContentLimit::Bytes(count) => ContentLimit::Bytes(count.saturating_sub(ELLIPSIS.len_utf8())),
    };
    let fitting = less.fitting(content);
    let end = last_grapheme_boundary(content, fitting).filter(|&at| at > 0).unwrap_or(fitting);
    let mut short = String::with_capacity(end + ELLIPSIS.len_utf8());
    short.push_str(content.get(..end).unwrap_or_default());
    short.push(ELLIPSIS);
    Cow::Owned(short)
}

/// Where the text is in a string that may begin and end with white space.
struct Text {
    first_start: usize,
    first_end: usize,
    last_start: usize,
}

impl Text {
    fn of(rest: &str) -> Option<Self> {
        let (first_start, first) = rest.char_indices().find(|&(_, c)| !is_blank_character(c))?;
        let (last_start, _) = rest.char_indices().rfind(|&(_, c)| !is_blank_character(c))?;
        Some(Self { first_start, first_end: first_start + first.len_utf8(), last_start })
    }
}

/// The best place to cut `text` within `bounds` (which are code point boundaries).
fn cut(text: &str, bounds: std::ops::RangeInclusive<usize>) -> usize {
    let (least, most) = bounds.into_inner();
    let full_enough = least.max(most / 2);
    let mut after_space = None;
    let mut between_words = None;
    for (at, _) in text.split_word_bound_indices().skip_while(|&(at, _)| at < full_enough).take_while(|&(at, _)| at <= most) {
        between_words = Some(at);
        if text.get(..at).is_some_and(|before| before.ends_with(is_blank_character)) {
            after_space = Some(at);
        }
    }
    let graphemes = || last_grapheme_boundary(text, most).filter(|&at| at >= least);
    after_space.or(between_words).or_else(graphemes).unwrap_or(most)
}

/// The last grapheme boundary at or before byte `at` of `text`.
fn last_grapheme_boundary(text: &str, at: usize) -> Option<usize> {
    let mut cursor = GraphemeCursor::new(at, text.len(), true);
    if cursor.is_boundary(text, 0) == Ok(true) {
        return Some(at);
    }
    cursor.prev_boundary(text, 0).ok().flatten()
}

/// The last code point boundary at or before byte `at` of `text`.
fn boundary_at_or_before(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..4).map(|back| at.saturating_sub(back)).find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn is_blank(text: &str) -> bool {
    text.chars().all(is_blank_character)
}

/// What the server may take for blank: it trims everything up to U+0020; other white space is counted in, to be safe.
fn is_blank_character(c: char) -> bool {
    c <= ' ' || c.is_whitespace()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::ContentLimit::{Bytes, Characters};
    use super::*;
    use proptest::prelude::*;

    fn parts(content: &str, limit: ContentLimit) -> Vec<&str> {
        let mut parts = Vec::new();
        let mut offset = 0;
        loop {
            let part = next_part(content, offset, limit);
            assert!(part.range.start >= offset && part.range.end > offset, "{part:?} after {offset}");
            offset = part.range.end;
            parts.push(&content[part.range]);
            if part.is_last {
                return parts;
            }
        }
    }

    fn weight(text: &str, limit: ContentLimit) -> (usize, usize) {
        match limit {
            Characters(limit) => (text.chars().count(), limit),
            Bytes(limit) => (text.len(), limit),
        }
    }

    #[test]
    fn text_within_the_limit_is_one_part() {
        for limit in [Characters(5), Bytes(5), Characters(1024)] {
            assert_eq!(next_part("Hello", 0, limit), Part { range: 0..5, is_last: true });
        }
        assert_eq!(parts("éééé", Characters(4)), ["éééé"]);
        assert_eq!(parts("éééé", Bytes(8)), ["éééé"]);
    }

    #[test]
    fn a_cut_stands_between_words_and_the_space_stays_with_the_word_before() {
        assert_eq!(parts("one two three four", Characters(9)), ["one two ", "three ", "four"]);
        assert_eq!(parts("Hello, world. Bye", Characters(14)), ["Hello, world. ", "Bye"]);
        assert_eq!(parts("你好世界你好世界", Characters(3)), ["你好世", "界你好", "世界"]);
    }

    #[test]
    fn a_word_over_the_limit_is_cut_between_graphemes_and_a_grapheme_over_the_limit_between_code_points() {
        assert_eq!(parts("abcdefghij", Characters(4)), ["abcd", "efgh", "ij"]);
        assert_eq!(parts("e\u{301}e\u{301}e\u{301}", Characters(3)), ["e\u{301}", "e\u{301}", "e\u{301}"]);
        assert_eq!(parts("👍🏽👍🏽", Bytes(10)), ["👍🏽", "👍🏽"]);
        let family = "👩\u{200d}👩\u{200d}👧";
        assert_eq!(parts(family, Characters(2)).concat(), family);
        assert_eq!(parts("ééé", Bytes(3)), ["é", "é", "é"]);
    }

    #[test]
    fn a_limit_below_one_character_still_goes_on() {
        assert_eq!(parts("a👍b", Bytes(1)), ["a", "👍", "b"]);
        assert_eq!(parts("ab", Characters(0)), ["a", "b"]);
    }

    #[test]
    fn no_part_is_blank_and_white_space_at_the_ends_goes_with_its_word() {
        assert_eq!(parts("abcd  efgh  ", Characters(6)), ["abcd  ", "efgh  "]);
        assert_eq!(parts("abcdef   ", Characters(6)), ["abcde", "f   "]);
        assert_eq!(parts("   abcdef", Characters(6)).concat(), "   abcdef");
        assert_eq!(parts("a         b", Characters(6)), ["a     ", "    b"]);
    }

    #[test]
    fn white_space_as_long_as_a_part_is_left_out() {
        let content = format!("abc{}def", " ".repeat(30));
        let parts = parts(&content, Characters(6));
        assert_eq!(parts.iter().map(|part| part.trim()).collect::<String>(), "abcdef");
        assert!(parts.iter().all(|part| !is_blank(part)));
    }

    #[test]
    fn at_the_end_of_the_text_there_is_nothing_to_send() {
        for (content, offset) in [("abc", 3), ("abc", 99), ("abc  ", 3), ("", 0), ("  ", 0)] {
            let part = next_part(content, offset, Characters(10));
            assert!(part.range.is_empty() && part.is_last && part.range.end == content.len(), "{part:?}");
        }
    }

    #[test]
    fn an_offset_within_a_character_sends_too_much_rather_than_too_little() {
        assert_eq!(next_part("aéb", 2, Characters(10)), Part { range: 1..4, is_last: true });
    }

    #[test]
    fn truncated_text_ends_with_an_ellipsis_and_fits() {
        assert_eq!(truncate("Hello", Characters(5)), "Hello");
        assert_eq!(truncate("Hello!", Characters(5)), "Hell…");
        assert_eq!(truncate("Hello!", Bytes(5)), "He…");
        assert_eq!(truncate("ae\u{301}b", Characters(3)), "a…");
        assert_eq!(truncate("👍🏽👍🏽👍🏽", Characters(4)), "👍🏽…");
    }

    proptest! {
        #[test]
        fn parts_joined_are_the_text(
            content in "(\\PC|[ \n\t]{0,3}|e\u{301}|👩\u{200d}👧|[a-z]{1,12}|你){1,60}",
            limit in prop_oneof![(5_usize..40).prop_map(Characters), (9_usize..60).prop_map(Bytes)],
        ) {
            let content = content.trim_matches(is_blank_character);
            let longest_blank = content.split(|c| !is_blank_character(c)).map(|run| weight(run, limit).0).max().unwrap_or(0);
            let room = match limit { Characters(limit) => limit - 1, Bytes(limit) => limit - 4 };
            prop_assume!(!content.is_empty() && longest_blank <= room);
            let parts = parts(content, limit);
            prop_assert_eq!(parts.concat(), content);
            for part in &parts {
                let (weight, limit) = weight(part, limit);
                prop_assert!(weight <= limit && !is_blank(part), "{:?}", part);
            }
        }

        #[test]
        fn whatever_the_white_space_no_part_is_blank_and_no_word_is_lost(
            content in "([ \n\u{3000}]{0,30}|[a-zé]{1,6}){1,20}",
            limit in 1_usize..20,
        ) {
            prop_assume!(!is_blank(&content));
            let parts = parts(&content, Characters(limit));
            let bare = |text: &str| text.chars().filter(|&c| !is_blank_character(c)).collect::<String>();
            prop_assert_eq!(bare(&parts.concat()), bare(&content));
            for part in &parts {
                prop_assert!(part.chars().count() <= limit && !is_blank(part), "{:?}", part);
            }
        }

        #[test]
        fn truncated_text_fits_and_is_a_beginning(content in "\\PC{0,60}", limit in 2_usize..40) {
            for limit in [Characters(limit), Bytes(limit + 5)] {
                let short = truncate(&content, limit);
                let (weight, most) = weight(&short, limit);
                prop_assert!(weight <= most);
                prop_assert!(content.starts_with(short.strip_suffix(ELLIPSIS).unwrap_or(&short)));
            }
        }
    }
}
