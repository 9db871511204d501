//! Sheets of paper: A4, filled from top to bottom, numbered.
//!
//! Promises: a sheet is handed on as soon as it is full, so that what is kept is what the file needs; there are never more
//! than were agreed on.

use std::io;

use krilla::Document;
use krilla::color::rgb;
use krilla::destination::XyzDestination;
use krilla::geom::{PathBuilder, Point};
use krilla::metadata::Metadata;
use krilla::num::NormalizedF32;
use krilla::outline::{Outline, OutlineNode};
use krilla::page::PageSettings;
use krilla::paint::{Fill, Stroke};

use super::super::Unavailable;
use super::fonts::Fonts;
use super::lines::{self, Line, Look};

/// A4, in points.
const WIDTH: f32 = 595.276;
const HEIGHT: f32 = 841.89;
const MARGIN: f32 = 54.0;
/// The width between the margins.
pub(super) const INSIDE: f32 = WIDTH - 2.0 * MARGIN;
const BOTTOM: f32 = HEIGHT - MARGIN - 14.0;
const SMALL_PRINT: Look = Look { size: 7.5, bold: false, colour: [96, 96, 96] };

enum Mark {
    Line { x: f32, y: f32, line: Line },
    Rule { y: f32 },
}

/// The sheets so far.
pub(super) struct Sheets {
    document: Document,
    outline: Outline,
    /// On the sheet that is being filled.
    marks: Vec<Mark>,
    y: f32,
    full: usize,
    most: usize,
    foot: String,
}

impl Sheets {
    pub(super) fn new(title: &str, foot: String, most: usize) -> Self {
        let mut document = Document::new();
        let name = concat!("chat-historyd ", env!("CARGO_PKG_VERSION"));
        document.set_metadata(Metadata::new().title(title.to_owned()).creator(name.to_owned()));
        Self { document, outline: Outline::new(), marks: Vec::new(), y: MARGIN, full: 0, most, foot }
    }

    /// Where the next thing stands.
    pub(super) const fn y(&self) -> f32 {
        self.y
    }

    /// Which sheet that is on.
    pub(super) const fn number(&self) -> usize {
        self.full
    }

    /// Begins a new sheet unless this height is left on this one, or all of it is.
    pub(super) fn need(&mut self, fonts: &mut Fonts, height: f32) -> io::Result<()> {
        if self.y + height <= BOTTOM || self.marks.is_empty() {
            return Ok(());
        }
        self.hand_on(fonts)
    }

    /// Room above what follows; none at the top of a sheet.
    pub(super) fn skip(&mut self, height: f32) {
        if !self.marks.is_empty() {
            self.y += height;
        }
    }

    /// Moves on to this place, if it lies below.
    pub(super) const fn down_to(&mut self, y: f32) {
        self.y = self.y.max(y);
    }

    /// Puts a line beside what follows.
    pub(super) fn beside(&mut self, x: f32, y: f32, line: Line) {
        self.marks.push(Mark::Line { x, y, line });
    }

    /// Puts a line, on the next sheet when this one is full.
    pub(super) fn put(&mut self, fonts: &mut Fonts, x: f32, line: Line) -> io::Result<()> {
        self.need(fonts, line.height)?;
        let (y, height) = (self.y, line.height);
        self.marks.push(Mark::Line { x, y, line });
        self.y += height;
        Ok(())
    }

    /// A thin rule from margin to margin.
    pub(super) fn rule(&mut self) {
        if !self.marks.is_empty() {
            self.marks.push(Mark::Rule { y: self.y });
        }
    }

    /// An entry in the table of contents that leads here.
    pub(super) fn bookmark(&mut self, text: String) {
        let here = XyzDestination::new(self.full, Point::from_xy(MARGIN, self.y));
        self.outline.push_child(OutlineNode::new(text, here));
    }

    /// The whole document.
    pub(super) fn finish(mut self, fonts: &mut Fonts) -> io::Result<Vec<u8>> {
        self.draw(fonts);
        self.document.set_outline(self.outline);
        self.document.finish().map_err(|error| io::Error::other(format!("the PDF cannot be put together: {error:?}")))
    }

    fn hand_on(&mut self, fonts: &mut Fonts) -> io::Result<()> {
        if self.full + 1 >= self.most {
            return Err(io::Error::other(Unavailable::TooLong(self.most)));
        }
        self.draw(fonts);
        self.y = MARGIN;
        Ok(())
    }

    fn draw(&mut self, fonts: &mut Fonts) {
        self.full += 1;
        let number = format!("{}", self.full);
        let mut small = |text: &str| lines::set(fonts, text, SMALL_PRINT, INSIDE).into_iter().next();
        let (foot, number) = (small(&self.foot), small(&number));
        let Some(settings) = PageSettings::from_wh(WIDTH, HEIGHT) else { return };
        let mut page = self.document.start_page_with(settings);
        let mut surface = page.surface();
        let foot_at = HEIGHT - MARGIN;
        let left = foot.map(|line| Mark::Line { x: 0.0, y: foot_at, line });
        let right = number.map(|line| Mark::Line { x: INSIDE - line.width, y: foot_at, line });
        for mark in self.marks.drain(..).chain(left).chain(right) {
            match mark {
                Mark::Rule { y } => {
                    let mut path = PathBuilder::new();
                    path.move_to(MARGIN, y);
                    path.line_to(WIDTH - MARGIN, y);
                    let stroke = Stroke { paint: rgb::Color::new(216, 216, 216).into(), width: 0.5, ..Stroke::default() };
                    surface.set_fill(None);
                    surface.set_stroke(Some(stroke));
                    if let Some(path) = path.finish() {
                        surface.draw_path(&path);
                    }
                    surface.set_stroke(None);
                }
                Mark::Line { x, y, line } => {
                    let [red, green, blue] = line.colour;
                    let paint = rgb::Color::new(red, green, blue).into();
                    surface.set_fill(Some(Fill { paint, opacity: NormalizedF32::ONE, ..Fill::default() }));
                    for run in line.runs {
                        let start = Point::from_xy(MARGIN + x + run.x, y + line.baseline);
                        surface.draw_glyphs(start, &run.glyphs, run.font, &run.text, run.size, false);
                    }
                }
            }
        }
        surface.finish();
        page.finish();
    }
}
