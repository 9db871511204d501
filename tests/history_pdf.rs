//! PDF exports, read back by poppler: the text, the glyphs on the page, and what there is without fonts.
#![cfg(feature = "pdf")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::support::history::{CONVERSATION, MAC, OTHER_MAC, SAID_AT, command, converse, fill, refusal, text};
use crate::support::{Agent, Daemon};

const FONTS: [&str; 3] = [
    "/usr/share/fonts/truetype/noto/NotoSansDevanagari-Regular.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
];

/// Whether poppler and the fonts are here; says so when they are not.
fn can_be_read_back() -> bool {
    let poppler = Command::new("pdftotext").arg("-v").output().is_ok();
    if !poppler || FONTS.iter().any(|font| !Path::new(font).exists()) {
        crate::support::skipped("no poppler-utils, or no Noto fonts");
        return false;
    }
    true
}

fn poppler(daemon: &Daemon, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).current_dir(daemon.directory()).output().expect("poppler runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output.stdout
}

fn words_of(daemon: &Daemon, file: &str) -> String {
    String::from_utf8(poppler(daemon, "pdftotext", &["-raw", "-enc", "UTF-8", file, "-"])).expect("UTF-8")
}

fn squeezed(text: &str) -> String {
    text.chars().filter(|character| !character.is_whitespace()).collect()
}

/// A page as grey levels.
struct Picture {
    width: usize,
    grey: Vec<u8>,
}

impl Picture {
    const DPI: f64 = 144.0;

    fn of_first_page(daemon: &Daemon, file: &str) -> Self {
        let bytes = poppler(daemon, "pdftoppm", &["-gray", "-r", "144", "-f", "1", "-l", "1", file]);
        let mut fields = bytes.splitn(4, u8::is_ascii_whitespace);
        assert_eq!(fields.next(), Some(b"P5".as_slice()));
        let mut number =
            || -> usize { String::from_utf8_lossy(fields.next().expect("a field")).parse().expect("a number of the header") };
        let (width, _height) = (number(), number());
        let grey = fields.next().expect("the picture").splitn(2, |byte| *byte == b'\n').nth(1).expect("its dots").to_vec();
        Self { width, grey }
    }

    /// What is drawn in a box of the page, in points.
    fn cut(&self, left: f64, top: f64, right: f64, bottom: f64) -> Vec<u8> {
        let dots = |points: f64| (points * Self::DPI / 72.0).round() as usize;
        let rows = self.grey.chunks(self.width).skip(dots(top)).take(dots(bottom) - dots(top));
        rows.flat_map(|row| row[dots(left)..dots(right)].to_vec()).collect()
    }
}

/// Where a word stands: left, top, right, bottom.
fn place_of(daemon: &Daemon, file: &str, word: &str) -> [f64; 4] {
    let boxes = String::from_utf8(poppler(daemon, "pdftotext", &["-bbox", "-f", "1", "-l", "1", file, "-"])).expect("UTF-8");
    let line = boxes.lines().find(|line| line.contains(&format!(">{word}<"))).unwrap_or_else(|| panic!("{word}: {boxes}"));
    let mut numbers = line.split('"').skip(1).step_by(2).map(|number| number.parse().expect("a number"));
    std::array::from_fn(|_| numbers.next().expect("four numbers"))
}

#[test]
fn every_script_is_set_and_reads_back() {
    if !can_be_read_back() {
        return;
    }
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "कहानी-二");
    converse(&daemon, OTHER_MAC, "second");
    let output = command(&daemon, &["history", "export", "--format", "pdf", "-o", "out.pdf"]).output().expect("it runs");
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "a glyph is missing");
    let read = squeezed(&words_of(&daemon, "out.pdf"));
    for (_, content) in CONVERSATION {
        assert_eq!(read.matches(&squeezed(content)).count(), 2, "{content}\n{read}");
    }
    for words in
        ["Session कहानी-二", "Session second", MAC, OTHER_MAC, "interrupted", "agent story-teller", "16 messages in 2 sessions"]
    {
        assert!(read.contains(&squeezed(words)), "{words}\n{read}");
    }
    let about = String::from_utf8(poppler(&daemon, "pdfinfo", &["out.pdf"])).expect("UTF-8");
    assert!(about.contains("(A4)") && about.contains("Conversations") && about.contains("JavaScript:      no"), "{about}");
    let fonts = String::from_utf8(poppler(&daemon, "pdffonts", &["out.pdf"])).expect("UTF-8");
    assert!(fonts.contains("Devanagari") && fonts.contains("CJK") && fonts.contains("Type 3"), "{fonts}");
}

#[test]
fn every_glyph_is_drawn_and_none_is_the_box_of_a_missing_one() {
    if !can_be_read_back() {
        return;
    }
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    // One font that has no Chinese: its boxes show what the check is to see.
    let poor = daemon.directory().join("poor/fonts");
    std::fs::create_dir_all(&poor).expect("a directory");
    std::fs::copy(FONTS[0].replace("Devanagari", ""), poor.join("latin.ttf")).expect("a font");
    for (file, shared, complete) in [("rich.pdf", "/usr/share", true), ("poor.pdf", "poor", false)] {
        let mut export = command(&daemon, &["history", "export", "--format", "pdf", "-o", file]);
        let output = export.env("XDG_DATA_DIRS", shared).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("apt-get install") && said.contains("fonts-noto-cjk"), !complete, "{said}");
        let [left, top, right, bottom] = place_of(&daemon, file, "我想听大象的故事");
        let picture = Picture::of_first_page(&daemon, file);
        // As wide as high: eight columns are eight characters.
        let column = |index: usize| left + (right - left) * index as f64 / 8.0;
        let glyphs: Vec<Vec<u8>> = (0..8).map(|index| picture.cut(column(index), top, column(index) + 10.0, bottom)).collect();
        let drawn = |glyph: &Vec<u8>| glyph.iter().filter(|grey| **grey < 128).count() > 20;
        assert!(glyphs.iter().all(drawn), "{file}: something is not drawn");
        let difference = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a.abs_diff(**b) > 96).count();
        let alike = (1..8).filter(|index| difference(&glyphs[0], &glyphs[*index]) < 20).count();
        assert_eq!(alike == 0, complete, "{file}: {alike} glyphs look like the first");
    }
    // What is a box on the page is still there for whoever searches and copies.
    assert!(words_of(&daemon, "poor.pdf").contains("我想听大象的故事"));
    assert!(words_of(&daemon, "poor.pdf").contains("drawn as boxes"));
}

#[test]
fn hostile_text_is_text_and_long_text_goes_on_over_numbered_pages() {
    if !can_be_read_back() {
        return;
    }
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "<b>#[s]</b> \\input{x}");
    let marks = format!("zalgo{}end", "\u{301}".repeat(3000));
    let long = "x".repeat(9000);
    for content in [
        "\u{202e}txet desrever\u{2066}",
        "a\u{fffd}b\u{200b}\u{feff}c \u{e000} \u{10ffff}",
        "(\\)Tj ET Q endstream",
        &marks,
        &long,
    ] {
        agent.line(&json!({"type": "message", "chat_type": 1, "content": content, "timestamp": SAID_AT}));
    }
    agent.end();
    agent.flush("durable");
    fill(&daemon, 60);
    let output = command(&daemon, &["history", "export", "--format", "pdf", "-o", "out.pdf"]).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let read = words_of(&daemon, "out.pdf");
    for words in ["<b>#[s]</b> \\input{x}", "txet desrever", "(\\)Tj ET Q endstream", "filler number59"] {
        assert!(squeezed(&read).contains(&squeezed(words)), "{words}\n{read}");
    }
    assert!(read.matches('x').count() >= long.len(), "of the long word something is lost");
    let pages: Vec<&str> = read.trim_end_matches('\u{c}').split('\u{c}').collect();
    assert!(pages.len() > 3, "{} pages", pages.len());
    for (number, page) in (1..).zip(&pages) {
        assert!(page.trim_end().ends_with(&number.to_string()), "page {number} is not numbered: {page}");
        assert!(page.contains("All times are UTC."), "{page}");
    }
}

#[test]
fn without_a_font_it_is_refused_with_the_packages_that_have_some() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let Output { status, stdout, stderr } = command(&daemon, &["history", "export", "--format", "pdf", "-o", "out.pdf"])
        .env("XDG_DATA_DIRS", "/no/such/place")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!((status.code(), stdout.len()), (Some(64), 0), "{said}");
    for words in ["there are no fonts in /no/such/place/fonts", "apt-get install fonts-noto-core fonts-noto-cjk"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(!daemon.directory().join("out.pdf").exists());
    assert!(refusal(&daemon, &["history", "export", "--format", "pdf", "-o", "no/such/file"], 73).contains("does not exist"));
    assert!(text(&daemon, &["history", "export", "--format", "jsonl"]).contains("\"session\""));
}

#[test]
fn a_terminal_is_not_filled_with_a_pdf() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let words = format!(
        "{} history export --format pdf --config {}",
        crate::support::daemon::binary().display(),
        daemon.config().display()
    );
    let output =
        Command::new("script").args(["--quiet", "--return", "--command", &words, "/dev/null"]).output().expect("script(1) runs");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("-o FILE says where it goes") && !shown.contains("%PDF"), "{shown}");
}
