//! `chat-historyd.toml(5)`: the commented configuration file, set as a page. The file is the truth, this only reads it.
//!
//! It reads what that file is made of, and refuses what it does not know rather than dropping it: paragraphs of comment,
//! examples indented by four spaces, `Term:  text`, `[section]`, and `# key = default` after the paragraph about it.

use std::io;

use roff::{Roff, bold, italic, roman};

use crate::words::{Edition, entry, paragraph, prose, tidy};

/// The page made of a commented configuration.
pub fn page(configuration: &str, edition: &Edition) -> io::Result<String> {
    let mut roff = edition.title("CHAT-HISTORYD.TOML", "5", "File Formats");
    roff.control("SH", ["NAME"]);
    roff.text([roman("chat-historyd.toml - configuration of chat-historyd(8)")]);
    roff.control("SH", ["DESCRIPTION"]);
    let mut text: Vec<&str> = Vec::new();
    for (number, line) in configuration.lines().enumerate() {
        match line.strip_prefix('#').map(|comment| comment.strip_prefix(' ').unwrap_or(comment)) {
            Some(comment) => match setting(comment) {
                Some((key, default)) => {
                    set_entry(&mut roff, key, default, &text.join(" "));
                    text.clear();
                }
                None => text.push(comment),
            },
            None if line.is_empty() => describe(&mut roff, &std::mem::take(&mut text)),
            None if line.starts_with('[') && text.is_empty() => {
                let name = line.trim_matches(['[', ']']);
                roff.control("SH", [format!("SECTION {line}").as_str()]);
                roff.control("PP", []);
                roff.text([
                    roman("In the environment "),
                    bold(format!("CHAT_HISTORYD__{}__", name.to_ascii_uppercase())),
                    roman(" and the key."),
                ]);
            }
            None => {
                return Err(io::Error::other(format!("chat-historyd.toml:{}: neither comment nor section: {line}", number + 1)));
            }
        }
    }
    if !text.is_empty() {
        return Err(io::Error::other(format!("chat-historyd.toml ends in a comment about nothing: {text:?}")));
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text(prose("`chat-historyd`(8)"));
    Ok(tidy(&roff.to_roff()))
}

/// `key = value`.
fn setting(comment: &str) -> Option<(&str, &str)> {
    let (key, value) = comment.split_once(" = ")?;
    key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then_some((key, value))
}

fn set_entry(roff: &mut Roff, key: &str, default: &str, text: &str) {
    entry(roff, vec![bold(key), roman(" = "), italic(default)], text);
}

/// Text that is about no single key.
fn describe(roff: &mut Roff, lines: &[&str]) {
    let mut flowing: Vec<&str> = Vec::new();
    let mut example = false;
    for line in lines {
        if let Some(code) = line.strip_prefix("    ") {
            flush(roff, &mut flowing);
            if !example {
                roff.control("PP", []);
                roff.control("nf", []);
                roff.control("RS", ["4"]);
            }
            example = true;
            roff.text([bold(code)]);
            continue;
        }
        if std::mem::take(&mut example) {
            roff.control("RE", []);
            roff.control("fi", []);
        }
        match line.split_once(":  ") {
            Some((term, text)) if !term.contains(' ') => {
                flush(roff, &mut flowing);
                entry(roff, vec![bold(term)], text.trim_start());
            }
            _ if line.is_empty() => flush(roff, &mut flowing),
            _ => flowing.push(line),
        }
    }
    if example {
        roff.control("RE", []);
        roff.control("fi", []);
    }
    flush(roff, &mut flowing);
}

fn flush(roff: &mut Roff, flowing: &mut Vec<&str>) {
    if !flowing.is_empty() {
        paragraph(roff, &std::mem::take(flowing).join(" "));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use chat_historyd::config::settings::Settings;
    use chat_historyd::config::{Environment, rows};

    use super::*;
    use crate::{CHANGELOG, CONFIGURATION};

    fn made(configuration: &str) -> io::Result<String> {
        let page = page(configuration, &Edition::of(CHANGELOG).unwrap())?;
        Ok(page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\&", ""))
    }

    #[test]
    fn every_setting_stands_in_its_section_with_its_default_and_a_text() {
        let page = made(CONFIGURATION).unwrap();
        let settings = rows(&Settings::defaults(&Environment::default()));
        assert_eq!(page.matches("\n.TP\n").count() - page.matches("\n.TP\nTimes").count() * 3, settings.len(), "{page}");
        for row in settings {
            let (section, key) = row.key.split_once('.').unwrap();
            let part =
                page.split(&format!(".SH \"SECTION [{section}]\"")).nth(1).unwrap_or_else(|| panic!("no section {section}"));
            let part = part.split("\n.SH").next().unwrap();
            let entry =
                part.split(&format!("\n{key} = {}\n", row.value)).nth(1).unwrap_or_else(|| panic!("{} = {}", row.key, row.value));
            let text = entry.lines().next().unwrap();
            assert!(text.len() > 15 && !text.starts_with(".TP"), "{}: {text}", row.key);
        }
    }

    #[test]
    fn no_word_of_the_file_is_lost() {
        let page = made(CONFIGURATION).unwrap();
        let plain = |text: &str| text.replace(['`', '\\', '\'', '#', ':'], "");
        let page = plain(&page);
        for word in plain(CONFIGURATION).split_whitespace() {
            assert!(page.contains(word), "{word}");
        }
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        for strange in ["[log]\n\nlevel = \"info\"\n", "[log]\n\n# A text about nothing", "# text\n[log]\n"] {
            assert!(made(strange).is_err(), "{strange}");
        }
    }
}
