//! What the server's XSS filter does to a body whose content type is exactly `application/json`: the whole JSON text goes
//! through an HTML sanitiser (Manager API facts, "The XSS filter rewrites JSON bodies", measured there with jsoup).
//!
//! One simplification, on the harsh side: tags that the filter's list allows are removed like all others.

/// The sanitised text.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        match character {
            '<' => match markup(rest) {
                Markup::Text => {
                    out.push_str("&lt;");
                    rest = &rest[1..];
                }
                Markup::Until(after) => rest = after,
                Markup::Unclosed => break,
            },
            '&' => {
                let (decoded, after) = entity(&rest[1..]);
                escape(decoded, &mut out);
                rest = after;
            }
            other => {
                escape(other, &mut out);
                rest = &rest[other.len_utf8()..];
            }
        }
    }
    out
}

fn escape(character: char, out: &mut String) {
    match character {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '\u{a0}' => out.push_str("&nbsp;"),
        ' ' | '\t' | '\n' | '\r' | '\u{c}' => {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
        }
        other => out.push(other),
    }
}

enum Markup<'a> {
    /// A lone `<`.
    Text,
    /// A tag or comment; what follows it.
    Until(&'a str),
    /// A tag or comment that never ends: everything after it is lost.
    Unclosed,
}

fn markup(text: &str) -> Markup<'_> {
    let inside = &text[1..];
    if let Some(comment) = inside.strip_prefix("!--") {
        return comment.split_once("-->").map_or(Markup::Unclosed, |(_, after)| Markup::Until(after));
    }
    let name = inside.strip_prefix('/').unwrap_or(inside);
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => {}
        // `</3`, `<?php`, `<!x`: a bogus comment up to the next `>`.
        _ if inside.starts_with(['/', '?', '!']) => {
            let after = inside.split_once('>').map(|(_, after)| after);
            return after.map_or(Markup::Unclosed, Markup::Until);
        }
        _ => return Markup::Text,
    }
    let Some(after) = after_tag(name) else { return Markup::Unclosed };
    if !inside.starts_with('/') {
        for raw in ["script", "style"] {
            let tag: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
            if tag.eq_ignore_ascii_case(raw) {
                // Raw text: dropped up to its end tag.
                let end = after.to_ascii_lowercase().find(&format!("</{raw}"));
                return end.and_then(|at| after_tag(&after[at + 2..])).map_or(Markup::Unclosed, Markup::Until);
            }
        }
    }
    Markup::Until(after)
}

/// What follows the `>` of a tag; a `>` inside a quoted attribute value does not count.
fn after_tag(text: &str) -> Option<&str> {
    let mut quote = None;
    let mut before = ' ';
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (None, '>') => return Some(&text[at + 1..]),
            (None, '"' | '\'') if before == '=' => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
        if !character.is_ascii_whitespace() {
            before = character;
        }
    }
    None
}

/// The character an entity stands for (its `;` may be missing), or a plain `&`; and what follows.
fn entity(text: &str) -> (char, &str) {
    const NAMED: [(&str, char); 8] =
        [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("nbsp", '\u{a0}'), ("copy", '©'), ("reg", '®'), ("deg", '°')];
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix) = number.strip_prefix(['x', 'X']).map_or((number, 10), |hex| (hex, 16));
        let length = digits.chars().take_while(|digit| digit.is_digit(radix)).count();
        if let Some(character) = u32::from_str_radix(&digits[..length], radix).ok().and_then(char::from_u32) {
            let after = &digits[length..];
            return (character, after.strip_prefix(';').unwrap_or(after));
        }
    }
    for (name, character) in NAMED {
        if let Some(after) = text.strip_prefix(name) {
            return (character, after.strip_prefix(';').unwrap_or(after));
        }
    }
    ('&', text)
}
