//! Prose in roff: what every page says of itself, and `code` in bold.

use std::io;

use jiff::fmt::rfc2822;
use roff::{Inline, Roff, bold, roman};

/// What stands in the foot of every page.
pub struct Edition {
    /// The day of the release, `2026-11-25`: a page made twice is the same twice.
    pub date: String,
    /// The program and its version.
    pub source: String,
}

impl Edition {
    /// The edition that the newest entry of a Debian changelog describes.
    pub fn of(changelog: &str) -> io::Result<Self> {
        let version = changelog.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(version, _)| version);
        let version = version.map(|version| version.rsplit_once('-').map_or(version, |(upstream, _)| upstream));
        let day = changelog.lines().find_map(|line| line.strip_prefix(" -- ")?.split_once(">  ")).map(|(_, day)| day);
        let (Some(version), Some(day)) = (version, day) else {
            return Err(io::Error::other("the changelog has no entry with a version and a day"));
        };
        let date = rfc2822::parse(day).map_err(io::Error::other)?.date().to_string();
        Ok(Self { date, source: format!("chat-historyd {version}") })
    }

    /// Begins a page.
    pub fn title(&self, name: &str, section: &str, manual: &str) -> Roff {
        let mut page = Roff::new();
        page.control("TH", [name, section, &self.date, &self.source, manual]);
        page
    }
}

/// A line of prose; what stands between backticks becomes bold.
pub fn prose(text: &str) -> Vec<Inline> {
    let pieces = text.split('`').enumerate();
    pieces.filter(|(_, piece)| !piece.is_empty()).map(|(n, piece)| if n % 2 == 1 { bold(piece) } else { roman(piece) }).collect()
}

/// A paragraph.
pub fn paragraph(page: &mut Roff, text: &str) {
    page.control("PP", []);
    page.text(prose(text));
}

/// A term and what is to be said of it.
pub fn entry(page: &mut Roff, term: Vec<Inline>, text: &str) {
    page.control("TP", []);
    page.text(term);
    page.text(prose(text));
}

/// Takes out what formatters complain of or skip, and sets lists of values without empty lines between.
pub fn tidy(page: &str) -> String {
    let lines: String = page.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    lines
        .replace("\n.br\n\n.br\n", "\n.sp\n")
        .replace("\n.RS 14\n", "\n.RS 14\n.PD 0\n")
        .replace("\n.RE\n", "\n.PD\n.RE\n")
        .split("\n.SH ")
        .map(|section| section.replacen("\n.PP\n", "\n", usize::from(section.lines().nth(1) == Some(".PP"))))
        .collect::<Vec<_>>()
        .join("\n.SH ")
}
