//! Which recognised sentences stand in the text of an item.
//!
//! Promises: texts are compared by their words alone: canonical composition (NFC), case and punctuation make no
//! difference. Sentences are found as whole consecutive words, left to right, each stretch of the item used once; of all
//! ways to place them the one that covers the most words is taken, and of equal ones that of the youngest sentences.
//! Refuses: to search more than [`MAX_ITEM_WORDS`] words: sentences beyond count as not found, which doubles a
//! sentence at worst and loses none.
//! Called by `turns` alone.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// A quarter of an hour of speech without a pause; bounds the work of one item.
const MAX_ITEM_WORDS: usize = 2048;

/// For every sentence, oldest first, whether the item covers it. A sentence without any word is never covered.
pub(super) fn covered<'a>(item: &str, sentences: impl IntoIterator<Item = &'a str>) -> Vec<bool> {
    let mut numbers = HashMap::new();
    let item: Vec<u32> = words(item, MAX_ITEM_WORDS)
        .into_iter()
        .map(|word| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            *numbers.entry(word).or_insert(next)
        })
        .collect();

    // `best[p]`: the most words that the sentences so far can cover in the first `p` words of the item.
    let mut best = vec![0_usize; item.len() + 1];
    let mut placements = Vec::new();
    for sentence in sentences {
        let sentence: Vec<u32> =
            words(sentence, item.len() + 1).iter().map(|word| numbers.get(word).copied().unwrap_or(u32::MAX)).collect();
        placements.push(Placement::of(&sentence, &item, &mut best));
    }

    let mut free = item.len();
    let mut found: Vec<bool> = placements
        .iter()
        .rev()
        .map(|placement| {
            let end = placement.end_within(free);
            if let Some(end) = end {
                free = end - placement.length;
            }
            end.is_some()
        })
        .collect();
    found.reverse();
    found
}

/// Where one sentence goes, for every length of the item's beginning that is left to it and the older ones.
struct Placement {
    length: usize,
    /// `ends[p]`: the end of the stretch it takes within the first `p` words; 0: it takes none. Empty: nowhere.
    ends: Vec<usize>,
}

impl Placement {
    /// Places a sentence after the older ones and brings `best` up to date.
    fn of(sentence: &[u32], item: &[u32], best: &mut [usize]) -> Self {
        let length = sentence.len();
        let mut occurrences = Vec::new();
        if length > 0 {
            let windows = item.windows(length).enumerate();
            occurrences.extend(windows.filter(|(_, window)| *window == sentence).map(|(start, _)| start + length));
        }
        if occurrences.is_empty() {
            return Self { length, ends: Vec::new() };
        }
        let mut occurrences = occurrences.into_iter().peekable();
        let before = best.to_vec();
        let (mut most, mut most_end) = (0, 0);
        let mut ends = Vec::with_capacity(best.len());
        for (position, value) in best.iter_mut().enumerate() {
            if occurrences.next_if_eq(&position).is_some() {
                let with = before.get(position - length).copied().unwrap_or_default() + length;
                if with > most {
                    (most, most_end) = (with, position);
                }
            }
            // Of equal ways the one with the younger sentence: a repeated "yes" is the last one that was said.
            let takes = most_end > 0 && most >= *value;
            *value = if takes { most } else { *value };
            ends.push(if takes { most_end } else { 0 });
        }
        Self { length, ends }
    }

    fn end_within(&self, free: usize) -> Option<usize> {
        self.ends.get(free).copied().filter(|&end| end > 0)
    }
}

/// The words of a text: runs of letters, digits and combining marks in lower case. Apostrophes and invisible joiners
/// inside a word are dropped, anything else separates. At most `limit` of them are read.
fn words(text: &str, limit: usize) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for character in text.nfc() {
        match character {
            '\'' | '\u{2019}' | '\u{2bc}' | '\u{ad}' | '\u{200c}' | '\u{200d}' => {}
            _ if character.is_alphanumeric() || is_combining_mark(character) => word.extend(character.to_lowercase()),
            _ if word.is_empty() => {}
            _ => words.push(std::mem::take(&mut word)),
        }
        if words.len() == limit {
            return words;
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_punctuation_and_composition_make_no_difference() {
        for (item, sentence) in [
            ("Stop, stop! I want a song.", "stop stop i want a song"),
            ("It's GREAT", "its great"),
            ("a well-known caf\u{e9}", "well known cafe\u{301}"),
            ("नमस्ते, तुम कैसे हो?", "तुम कैसे हो"),
            ("你好。我要听歌！", "我要听歌"),
        ] {
            assert_eq!(covered(item, [sentence]), [true], "{item}");
        }
    }

    #[test]
    fn words_count_whole_and_in_a_row() {
        assert_eq!(covered("I know nothing", ["no", "i nothing", "know nothing"]), [false, false, true]);
        assert_eq!(covered("नमस्ते", ["नमस"]), [false]);
        assert_eq!(covered("hello", ["?!", "", "hello hello"]), [false, false, false]);
        assert_eq!(covered("", ["hello"]), [false]);
    }

    #[test]
    fn each_stretch_is_used_once_and_from_left_to_right() {
        assert_eq!(covered("yes yes", ["yes", "yes", "yes"]), [false, true, true]);
        assert_eq!(covered("one two", ["two", "one"]), [false, true]);
        assert_eq!(covered("one two three", ["one", "two three"]), [true, true]);
    }

    #[test]
    fn a_sentence_longer_than_the_item_is_not_covered_by_its_beginning() {
        assert_eq!(covered("one two", ["one two three", "one two"]), [false, true]);
        let long = "word ".repeat(MAX_ITEM_WORDS + 1);
        assert_eq!(covered(&long, [long.as_str(), "word"]), [false, true]);
    }

    #[test]
    fn a_short_sentence_does_not_take_the_words_of_a_long_one() {
        assert_eq!(covered("tell me no lies", ["no", "tell me no lies"]), [false, true]);
        assert_eq!(covered("tell me no lies", ["tell me no lies", "no"]), [true, false]);
        assert_eq!(covered("no tell me no lies", ["no", "tell me no lies"]), [true, true]);
    }
}
