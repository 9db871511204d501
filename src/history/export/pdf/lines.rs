//! Text as set lines: shaped, broken at the width, in the order of its directions.
//!
//! Promises: every glyph knows the text it stands for, so that the text can be read back and searched in the document.

use krilla::text::{Font, GlyphId, KrillaGlyph};
use parley::layout::{Alignment, AlignmentOptions, Cluster, PositionedLayoutItem};
use parley::style::{FontFamily, FontWeight, LineHeight, OverflowWrap, StyleProperty};
use unicode_segmentation::UnicodeSegmentation;

use super::fonts::Fonts;
use crate::history::table::printable;

/// Bytes set at once: a paragraph that is longer is set in pieces, so that one message cannot take all memory.
const PIECE: usize = 4096;
/// The distance of two lines, in sizes.
const LEADING: f32 = 1.45;

/// How a text looks.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// In points.
    pub(super) size: f32,
    pub(super) bold: bool,
    /// Red, green, blue.
    pub(super) colour: [u8; 3],
}

/// One line.
pub(super) struct Line {
    /// Its height, and where in it the letters stand, both from the top, in points.
    pub(super) height: f32,
    pub(super) baseline: f32,
    pub(super) width: f32,
    pub(super) colour: [u8; 3],
    pub(super) runs: Vec<GlyphRun>,
}

/// Glyphs of one font, from left to right.
pub(super) struct GlyphRun {
    /// From the left end of the line.
    pub(super) x: f32,
    pub(super) font: Font,
    pub(super) size: f32,
    pub(super) text: String,
    pub(super) glyphs: Vec<KrillaGlyph>,
}

/// Sets a text into lines of this width; its own line breaks stay.
pub(super) fn set(fonts: &mut Fonts, text: &str, look: Look, width: f32) -> Vec<Line> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let paragraph = printable(paragraph);
        pieces(&paragraph, |piece| set_piece(fonts, piece, look, width, &mut lines));
    }
    lines
}

/// The text in pieces that are set one after the other, cut where there is a space, else between clusters.
fn pieces(mut text: &str, mut take: impl FnMut(&str)) {
    while text.len() > PIECE {
        let end = (0..=PIECE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let window = text.get(..end).unwrap_or(text);
        let space = window.rfind(char::is_whitespace).filter(|at| *at > 0);
        let cluster = || window.grapheme_indices(true).next_back().map(|(at, _)| at).filter(|at| *at > 0);
        let (piece, rest) = text.split_at(space.or_else(cluster).unwrap_or(window.len()));
        take(piece);
        text = rest;
    }
    take(text);
}

fn set_piece(fonts: &mut Fonts, text: &str, look: Look, width: f32, lines: &mut Vec<Line>) {
    let families = fonts.families_for(text);
    let mut builder = fonts.layouts.ranged_builder(&mut fonts.context, text, 1.0, false);
    builder.push_default(StyleProperty::FontFamily(FontFamily::List(families.into())));
    builder.push_default(StyleProperty::FontSize(look.size));
    builder.push_default(StyleProperty::LineHeight(LineHeight::FontSizeRelative(LEADING)));
    builder.push_default(StyleProperty::OverflowWrap(OverflowWrap::Anywhere));
    builder.push_default(StyleProperty::FontWeight(if look.bold { FontWeight::BOLD } else { FontWeight::NORMAL }));
    let mut layout = builder.build(text);
    layout.break_all_lines(Some(width));
    layout.align(Alignment::Start, AlignmentOptions::default());
    for line in layout.lines() {
        let metrics = *line.metrics();
        let mut runs = Vec::new();
        for item in line.items() {
            let PositionedLayoutItem::GlyphRun(placed) = item else { continue };
            let run = placed.run();
            let Some(font) = fonts.face(run) else { continue };
            let size = run.font_size();
            let (begin, glyphs) = glyphs(run.clusters(), run.is_rtl(), size);
            let end = glyphs.iter().map(|glyph| glyph.text_range.end).max().unwrap_or(0);
            let Some(text) = text.get(begin..begin + end) else { continue };
            runs.push(GlyphRun { x: placed.offset(), font, size, text: text.to_owned(), glyphs });
        }
        let baseline = metrics.baseline - metrics.block_min_coord;
        lines.push(Line { height: metrics.line_height, baseline, width: metrics.advance, colour: look.colour, runs });
    }
}

/// The glyphs of a run as they stand from left to right, with the text of each, counted from where the run's text begins.
fn glyphs<'a>(clusters: impl Iterator<Item = Cluster<'a, ()>>, is_rtl: bool, size: f32) -> (usize, Vec<KrillaGlyph>) {
    let mut groups: Vec<(std::ops::Range<usize>, Vec<parley::layout::Glyph>)> = Vec::new();
    for cluster in clusters {
        let range = cluster.text_range();
        match groups.last_mut() {
            // The rest of a ligature.
            Some((whole, _)) if cluster.is_ligature_continuation() => whole.end = range.end,
            _ => groups.push((range, cluster.glyphs().collect())),
        }
    }
    let begin = groups.first().map_or(0, |(range, _)| range.start);
    if is_rtl {
        groups.reverse();
    }
    let set = groups.into_iter().flat_map(|(range, glyphs)| {
        glyphs.into_iter().map(move |glyph| KrillaGlyph {
            glyph_id: GlyphId::new(glyph.id),
            text_range: range.start - begin..range.end - begin,
            x_advance: glyph.advance / size,
            x_offset: glyph.x / size,
            y_offset: -glyph.y / size,
            y_advance: 0.0,
            location: None,
        })
    });
    (begin, set.collect())
}
