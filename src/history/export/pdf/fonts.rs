//! The fonts of this system, and which of them a text needs.
//!
//! Promises: a character that any font here can draw is drawn; one that none can is counted, and the package that has it
//! is named. Fonts are mapped, not read: a big one costs what is used of it.
//! Refuses: to choose by language, which nobody told us. Chinese characters in a text with kana are drawn as in Japan, with
//! Hangul as in Korea, else as in China.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use krilla::text::{Font, Tag};
use parley::fontique::{Collection, CollectionOptions, FamilyId, SourceCache};
use parley::layout::Run;
use parley::style::{FontFamilyName, GenericFamily};
use parley::{FontContext, LayoutContext};

use super::super::Unavailable;

/// For Latin, and whatever else they have: the first that is there.
const FIRST: [&str; 5] = ["Noto Sans", "Open Sans", "Liberation Sans", "DejaVu Sans", "Arial"];
/// The ends of the names of fonts for Chinese characters, by whose shapes they have.
const CHINESE: [&str; 2] = ["CJK SC", "Sans SC"];
const JAPANESE: [&str; 2] = ["CJK JP", "Sans JP"];
const KOREAN: [&str; 2] = ["CJK KR", "Sans KR"];

/// Characters of a text by which two families are compared.
const SHARE_OF: usize = 200;

/// A font as [`Font`] is made from it: which file, which font in it, at which weight.
type Face = (u64, u32, Vec<([u8; 4], u32)>);

pub(super) struct Fonts {
    pub(super) context: FontContext,
    pub(super) layouts: LayoutContext<()>,
    /// All families, those that are taken first at the front.
    families: Vec<(String, FamilyId)>,
    /// Those in use, in the order they are asked for a character; emoji come last.
    stack: Vec<(String, FamilyId)>,
    emoji: Option<(String, FamilyId)>,
    /// Characters that were looked for already.
    seen: HashSet<char>,
    /// Characters that no font has.
    missing: HashSet<char>,
    /// How often they were wanted, by the package that has them.
    wanted: BTreeMap<&'static str, u64>,
    faces: HashMap<Face, Option<Font>>,
}

impl Fonts {
    /// The fonts of this system.
    ///
    /// # Errors
    /// When it has none.
    pub(super) fn of_this_system() -> Result<Self, Unavailable> {
        let mut collection = Collection::new(CollectionOptions { shared: false, system_fonts: false });
        let places = places();
        collection.load_fonts_from_paths(places.iter().filter(|place| place.is_dir()));
        let names: Vec<String> = collection.family_names().map(str::to_owned).collect();
        let mut families: Vec<(String, FamilyId)> =
            names.into_iter().filter_map(|name| collection.family_id(&name).map(|id| (name, id))).collect();
        families.sort_by_cached_key(|(name, _)| (rank(name), name.clone()));
        families.dedup_by_key(|(_, id)| *id);
        let emoji = families.iter().find(|(name, _)| name.contains("Emoji")).cloned();
        if let Some((_, id)) = emoji {
            collection.set_generic_families(GenericFamily::Emoji, std::iter::once(id));
        }
        let mut fonts = Self {
            context: FontContext { collection, source_cache: SourceCache::default() },
            layouts: LayoutContext::new(),
            families,
            stack: Vec::new(),
            emoji,
            seen: HashSet::new(),
            missing: HashSet::new(),
            wanted: BTreeMap::new(),
            faces: HashMap::new(),
        };
        let latin = FIRST.iter().find_map(|name| fonts.families.iter().find(|(known, _)| known == name).cloned());
        let latin = latin.or_else(|| fonts.family_with('a', "abcxyz"));
        fonts.stack.push(latin.ok_or(Unavailable::NoFonts(places))?);
        Ok(fonts)
    }

    /// The families that draw this text, in the order they are asked.
    pub(super) fn families_for(&mut self, text: &str) -> Vec<FontFamilyName<'static>> {
        for character in text.chars().filter(|character| !is_invisible(*character)) {
            if self.seen.insert(character) && !self.is_drawable(character) {
                match self.family_with(character, text) {
                    Some(family) => self.stack.push(family),
                    None => drop(self.missing.insert(character)),
                }
            }
            if self.missing.contains(&character) {
                *self.wanted.entry(package_of(character)).or_default() += 1;
            }
        }
        let shapes = shapes_of(text);
        let of_shape = self.families.iter().filter(|(name, _)| shapes.iter().any(|end| name.ends_with(end)));
        let in_use = self.stack.iter().filter(|(name, _)| !is_east_asian(name) || shapes.iter().any(|end| name.ends_with(end)));
        let latin = self.stack.iter().take(1);
        let emoji = self.emoji.iter();
        let rest = self.stack.iter();
        let all = latin.chain(of_shape.filter(|_| text.chars().any(is_chinese))).chain(in_use).chain(rest).chain(emoji);
        let mut known = HashSet::new();
        all.filter(|(_, id)| known.insert(*id)).map(|(name, _)| FontFamilyName::Named(name.clone().into())).collect()
    }

    fn is_drawable(&mut self, character: char) -> bool {
        let ids: Vec<FamilyId> = self.stack.iter().chain(&self.emoji).map(|(_, id)| *id).collect();
        ids.into_iter().any(|id| self.has(id, character))
    }

    /// The best family that has this character of a text: of those that are equally plain the one that has most of the
    /// text, for some fonts have a few characters of a neighbouring script.
    fn family_with(&mut self, character: char, text: &str) -> Option<(String, FamilyId)> {
        let mut best: Option<(usize, usize, (String, FamilyId))> = None;
        for (name, id) in self.families.clone() {
            let rank = rank(&name);
            if best.as_ref().is_some_and(|(of_best, ..)| rank > *of_best) {
                break;
            }
            if self.has(id, character) {
                let share = text.chars().take(SHARE_OF).filter(|other| self.has(id, *other)).count();
                if best.as_ref().is_none_or(|(_, of_best, _)| share > *of_best) {
                    best = Some((rank, share, (name, id)));
                }
            }
        }
        best.map(|(.., family)| family)
    }

    fn has(&mut self, family: FamilyId, character: char) -> bool {
        let Some(family) = self.context.collection.family(family) else { return false };
        let Some(font) = family.default_font() else { return false };
        let Some(data) = font.load(Some(&mut self.context.source_cache)) else { return false };
        let glyph = font.charmap_index().charmap(data.as_ref()).and_then(|map| map.map(character));
        glyph.is_some_and(|glyph| glyph != 0)
    }

    /// The font of a run; `None` when it cannot be used.
    pub(super) fn face(&mut self, run: &Run<'_, ()>) -> Option<Font> {
        let font = run.font();
        let synthesis = run.synthesis();
        let variations: Vec<([u8; 4], u32)> =
            synthesis.variation_settings().iter().map(|(tag, value)| (tag.into_bytes(), value.to_bits())).collect();
        let face = (font.data.id(), font.index, variations);
        let make = |face: &Face| {
            let coordinates: Vec<(Tag, f32)> =
                face.2.iter().map(|(tag, value)| (Tag::new(tag), f32::from_bits(*value))).collect();
            Font::new_variable(font.data.clone().into_raw_parts().0.into(), font.index, &coordinates)
        };
        self.faces.entry(face).or_insert_with_key(make).clone()
    }

    /// What to say of characters that could not be drawn; `None`: all were.
    pub(super) fn remark(&self) -> Option<String> {
        let count: u64 = self.wanted.values().sum();
        let packages: Vec<&str> = self.wanted.keys().copied().collect();
        (count > 0).then(|| {
            format!(
                "no font here has {count} of the characters: they are boxes in the PDF (apt-get install {}, or your system's Noto fonts)",
                packages.join(" ")
            )
        })
    }
}

/// Where the XDG base directories and old custom have fonts.
fn places() -> Vec<PathBuf> {
    let data = std::env::var_os("XDG_DATA_DIRS").filter(|value| !value.is_empty());
    let shared = data.unwrap_or_else(|| "/usr/local/share:/usr/share".into());
    let mut places: Vec<PathBuf> = std::env::split_paths(&shared).map(|place| place.join("fonts")).collect();
    if let Some(user) = directories::BaseDirs::new() {
        places.extend([user.data_dir().join("fonts"), user.home_dir().join(".fonts")]);
    }
    places
}

/// The lower, the sooner taken.
fn rank(name: &str) -> usize {
    let plain = name.starts_with("Noto Sans");
    let ends_with = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if name == "Noto Sans" {
        0
    } else if plain && ends_with(&CHINESE) {
        1
    } else if plain && is_east_asian(name) {
        3
    } else if name.contains("Mono") || name.contains("Nastaliq") || name.contains("Symbols") || name.contains("Emoji") {
        6
    } else if plain {
        2
    } else if name.contains("Sans") || name.contains("Gothic") {
        4
    } else {
        5
    }
}

fn is_east_asian(name: &str) -> bool {
    name.contains(" CJK ") || [" SC", " TC", " HK", " JP", " KR"].iter().any(|end| name.ends_with(end))
}

/// Whose shapes the Chinese characters of a text have.
fn shapes_of(text: &str) -> [&'static str; 2] {
    let has = |is: fn(char) -> bool| text.chars().any(is);
    if has(|character| matches!(character as u32, 0x3041..=0x30ff | 0xff66..=0xff9d)) {
        JAPANESE
    } else if has(|character| matches!(character as u32, 0x1100..=0x11ff | 0x3131..=0x318e | 0xac00..=0xd7a3)) {
        KOREAN
    } else {
        CHINESE
    }
}

const fn is_chinese(character: char) -> bool {
    matches!(character as u32, 0x2e80..=0x9fff | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe4f | 0xff00..=0xffef | 0x20000..=0x3fffd)
}

/// The Debian package whose fonts have it.
const fn package_of(character: char) -> &'static str {
    match character as u32 {
        0x1100..=0x11ff | 0x20000..=0x3fffd => "fonts-noto-cjk",
        _ if is_chinese(character) => "fonts-noto-cjk",
        0x2600..=0x27bf | 0x1f000..=0x1faff => "fonts-noto-color-emoji",
        _ => "fonts-noto-core",
    }
}

/// Characters without a body: a font need not have them.
fn is_invisible(character: char) -> bool {
    character.is_whitespace()
        || character.is_control()
        || matches!(character as u32,
            0x00ad | 0x034f | 0x061c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f | 0x202a..=0x202e
            | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfff8 | 0xe0000..=0xe0fff)
}
