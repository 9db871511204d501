//! The checksum every row carries, so that a row torn or altered on disk is recognised and never sent.

use crc32fast::Hasher;

/// The fields of a message row that its checksum covers: all of them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the columns of `messages`")]
pub struct RowFields<'a> {
    pub id: i64,
    pub session: i64,
    pub uuid: &'a [u8],
    pub chat_type: i64,
    pub flags: i64,
    pub time_ms: i64,
    pub recorded_ms: i64,
    pub content: &'a str,
    pub event_id: Option<&'a str>,
    pub extra: Option<&'a str>,
    pub audio: Option<&'a [u8]>,
}

/// The CRC-32 (IEEE) of a message row: the integers little-endian, then each text or blob with its length in front, an
/// absent one with the length `u64::MAX`.
#[must_use]
pub fn of_message(row: &RowFields<'_>) -> u32 {
    let mut hasher = Hasher::new();
    for number in [row.id, row.session, row.chat_type, row.flags, row.time_ms, row.recorded_ms] {
        hasher.update(&number.to_le_bytes());
    }
    update(&mut hasher, Some(row.uuid));
    update(&mut hasher, Some(row.content.as_bytes()));
    update(&mut hasher, row.event_id.map(str::as_bytes));
    update(&mut hasher, row.extra.map(str::as_bytes));
    update(&mut hasher, row.audio);
    hasher.finalize()
}

/// The CRC-32 of a held transcript: as [`of_message`], over session, times, uuid, text and item id.
#[must_use]
pub fn of_held(session: i64, uuid: &[u8], text: &str, time_ms: i64, recorded_ms: i64, item_id: Option<&str>) -> u32 {
    let mut hasher = Hasher::new();
    for number in [session, time_ms, recorded_ms] {
        hasher.update(&number.to_le_bytes());
    }
    update(&mut hasher, Some(uuid));
    update(&mut hasher, Some(text.as_bytes()));
    update(&mut hasher, item_id.map(str::as_bytes));
    hasher.finalize()
}

fn update(hasher: &mut Hasher, bytes: Option<&[u8]>) {
    let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
    hasher.update(&length.to_le_bytes());
    hasher.update(bytes.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_row_is_under_its_checksum() {
        let row = RowFields {
            id: 1,
            session: 2,
            uuid: b"0123456789abcdef",
            chat_type: 1,
            flags: 0,
            time_ms: 3,
            recorded_ms: 4,
            content: "hello",
            event_id: None,
            extra: None,
            audio: None,
        };
        let base = of_message(&row);
        let altered = [
            RowFields { id: 9, ..row },
            RowFields { session: 9, ..row },
            RowFields { uuid: b"0123456789abcdeF", ..row },
            RowFields { chat_type: 2, ..row },
            RowFields { flags: 1, ..row },
            RowFields { time_ms: 9, ..row },
            RowFields { recorded_ms: 9, ..row },
            RowFields { content: "hellO", ..row },
            RowFields { event_id: Some(""), ..row },
            RowFields { extra: Some(""), ..row },
            RowFields { audio: Some(b""), ..row },
        ];
        for other in altered {
            assert_ne!(of_message(&other), base, "{other:?}");
        }
    }
}
