//! HTML: one self-contained page, for the screen and for paper.
//!
//! Promises: it loads nothing and runs nothing (its own policy forbids it); every text has the direction of its script, which
//! ends with it; the date stands where it becomes another one; a printer tears no message over two pages where it can help it.

use std::io::{self, Write};

use super::prose::{Said, about};
use super::{Export, Spoken};
use crate::history::name::{date_of, rfc3339};
use crate::history::{HeldRecord, SessionRecord};

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Conversations</title>
<style>
:root { color-scheme: light dark; --line: #8884; --user: #0a6ebd; --agent: #2b7a3d; --trouble: #b3261e; }
body { font: 1rem/1.5 system-ui, "Noto Sans", "Noto Sans Devanagari", "Noto Sans CJK SC", sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.1rem; overflow-wrap: anywhere; margin: 2rem 0 .2rem; }
.about, footer { opacity: .75; font-size: .875rem; margin: 0 0 1rem; }
.day { font-size: .875rem; font-weight: 600; text-align: center; margin: 1rem 0 .4rem; break-after: avoid; }
.message { display: grid; grid-template-columns: 5.5rem 1fr; gap: 0 1rem; padding: .4rem 0; border-top: 1px solid var(--line); break-inside: avoid; }
.who { font-weight: 600; }
.user .who { color: var(--user); }
.agent .who { color: var(--agent); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
time, .mark { font-size: .8rem; opacity: .75; }
.rejected .mark, .damaged .mark { color: var(--trouble); opacity: 1; }
@media print { body { max-width: none; margin: 0; font-size: 10.5pt; } h2 { break-after: avoid; } @page { margin: 18mm; } }
</style>
</head>
<body>
<h1>Conversations</h1>
"#;

pub(super) struct Html {
    exported: String,
    sessions: u64,
    messages: u64,
    /// The date that was written last.
    date: String,
}

impl Html {
    pub(super) fn new(exported: &str) -> Self {
        Self { exported: exported.to_owned(), sessions: 0, messages: 0, date: String::new() }
    }

    fn row(&mut self, out: &mut dyn Write, said: &Said<'_>) -> io::Result<()> {
        self.messages += 1;
        if let Some(date) = said.time.map(date_of).filter(|date| *date != self.date) {
            writeln!(out, "<p class=\"day\">{date}</p>")?;
            self.date = date;
        }
        let (who, state, machine) = (said.who, said.state, said.time.and_then(rfc3339).unwrap_or_default());
        write!(
            out,
            "<div class=\"message {who} {state}\"><div><div class=\"who\">{who}</div><time datetime=\"{machine}\">{}</time></div>\
             <div><p class=\"text\" dir=\"auto\">{}</p>",
            said.clock(),
            escape(said.text)
        )?;
        if !said.marks.is_empty() {
            write!(out, "<div class=\"mark\">{}</div>", escape(&said.marks.join(", ")))?;
        }
        out.write_all(b"</div></div>\n")
    }
}

impl Export for Html {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(HEAD.as_bytes())
    }

    fn session(&mut self, out: &mut dyn Write, session: &SessionRecord) -> io::Result<()> {
        self.sessions += 1;
        self.date = date_of(session.started);
        write!(
            out,
            "<section>\n<h2>Session <bdi>{}</bdi></h2>\n<p class=\"about\">{}</p>\n",
            escape(session.identity.session_id.as_str()),
            about(session, |name| format!("<bdi>{}</bdi>", escape(name))),
        )
    }

    fn message(&mut self, out: &mut dyn Write, _: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()> {
        self.row(out, &Said::of(spoken.message))
    }

    fn held(&mut self, out: &mut dyn Write, _: &SessionRecord, held: &HeldRecord) -> io::Result<()> {
        self.row(out, &Said::held(held))
    }

    fn end_session(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"</section>\n")
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        write!(
            out,
            "<footer>{} messages in {} sessions, exported {} by chat-historyd. All times are UTC.</footer>\n</body>\n</html>\n",
            self.messages, self.sessions, self.exported
        )
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_markup() {
        assert_eq!(escape("<script>alert('x')</script>"), "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;");
        assert_eq!(escape("\" onload=\"x"), "&quot; onload=&quot;x");
        assert_eq!(escape("नमस्ते\n你好"), "नमस्ते\n你好");
    }
}
