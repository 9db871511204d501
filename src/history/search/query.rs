//! What is searched for: words and phrases that must all stand in a message. Pure.

use super::words::{Word, words};

/// Words of the text before and after what was found, in a snippet.
const AROUND: usize = 8;

/// A search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    phrases: Vec<Phrase>,
}

/// Words that stand one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Phrase {
    words: Vec<String>,
    /// The last one may be the beginning of a word.
    open: bool,
}

/// A part of a text around what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// Text, and whether it is what was found.
    pub parts: Vec<(String, bool)>,
}

impl Query {
    /// A search for these words; what stands in quotes is a phrase, and stands as it is. `None`: there is no word in it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut phrases = Vec::new();
        for (index, part) in text.split('"').enumerate() {
            if index % 2 == 1 {
                phrases.push(Phrase { words: folded(part), open: false });
            } else {
                phrases.extend(part.split_whitespace().map(|word| Phrase { words: folded(word), open: true }));
            }
        }
        phrases.retain(|phrase| !phrase.words.is_empty());
        (!phrases.is_empty()).then_some(Self { phrases })
    }

    /// The same for SQLite's FTS5.
    #[must_use]
    pub fn fts(&self) -> String {
        let one = |phrase: &Phrase| format!("\"{}\"{}", phrase.words.join(" "), if phrase.open { "*" } else { "" });
        self.phrases.iter().map(one).collect::<Vec<_>>().join(" AND ")
    }

    /// Where a text that has all of it has it first; `None`: it has not.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Snippet> {
        let words = words(text);
        let mut found: Vec<(usize, usize)> = Vec::new();
        for phrase in &self.phrases {
            let before = found.len();
            let ends = phrase.words.len();
            found.extend((0..words.len()).filter(|at| phrase.stands(&words, *at)).map(|at| (at, at + ends)));
            if found.len() == before {
                return None;
            }
        }
        found.sort_unstable();
        Some(snippet(text, &words, &found))
    }
}

fn folded(text: &str) -> Vec<String> {
    words(text).into_iter().map(|word| word.folded).collect()
}

impl Phrase {
    fn stands(&self, words: &[Word], at: usize) -> bool {
        let last = self.words.len() - 1;
        self.words.iter().enumerate().all(|(index, wanted)| {
            words.get(at + index).is_some_and(|word| {
                if self.open && index == last { word.folded.starts_with(wanted.as_str()) } else { word.folded == *wanted }
            })
        })
    }
}

fn snippet(text: &str, words: &[Word], found: &[(usize, usize)]) -> Snippet {
    let first = found.first().map_or(0, |(from, _)| *from);
    let begin = first.saturating_sub(AROUND);
    let end = (first + AROUND).min(words.len().saturating_sub(1));
    let from = if begin == 0 { 0 } else { words.get(begin).map_or(0, |word| word.place.start) };
    let to = if end + 1 >= words.len() { text.len() } else { words.get(end).map_or(text.len(), |word| word.place.end) };
    let mut parts = Vec::new();
    if from > 0 {
        parts.push(("…".to_owned(), false));
    }
    let mut at = from;
    for (begin, end) in found {
        let place = words.get(*begin).zip(words.get(end - 1)).map(|(first, last)| first.place.start..last.place.end);
        let Some(place) = place.filter(|place| place.start >= at && place.end <= to) else { continue };
        parts.push((text.get(at..place.start).unwrap_or_default().to_owned(), false));
        parts.push((text.get(place.clone()).unwrap_or_default().to_owned(), true));
        at = place.end;
    }
    parts.push((text.get(at..to).unwrap_or_default().to_owned(), false));
    if to < text.len() {
        parts.push(("…".to_owned(), false));
    }
    parts.retain(|(text, _)| !text.is_empty());
    Snippet { parts }
}

impl Snippet {
    /// With marks around what was found.
    #[must_use]
    pub fn marked(&self, before: &str, after: &str) -> String {
        let one = |(text, is_found): &(String, bool)| if *is_found { format!("{before}{text}{after}") } else { text.clone() };
        self.parts.iter().map(one).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn finds(query: &str, text: &str) -> Option<String> {
        Query::parse(query).unwrap().find(text).map(|snippet| snippet.marked("[", "]"))
    }

    #[test]
    fn all_words_must_stand_in_the_text_in_any_order() {
        assert_eq!(finds("fox quick", "The quick brown fox").unwrap(), "The [quick] brown [fox]");
        assert_eq!(finds("fox cat", "The quick brown fox"), None);
        assert_eq!(finds("ele", "an Elephant").unwrap(), "an [Elephant]");
        assert_eq!(finds("\"ele\"", "an elephant"), None);
        assert_eq!(finds("\"brown fox\"", "The quick brown fox").unwrap(), "The quick [brown fox]");
        assert_eq!(finds("\"quick fox\"", "The quick brown fox"), None);
    }

    #[test]
    fn every_script_is_found() {
        assert_eq!(finds("हाथी", "मुझे हाथी की कहानी सुनाओ").unwrap(), "मुझे [हाथी] की कहानी सुनाओ");
        assert_eq!(finds("हाथ", "मुझे हाथी की").unwrap(), "मुझे [हाथी] की");
        assert_eq!(finds("थी", "मुझे हाथी की"), None);
        assert_eq!(finds("大象", "我想听大象的故事").unwrap(), "我想听[大象]的故事");
        assert_eq!(finds("象", "我想听大象的故事").unwrap(), "我想听大[象]的故事");
        assert_eq!(finds("象大", "我想听大象的故事"), None);
        assert_eq!(finds("🐘", "बड़ा हाथी था। 🐘").unwrap(), "बड़ा हाथी था। [🐘]");
        assert_eq!(finds("cafe", "ein Café").unwrap(), "ein [Café]");
    }

    #[test]
    fn a_snippet_shows_what_is_around() {
        let text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty";
        assert_eq!(
            finds("ten", text).unwrap(),
            "…two three four five six seven eight nine [ten] eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen…"
        );
        assert_eq!(finds("one", text).unwrap(), "[one] two three four five six seven eight nine…");
    }

    #[test]
    fn what_has_no_word_is_no_search() {
        for text in ["", "  ", "\"\"", "?!", "…"] {
            assert_eq!(Query::parse(text), None, "{text}");
        }
        assert_eq!(Query::parse("a \"b c").unwrap().fts(), "\"a\"* AND \"b c\"");
        assert_eq!(Query::parse("大象 OR x* NEAR(").unwrap().fts(), "\"大 象\"* AND \"or\"* AND \"x\"* AND \"near\"*");
    }
}
