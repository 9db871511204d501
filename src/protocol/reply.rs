//! What the daemon answers.
//!
//! Promises: one reply is one line of JSON, canonical in names and order; nothing in it repeats content. Ids of `flush`
//! and `ping` are JSON text already, checked by the decoder, and go back as they came.
//! Called by the connection.

use std::borrow::Cow;
use std::io::Write;

use serde::Serialize;

use super::event::{Refusal, RefusalCode};

/// One reply to a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Answer to `session_start`.
    Ready {
        /// The highest settled number of the stream, 0 if new.
        last_seq: u64,
        /// The highest line of the stream that was taken in, be it in memory alone: said again, it is a duplicate.
        taken_seq: u64,
        /// The longest line the daemon takes.
        max_line_bytes: usize,
    },
    /// Everything up to this number is settled.
    Ack {
        /// The number.
        seq: u64,
    },
    /// Answer to `flush`.
    Flushed {
        /// The id of the request: JSON text.
        id: Option<String>,
        /// Messages of the session delivered or rejected since their delivery is waited for; 0 where only durability is.
        delivered: u64,
        /// Messages of the session still to be delivered.
        pending: u64,
        /// Whether the level that was asked for is reached.
        ok: bool,
        /// Why not.
        reason: Option<Cow<'static, str>>,
    },
    /// Answer to `ping`.
    Pong {
        /// The id of the request: JSON text.
        id: Option<String>,
    },
    /// A line was refused, or the connection.
    Error {
        /// The code.
        code: RefusalCode,
        /// The field.
        field: Option<Cow<'static, str>>,
        /// What is wrong and how to mend it.
        message: Cow<'static, str>,
        /// The producer's number of the line.
        seq: Option<u64>,
        /// The number of the line on this connection, from 1.
        line: Option<u64>,
        /// The daemon ends the connection.
        fatal: bool,
    },
    /// The daemon is shutting down.
    Draining,
}

impl Reply {
    /// The reply to a refused line.
    #[must_use]
    pub fn refused(refusal: Refusal, line: u64, fatal: bool) -> Self {
        let Refusal { code, field, message, seq } = refusal;
        Self::Error { code, field, message, seq, line: Some(line), fatal }
    }

    /// Appends the reply as one line, `\n` included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // Writing to memory cannot fail, nor can a text fail to become JSON; half a line would harm all later ones.
        if self.write(out).is_err() {
            out.truncate(start);
        }
    }

    fn write(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::Ready { last_seq, taken_seq, max_line_bytes } => writeln!(
                out,
                r#"{{"type":"ready","v":{},"daemon":"chat-historyd/{}","last_seq":{last_seq},"taken_seq":{taken_seq},"max_line_bytes":{max_line_bytes}}}"#,
                super::decode::VERSION,
                env!("CARGO_PKG_VERSION"),
            ),
            Self::Ack { seq } => writeln!(out, r#"{{"type":"ack","seq":{seq}}}"#),
            Self::Flushed { id, delivered, pending, ok, reason } => {
                write!(out, r#"{{"type":"flushed","#)?;
                member(out, "id", id.as_deref().unwrap_or("null"))?;
                write!(out, r#","delivered":{delivered},"pending":{pending},"ok":{ok}"#)?;
                optional(out, "reason", reason.as_ref())?;
                writeln!(out, "}}")
            }
            Self::Pong { id } => {
                write!(out, r#"{{"type":"pong""#)?;
                if let Some(id) = id {
                    write!(out, ",")?;
                    member(out, "id", id)?;
                }
                writeln!(out, "}}")
            }
            Self::Error { code, field, message, seq, line, fatal } => {
                write!(out, r#"{{"type":"error","code":"{}""#, code.as_str())?;
                optional(out, "field", field.as_ref())?;
                optional(out, "message", Some(message))?;
                optional(out, "seq", seq.as_ref())?;
                optional(out, "line", line.as_ref())?;
                writeln!(out, r#","fatal":{fatal}}}"#)
            }
            Self::Draining => writeln!(out, r#"{{"type":"draining"}}"#),
        }
    }
}

fn member(out: &mut Vec<u8>, name: &str, json: &str) -> std::io::Result<()> {
    write!(out, r#""{name}":{json}"#)
}

fn optional<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: Option<&T>) -> std::io::Result<()> {
    let Some(value) = value else { return Ok(()) };
    write!(out, r#","{name}":"#)?;
    serde_json::to_writer(out, value).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.encode(&mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    #[test]
    fn every_reply_is_one_line_of_json() {
        let id = || Some("\"f\\n1\"".to_owned());
        for (reply, expected) in [
            (
                Reply::Ready { last_seq: 41, taken_seq: 57, max_line_bytes: 4_194_304 },
                concat!(
                    r#"{"type":"ready","v":1,"daemon":"chat-historyd/"#,
                    env!("CARGO_PKG_VERSION"),
                    r#"","last_seq":41,"taken_seq":57,"max_line_bytes":4194304}"#
                ),
            ),
            (Reply::Ack { seq: 42 }, r#"{"type":"ack","seq":42}"#),
            (
                Reply::Flushed { id: id(), delivered: 12, pending: 0, ok: true, reason: None },
                r#"{"type":"flushed","id":"f\n1","delivered":12,"pending":0,"ok":true}"#,
            ),
            (
                Reply::Flushed { id: None, delivered: 0, pending: 3, ok: false, reason: Some("gate \"closed\"".into()) },
                r#"{"type":"flushed","id":null,"delivered":0,"pending":3,"ok":false,"reason":"gate \"closed\""}"#,
            ),
            (Reply::Pong { id: Some("7".into()) }, r#"{"type":"pong","id":7}"#),
            (Reply::Pong { id: None }, r#"{"type":"pong"}"#),
            (
                Reply::refused(
                    Refusal {
                        code: RefusalCode::BadField,
                        field: Some("chat_type".into()),
                        message: "chat_type is missing".into(),
                        seq: Some(9),
                    },
                    57,
                    false,
                ),
                r#"{"type":"error","code":"bad_field","field":"chat_type","message":"chat_type is missing","seq":9,"line":57,"fatal":false}"#,
            ),
            (
                Reply::Error {
                    code: RefusalCode::TooManyConnections,
                    field: None,
                    message: "x".into(),
                    seq: None,
                    line: None,
                    fatal: true,
                },
                r#"{"type":"error","code":"too_many_connections","message":"x","fatal":true}"#,
            ),
            (Reply::Draining, r#"{"type":"draining"}"#),
        ] {
            let text = encoded(&reply);
            assert_eq!(text, format!("{expected}\n"));
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        }
    }
}
