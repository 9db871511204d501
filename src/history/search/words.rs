//! A text as the words that a search compares. Pure.
//!
//! Promises: case and Latin accents do not matter; Devanagari keeps its vowel signs, so a word stays one word; scripts
//! written without spaces (Chinese, Japanese, Thai, …) are one word a cluster, found by any run of them; an emoji is a word.
//! SQLite's own tokenizer cuts Devanagari at vowel signs and takes a Chinese run as one word, therefore the index gets
//! these words, not the text.

use std::fmt::Write;
use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

/// A word, folded, and where it stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// As it is compared.
    pub folded: String,
    /// Its bytes in the text.
    pub place: Range<usize>,
}

/// The words of a text, in order.
#[must_use]
pub fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut open = false;
    for (start, cluster) in text.grapheme_indices(true) {
        let place = start..start + cluster.len();
        match kind(cluster) {
            Kind::Letter if open => {
                if let Some(word) = words.last_mut() {
                    word.folded.push_str(&fold(cluster));
                    word.place.end = place.end;
                }
            }
            Kind::Letter => {
                words.push(Word { folded: fold(cluster), place });
                open = true;
            }
            Kind::Alone => {
                words.push(Word { folded: fold(cluster), place });
                open = false;
            }
            Kind::Emoji => {
                words.push(Word { folded: emoji(cluster), place });
                open = false;
            }
            Kind::Nothing => open = false,
        }
    }
    words.retain(|word| !word.folded.is_empty());
    words
}

/// The words of a text for the index, separated by spaces.
#[must_use]
pub fn indexed(text: &str) -> String {
    if text.is_ascii() {
        return indexed_ascii(text);
    }
    let words: Vec<String> = words(text).into_iter().map(|word| word.folded).collect();
    words.join(" ")
}

/// The same, for a text in which a cluster is a byte: most of what is said in many languages, at a tenth of the cost.
fn indexed_ascii(text: &str) -> String {
    let mut indexed = String::with_capacity(text.len());
    for word in text.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        if !indexed.is_empty() {
            indexed.push(' ');
        }
        indexed.extend(word.chars().map(|character| character.to_ascii_lowercase()));
    }
    indexed
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Alone,
    Emoji,
    Nothing,
}

fn kind(cluster: &str) -> Kind {
    let Some(first) = cluster.chars().next() else { return Kind::Nothing };
    if is_emoji(first) {
        return Kind::Emoji;
    }
    if !first.is_alphanumeric() {
        return Kind::Nothing;
    }
    if is_written_without_spaces(first) { Kind::Alone } else { Kind::Letter }
}

/// Lower case, compatibility forms resolved, the accents of Latin, Greek and Cyrillic gone, other marks kept.
fn fold(cluster: &str) -> String {
    let decomposed = cluster.nfkd().filter(|character| !matches!(*character as u32, 0x0300..=0x036f));
    let kept: String =
        decomposed.flat_map(char::to_lowercase).filter(|character| !matches!(character, '\u{200c}' | '\u{200d}')).collect();
    kept.nfc().filter(|character| !character.is_whitespace() && !character.is_ascii_punctuation()).collect()
}

/// An emoji in letters: one word for the whole cluster, without variation selectors.
fn emoji(cluster: &str) -> String {
    let mut word = String::from("emoji");
    for character in cluster.chars().filter(|character| !matches!(character, '\u{fe0e}' | '\u{fe0f}' | '\u{200d}')) {
        // Writing to a String cannot fail.
        let _ = write!(word, "x{:x}", character as u32);
    }
    word
}

const fn is_emoji(character: char) -> bool {
    matches!(character as u32, 0x203c | 0x2049 | 0x2122 | 0x2190..=0x21ff | 0x2300..=0x23ff | 0x25a0..=0x27bf | 0x2900..=0x297f | 0x2b00..=0x2bff
        | 0x1f000..=0x1faff)
}

const fn is_written_without_spaces(character: char) -> bool {
    matches!(character as u32,
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x2e80..=0x2fdf | 0x3005..=0x3007 | 0x3041..=0x312f
        | 0x31a0..=0x31bf | 0x31f0..=0x31ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9d
        | 0x20000..=0x3fffd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_falls_into_its_words() {
        assert_eq!(indexed("Hello, Café WORLD-wide 3.5"), "hello cafe world wide 3 5");
        assert_eq!(indexed("नमस्ते, हाथी की कहानी"), "नमस्ते हाथी की कहानी");
        assert_eq!(indexed("我想听大象"), "我 想 听 大 象");
        assert_eq!(indexed("ゾウの話"), "ソ\u{3099} ウ の 話".nfc().collect::<String>());
        assert_eq!(indexed("Слон идёт"), "слон идет");
        assert_eq!(indexed("an 🐘!"), "an emojix1f418");
        assert_eq!(indexed("❤️ ❤"), "emojix2764 emojix2764");
        assert_eq!(indexed("👨‍👩‍👧"), "emojix1f468x1f469x1f467");
        assert_eq!(indexed(" \"…\" — !"), "");
    }

    proptest::proptest! {
        #[test]
        fn plain_text_takes_a_shorter_way_to_the_same_words(text in "[ -~\\r\\n\\t\\x00]{0,60}") {
            let words: Vec<String> = words(&text).into_iter().map(|word| word.folded).collect();
            proptest::prop_assert_eq!(indexed_ascii(&text), words.join(" "));
        }
    }

    #[test]
    fn a_word_knows_its_place() {
        let text = "ein Geheimnis: गुप्त";
        let places: Vec<&str> = words(text).iter().filter_map(|word| text.get(word.place.clone())).collect();
        assert_eq!(places, ["ein", "Geheimnis", "गुप्त"]);
    }
}
