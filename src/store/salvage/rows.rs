//! What a record is: which of our tables its shape belongs to, and whether it is to be believed. Pure.
//!
//! Messages and held transcripts are believed when their checksum verifies; without one they are told apart as damaged.
//! The other tables have no checksum: their rows pass strict checks of form here and must find confirmation in `settle`.

use super::page::Tree;
use super::record::{Header, Value};
use crate::protocol::{ChatType, MacAddress, SessionId};
use crate::store::RejectReason;
use crate::store::checksum::{RowFields, of_held, of_message};

/// The highest row id that is believed of the counter of rows: far beyond any real one, far from the end of the range.
const MAX_COUNTER: i64 = 1 << 48;

/// The tables we know by the shape of their rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Messages,
    Held,
    Sessions,
    Cursors,
    Rejected,
    /// The unique index of `sessions`: a second copy of every identity, on other pages.
    Identities,
    Counters,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Messages, Self::Held, Self::Sessions, Self::Cursors, Self::Rejected, Self::Identities, Self::Counters];

    const fn shape(self) -> (Tree, &'static str) {
        match self {
            Self::Messages => (Tree::Table, "nibiiiitTTBi"),
            Self::Held => (Tree::Table, "nibtiiTi"),
            Self::Sessions => (Tree::Table, "nttTTiITi"),
            Self::Cursors => (Tree::Table, "niii"),
            Self::Rejected => (Tree::Table, "nitTi"),
            Self::Identities => (Tree::Index, "tti"),
            Self::Counters => (Tree::Index, "ti"),
        }
    }

    /// The table a record of this shape belongs to.
    pub(super) fn of(tree: Tree, header: &Header) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.shape().0 == tree && header.fits(kind.shape().1))
    }
}

/// A row that passed its checks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Message {
        fields: RowFields<'a>,
        crc: u32,
    },
    /// A message whose checksum fails.
    DamagedMessage {
        id: i64,
    },
    /// A held transcript whose checksum fails.
    DamagedHeld {
        id: i64,
    },
    Held {
        id: i64,
        session: i64,
        uuid: &'a [u8],
        text: &'a str,
        time_ms: i64,
        recorded_ms: i64,
        item_id: Option<&'a str>,
        crc: u32,
    },
    Session {
        id: i64,
        mac: &'a str,
        session_id: &'a str,
        agent_id: Option<&'a str>,
        client: Option<&'a str>,
        started_ms: i64,
        ended_ms: Option<i64>,
        end_reason: Option<&'a str>,
        producer_dropped: i64,
        proof: i64,
    },
    Identity {
        id: i64,
        mac: &'a str,
        session_id: &'a str,
        proof: i64,
    },
    Cursor {
        session: i64,
        row: i64,
        offset: i64,
        last_report_ms: i64,
    },
    Rejected {
        row: i64,
        session: i64,
        reason: &'a str,
        answer: Option<&'a str>,
        rejected_ms: i64,
    },
    /// The highest row id given out or the next one, from `counters`.
    Counter(i64),
}

impl<'a> Row<'a> {
    /// The row in a record; `None` when it is not to be believed.
    pub(super) fn new(kind: Kind, rowid: i64, values: &[Value<'a>]) -> Option<Self> {
        use Value::{Blob, Integer, Text};
        match (kind, values) {
            (
                Kind::Messages,
                &[
                    _,
                    Integer(session),
                    Blob(uuid),
                    Integer(chat_type),
                    Integer(flags),
                    Integer(time_ms),
                    Integer(recorded_ms),
                    Text(content),
                    event_id,
                    extra,
                    audio,
                    Integer(crc),
                ],
            ) => {
                let (event_id, extra) = (text(event_id), text(extra));
                let fields = RowFields {
                    id: rowid,
                    session,
                    uuid,
                    chat_type,
                    flags,
                    time_ms,
                    recorded_ms,
                    content,
                    event_id,
                    extra,
                    audio: blob(audio),
                };
                let plausible = uuid.len() == 16 && ChatType::from_code(chat_type).is_some();
                let verified = verified(crc, of_message(&fields)).filter(|_| plausible);
                Some(verified.map_or(Self::DamagedMessage { id: rowid }, |crc| Self::Message { fields, crc }))
            }
            (
                Kind::Held,
                &[_, Integer(session), Blob(uuid), Text(held), Integer(time_ms), Integer(recorded_ms), item, Integer(crc)],
            ) => {
                let item_id = text(item);
                let verified =
                    verified(crc, of_held(session, uuid, held, time_ms, recorded_ms, item_id)).filter(|_| uuid.len() == 16);
                let of = |crc| Self::Held { id: rowid, session, uuid, text: held, time_ms, recorded_ms, item_id, crc };
                Some(verified.map_or(Self::DamagedHeld { id: rowid }, of))
            }
            (
                Kind::Sessions,
                &[_, Text(mac), Text(session_id), agent_id, client, Integer(started_ms), ended, reason, Integer(dropped)],
            ) => {
                let (agent_id, client, end_reason) = (text(agent_id), text(client), text(reason));
                let ended_ms = if let Integer(ended_ms) = ended { Some(ended_ms) } else { None };
                let row = Self::Session {
                    id: rowid,
                    mac,
                    session_id,
                    agent_id,
                    client,
                    started_ms,
                    ended_ms,
                    end_reason,
                    producer_dropped: dropped.max(0),
                    proof: proof(mac, session_id)?,
                };
                (rowid > 0 && started_ms >= 0).then_some(row)
            }
            (Kind::Identities, &[Text(mac), Text(session_id), Integer(id)]) => {
                let proof = proof(mac, session_id)?;
                (id > 0).then_some(Self::Identity { id, mac, session_id, proof })
            }
            (Kind::Cursors, &[_, Integer(row), Integer(offset), Integer(last_report_ms)]) => {
                let cursor = Self::Cursor { session: rowid, row, offset, last_report_ms };
                (rowid > 0 && row > 0 && offset >= 0 && last_report_ms >= 0).then_some(cursor)
            }
            (Kind::Rejected, &[_, Integer(session), Text(reason), answer, Integer(rejected_ms)]) => {
                let known = RejectReason::ALL.iter().any(|known| known.as_str() == reason);
                known.then_some(Self::Rejected { row: rowid, session, reason, answer: text(answer), rejected_ms })
            }
            (Kind::Counters, &[Text("next_row"), Integer(value)]) => {
                (0..MAX_COUNTER).contains(&value).then_some(Self::Counter(value))
            }
            _ => None,
        }
    }
}

impl Row<'_> {
    /// What a row is whose values are none: a text that is not UTF-8, or is cut off.
    pub(super) const fn damaged(kind: Kind, rowid: i64) -> Option<Self> {
        match kind {
            Kind::Messages => Some(Self::DamagedMessage { id: rowid }),
            Kind::Held => Some(Self::DamagedHeld { id: rowid }),
            _ => None,
        }
    }
}

fn verified(stored: i64, computed: u32) -> Option<u32> {
    (stored == i64::from(computed)).then_some(computed)
}

/// What the MAC inside the session id says of an identity: 1 the same, -1 another, 0 there is none. `None` for what is
/// no identity as the store writes them: the MAC in its canonical spelling, the session id within its bounds.
fn proof(mac: &str, session_id: &str) -> Option<i64> {
    let parsed = mac.parse::<MacAddress>().ok().filter(|parsed| parsed.to_string() == mac)?;
    SessionId::new(session_id).ok()?;
    Some(MacAddress::from_session_id(session_id).map_or(0, |inside| if inside == parsed { 1 } else { -1 }))
}

const fn text(value: Value<'_>) -> Option<&str> {
    if let Value::Text(text) = value { Some(text) } else { None }
}

const fn blob(value: Value<'_>) -> Option<&[u8]> {
    if let Value::Blob(blob) = value { Some(blob) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Value::{Blob, Integer, Null, Text};

    fn session<'a>(mac: &'a str, session_id: &'a str) -> [Value<'a>; 9] {
        [Null, Text(mac), Text(session_id), Null, Null, Integer(5), Null, Null, Integer(0)]
    }

    #[test]
    fn a_session_needs_a_canonical_mac_and_a_valid_id() {
        assert!(Row::new(Kind::Sessions, 1, &session("68:25:dd:ba:39:78", "room")).is_some());
        for (mac, id) in [("68:25:DD:BA:39:78", "room"), ("6825ddba3978", "room"), ("68:25:dd:ba:39:78", "a\nb"), ("", "room")] {
            assert!(Row::new(Kind::Sessions, 1, &session(mac, id)).is_none());
        }
    }

    #[test]
    fn a_message_whose_checksum_fails_is_only_counted() {
        let fields = RowFields {
            id: 7,
            session: 1,
            uuid: &[1; 16],
            chat_type: 1,
            flags: 0,
            time_ms: 2,
            recorded_ms: 3,
            content: "namaste",
            event_id: None,
            extra: None,
            audio: None,
        };
        let crc = i64::from(of_message(&fields));
        for (content, sound) in [("namaste", true), ("namastE", false)] {
            let values = [
                Null,
                Integer(1),
                Blob(&[1; 16]),
                Integer(1),
                Integer(0),
                Integer(2),
                Integer(3),
                Text(content),
                Null,
                Null,
                Null,
                Integer(crc),
            ];
            let row = Row::new(Kind::Messages, 7, &values);
            assert_eq!(matches!(row, Some(Row::Message { .. })), sound);
            assert_eq!(matches!(row, Some(Row::DamagedMessage { id: 7 })), !sound);
        }
    }

    #[test]
    fn an_unknown_reason_or_a_wild_counter_is_not_believed() {
        let rejected = |reason| Row::new(Kind::Rejected, 1, &[Null, Integer(1), Text(reason), Null, Integer(1)]);
        assert!(rejected("invalid").is_some());
        assert!(rejected("invalie").is_none());
        assert!(Row::new(Kind::Counters, 0, &[Text("next_row"), Integer(i64::MAX)]).is_none());
        assert!(Row::new(Kind::Counters, 0, &[Text("next_row"), Integer(9)]).is_some());
    }
}
