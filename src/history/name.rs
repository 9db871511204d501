//! Where the backup of a session stands: `<UTC date of its start>/<mac12>_<readable part>_<8 hex>.json`; and which names are
//! ours, for whoever deletes: the directory may be shared. Pure but for random marks.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::protocol::{SessionIdentity, UnixMillis};

/// Characters of the session id that are kept readable.
const READABLE: usize = 40;

/// In place of a date.
const UNDATED: &str = "undated";

/// The UTC date of a moment, `2025-09-24`; `undated` for one outside the years 1970 to 9999.
#[must_use]
pub fn date_of(time: UnixMillis) -> String {
    moment(time).map_or_else(|| UNDATED.to_owned(), |moment| moment.strftime("%Y-%m-%d").to_string())
}

/// The file name of a session: ASCII letters, digits, `-`, `_` and the one dot of `.json`, at most 67 bytes. Session ids
/// that look alike are told apart by the first 8 hexadecimal digits of their SHA-256.
#[must_use]
pub fn file_name(identity: &SessionIdentity) -> String {
    let id = identity.session_id.as_str();
    let safe = |character: char| if character.is_ascii_alphanumeric() || character == '_' { character } else { '-' };
    let readable: String = id.chars().take(READABLE).map(safe).collect();
    let hash = Sha256::digest(id.as_bytes()).iter().take(4).fold(0_u32, |hash, byte| (hash << 8) | u32::from(*byte));
    format!("{}_{readable}_{hash:08x}.json", identity.mac.bare())
}

/// Whether a directory's name is one that [`date_of`] gives.
pub(crate) fn is_date(name: &str) -> bool {
    let shape = |(at, byte): (usize, u8)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() };
    name == UNDATED || (name.len() == 10 && name.bytes().enumerate().all(|(at, byte)| shape((at, byte))))
}

/// What goes before the end of a name that [`temporary_name`] and [`aside_name`] give: their 32 hexadecimal digits.
fn without_mark<'n>(name: &'n str, before: &str, end: &str) -> Option<&'n str> {
    let (name, mark) = name.strip_suffix(end)?.rsplit_once(before)?;
    is_hex(mark, 32).then_some(name)
}

/// The name under which the backup of this name is written.
pub(crate) fn temporary_name(name: &str) -> String {
    format!(".{name}.{}.tmp", Uuid::now_v7().simple())
}

/// The backup whose temporary file has this name.
pub(crate) fn of_temporary(name: &str) -> Option<&str> {
    without_mark(name.strip_prefix('.')?, ".", ".tmp").filter(|name| is_file_name(name))
}

/// The name under which a backup that cannot be read is kept.
pub(crate) fn aside_name(name: &str) -> String {
    format!("{name}.unreadable-{}.json", Uuid::now_v7().simple())
}

/// The backup to which a file belongs: itself, the temporary one, or the one kept aside. `None` for any name that the daemon
/// does not give: what bears it is somebody else's.
pub(crate) fn backup_of(name: &str) -> Option<&str> {
    let whole = is_file_name(name).then_some(name);
    whole.or_else(|| of_temporary(name)).or_else(|| without_mark(name, ".unreadable-", ".json").filter(|name| is_file_name(name)))
}

/// Whether a name is one that [`file_name`] gives.
fn is_file_name(name: &str) -> bool {
    let Some((start, hash)) = name.strip_suffix(".json").and_then(|name| name.rsplit_once('_')) else { return false };
    let Some((mac, readable)) = start.split_once('_') else { return false };
    let is_readable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    is_hex(mac, 12) && is_hex(hash, 8) && (1..=READABLE).contains(&readable.len()) && readable.bytes().all(is_readable)
}

/// Lower-case hexadecimal digits, so many.
fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A moment of ours in UTC, when it lies in the years 1970 to 9999.
pub(crate) fn moment(time: UnixMillis) -> Option<jiff::Zoned> {
    let timestamp = Timestamp::from_millisecond(time.0).ok().filter(|_| time.0 >= 0)?;
    Some(timestamp.to_zoned(TimeZone::UTC))
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(time: UnixMillis) -> Option<String> {
    moment(time).map(|moment| moment.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::SessionId;

    fn identity(id: &str) -> SessionIdentity {
        SessionIdentity { mac: "68:25:dd:ba:39:78".parse().unwrap(), session_id: SessionId::new(id).unwrap() }
    }

    #[test]
    fn a_room_name_stays_readable() {
        let name = file_name(&identity("d3746a02-1111-2222-3333-444455556666_6825ddba3978"));
        assert_eq!(name, "6825ddba3978_d3746a02-1111-2222-3333-444455556666_682_eae88080.json");
    }

    #[test]
    fn hostile_ids_become_plain_names() {
        for id in ["../../etc/passwd", "/", "..", ".", "a b", "🐘🐘", "कहानी", "-rf", "CON", "a/../../b", "\u{202e}exe.nosj"]
        {
            let name = file_name(&identity(id));
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)), "{name}");
            assert_eq!(name.matches('.').count(), 1);
        }
    }

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(UnixMillis(1_758_701_973_005)).unwrap(), "2025-09-24T08:19:33.005Z");
        assert_eq!(rfc3339(UnixMillis(0)).unwrap(), "1970-01-01T00:00:00.000Z");
        assert_eq!(date_of(UnixMillis(1_758_701_973_005)), "2025-09-24");
        for out in [-1, i64::MIN, i64::MAX] {
            assert_eq!((rfc3339(UnixMillis(out)), date_of(UnixMillis(out)).as_str()), (None, "undated"));
        }
    }

    proptest! {
        #[test]
        fn any_session_id_gives_one_name_inside_its_directory(first in "\\PC{1,100}", second in "\\PC{1,100}", start in any::<i64>()) {
            let (Ok(first_id), Ok(second_id)) = (SessionId::new(&first), SessionId::new(&second)) else { return Ok(()) };
            let mac = "68:25:dd:ba:39:78".parse().unwrap();
            let name = file_name(&SessionIdentity { mac, session_id: first_id });
            let path = Path::new(&date_of(UnixMillis(start))).join(&name);
            prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
            prop_assert_eq!(path.components().count(), 2);
            prop_assert!(name.len() <= 67 && name.is_ascii());
            prop_assert!(is_date(&date_of(UnixMillis(start))));
            let (temporary, aside) = (temporary_name(&name), aside_name(&name));
            for ours in [&name, &temporary, &aside] {
                prop_assert_eq!(backup_of(ours), Some(name.as_str()));
            }
            prop_assert_eq!((of_temporary(&temporary), of_temporary(&name), of_temporary(&aside)), (Some(name.as_str()), None, None));
            let other = file_name(&SessionIdentity { mac, session_id: second_id });
            prop_assert_eq!(name == other, first == second);
        }
    }
}
