//! The bundled real conversation as records, for the tests of this folder.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::Value;
use uuid::Uuid;

use super::{HeldRecord, MessageRecord, MessageState, SessionRecord};
use crate::protocol::{ChatType, SessionId, SessionIdentity, UnixMillis};
use crate::store::{RowId, SessionKey};

const FIXTURE: &str = include_str!("../../tests/fixtures/livekit-1.8.9.ndjson");

pub(crate) fn session() -> SessionRecord {
    let session_id = SessionId::new("d3746a02-1111-2222-3333-444455556666_6825ddba3978").unwrap();
    SessionRecord {
        key: SessionKey(1),
        identity: SessionIdentity { mac: "68:25:dd:ba:39:78".parse().unwrap(), session_id },
        agent_id: Some("agent-1".into()),
        client: None,
        started: UnixMillis(1_795_333_482_000),
        ended: Some(UnixMillis(1_795_333_582_000)),
        end_reason: Some("user_initiated".into()),
        producer_dropped: 0,
        held: vec![HeldRecord { uuid: Uuid::from_u128(7), text: "one more".into(), time: UnixMillis(1_795_333_581_000) }],
    }
}

/// Every chat item of the fixture; the second is rejected, the third and fourth carry extras, the last is pending.
pub(crate) fn messages() -> Vec<MessageRecord> {
    let items = FIXTURE.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let items = items.filter(|event| event["type"] == "conversation_item_added" && event["item"]["type"] == "message");
    let mut messages: Vec<_> = items.zip(1_i64..).map(|(event, row)| message(row, &event["item"])).collect();
    messages[1].state = MessageState::Rejected { reason: "invalid".into(), answer: Some("code 10034".into()) };
    messages[2].extra = Some(r#"{"confidence":0.5}"#.into());
    messages[3].extra = Some("not json".into());
    messages.last_mut().unwrap().state = MessageState::Pending;
    messages
}

#[allow(clippy::cast_possible_truncation, reason = "milliseconds of this century")]
fn message(row: i64, item: &Value) -> MessageRecord {
    let time = UnixMillis((item["created_at"].as_f64().unwrap() * 1000.0) as i64);
    let text: Vec<&str> = item["content"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    MessageRecord {
        row: RowId(row),
        uuid: Uuid::from_u128(row.unsigned_abs().into()),
        chat_type: if item["role"] == "user" { ChatType::User } else { ChatType::Agent },
        content: text.join("\n"),
        time,
        recorded: time,
        event_id: item["id"].as_str().map(str::to_owned),
        interrupted: item["interrupted"] == true,
        uncommitted: false,
        audio_bytes: 0,
        extra: None,
        state: MessageState::Delivered,
    }
}
