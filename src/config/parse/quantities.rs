//! Numbers, times, sizes and permissions.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Raw, Wrong, wrong};
use crate::config::rows::{duration_text, size_text};
use crate::config::settings::MaxContent;

/// A whole number in a range.
pub(in crate::config) fn integer<T: TryFrom<i64> + Copy + Into<u64>>(raw: &Raw, range: RangeInclusive<T>) -> Result<T, Wrong> {
    let (low, high): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
    let hint = format!("write a whole number from {low} to {high}, without quotes");
    let Some(number) = raw.number() else {
        return wrong(format!("{} is no whole number", raw.describe()), hint);
    };
    match T::try_from(number) {
        Ok(value) if (low..=high).contains(&value.into()) => Ok(value),
        _ => wrong(format!("{number} is out of range"), hint),
    }
}

/// A whole number that counts things in memory.
pub(in crate::config) fn count(raw: &Raw, range: RangeInclusive<u32>) -> Result<usize, Wrong> {
    integer(raw, range).map(|value| usize::try_from(value).unwrap_or(usize::MAX))
}

/// `"30s"`, `"5 min"`, or a number of seconds.
pub(in crate::config) fn duration(raw: &Raw, range: RangeInclusive<Duration>) -> Result<Duration, Wrong> {
    let hint = format!(
        "write a time such as \"30s\", \"5min\", \"7days\" or a number of seconds, from {} to {}",
        duration_text(*range.start()),
        duration_text(*range.end())
    );
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let parsed = match raw {
        Raw::Integer(value) => u64::try_from(*value).ok().map(Duration::from_secs),
        Raw::Float(value) => seconds(*value),
        Raw::Text(text) | Raw::Loose(text) => {
            text.trim().parse().ok().and_then(seconds).or_else(|| humantime::parse_duration(text.trim()).ok())
        }
        _ => None,
    };
    match parsed {
        Some(value) if range.contains(&value) => Ok(value),
        Some(_) => wrong(format!("{} is out of range", raw.describe()), hint),
        None => wrong(format!("{} is no time", raw.describe()), hint),
    }
}

/// `"4 MiB"` or a number of bytes.
pub(in crate::config) fn size(raw: &Raw, range: RangeInclusive<u64>) -> Result<u64, Wrong> {
    let hint = format!(
        "write a size such as \"512 KiB\", \"4 MiB\", \"2 GiB\" or a number of bytes, from {} to {}",
        size_text(*range.start()),
        size_text(*range.end())
    );
    let parsed = match raw {
        Raw::Integer(value) => u64::try_from(*value).ok(),
        Raw::Text(text) | Raw::Loose(text) => size_of_text(text),
        _ => None,
    };
    match parsed {
        Some(value) if range.contains(&value) => Ok(value),
        Some(_) => wrong(format!("{} is out of range", raw.describe()), hint),
        None => wrong(format!("{} is no size", raw.describe()), hint),
    }
}

fn size_of_text(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Permission bits of a socket, as octal text.
pub(in crate::config) fn mode(raw: &Raw) -> Result<u32, Wrong> {
    let hint = "write the octal permissions in quotes, for example \"0660\"";
    let Some(text) = raw.text() else {
        return wrong(format!("{} is no text", raw.describe()), hint);
    };
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if octal && mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        Ok(mode) if octal && mode <= 0o777 => {
            wrong("the daemon's own user could not connect", "let the first digit be 6: \"0660\"")
        }
        _ => wrong(format!("{} is no permission of a socket", raw.describe()), hint),
    }
}

/// `0` for "what the server takes", a number of characters, or `"65535B"` for bytes.
pub(in crate::config) fn max_content(raw: &Raw) -> Result<Option<MaxContent>, Wrong> {
    const RANGE: RangeInclusive<u64> = 64..=16_777_215;
    let hint = format!(
        "write 0 for the server's own limit, a number of characters (1024) or of bytes (\"65535B\"), from {} to {}",
        RANGE.start(),
        RANGE.end()
    );
    let bytes = raw.text().and_then(|text| text.trim().strip_suffix(['B', 'b']));
    let number = bytes.map_or_else(|| raw.number(), |digits| digits.trim_end().parse().ok());
    match (number.map(u64::try_from), bytes) {
        (Some(Ok(0)), None) => Ok(None),
        (Some(Ok(number)), _) if RANGE.contains(&number) => {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            Ok(Some(if bytes.is_some() { MaxContent::Bytes(number) } else { MaxContent::Characters(number) }))
        }
        (Some(_), _) => wrong(format!("{} is out of range", raw.describe()), hint),
        (None, _) => wrong(format!("{} is no content limit", raw.describe()), hint),
    }
}

#[cfg(test)]
mod tests {
    use super::super::boolean;
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        let any = Duration::ZERO..=Duration::from_secs(1 << 32);
        let read = |raw: Raw| duration(&raw, any.clone()).ok().map(|time| time.as_millis());
        for (raw, millis) in [
            (text("30s"), Some(30_000)),
            (text("1h 30min"), Some(5_400_000)),
            (text("250ms"), Some(250)),
            (text("7days"), Some(604_800_000)),
            (text("12"), Some(12_000)),
            (Raw::Integer(12), Some(12_000)),
            (Raw::Float(0.5), Some(500)),
            (Raw::Integer(-1), None),
            (Raw::Float(f64::NAN), None),
            (Raw::Float(f64::INFINITY), None),
            (text("inf"), None),
            (text("-5s"), None),
            (text(""), None),
            (text("soon"), None),
            (Raw::Boolean(true), None),
        ] {
            assert_eq!(read(raw.clone()), millis, "{}", raw.describe());
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        let read = |raw: Raw| size(&raw, 0..=u64::MAX).ok();
        for (raw, bytes) in [
            (text("4 MiB"), Some(4 << 20)),
            (text("4MiB"), Some(4 << 20)),
            (text("512 kib"), Some(512 << 10)),
            (text("2 GB"), Some(2_000_000_000)),
            (text("100"), Some(100)),
            (text("100 B"), Some(100)),
            (Raw::Integer(7), Some(7)),
            (Raw::Integer(-7), None),
            (text("99999999999 TiB"), None),
            (text("1.5 MiB"), None),
            (text("MiB"), None),
            (text("4 MiB/s"), None),
            (text("\u{fffd}"), None),
            (Raw::Float(1.0), None),
        ] {
            assert_eq!(read(raw.clone()), bytes, "{}", raw.describe());
        }
    }

    #[test]
    fn a_mode_is_octal_text_that_lets_the_owner_in() {
        for (raw, bits) in [
            (text("0660"), Some(0o660)),
            (text("600"), Some(0o600)),
            (text("0o666"), Some(0o666)),
            (text("0777"), Some(0o777)),
            (text("0060"), None),
            (text("1660"), None),
            (text("0880"), None),
            (text("+660"), None),
            (text("rw-rw----"), None),
            (text(""), None),
            (Raw::Integer(0o660), None),
        ] {
            assert_eq!(mode(&raw).ok(), bits, "{}", raw.describe());
        }
    }

    #[test]
    fn a_content_limit_counts_characters_or_bytes() {
        for (raw, limit) in [
            (Raw::Integer(0), Some(None)),
            (Raw::Integer(1_024), Some(Some(MaxContent::Characters(1_024)))),
            (text("65535B"), Some(Some(MaxContent::Bytes(65_535)))),
            (text("65535 B"), Some(Some(MaxContent::Bytes(65_535)))),
            (Raw::Loose("2048".into()), Some(Some(MaxContent::Characters(2_048)))),
            (Raw::Integer(63), None),
            (Raw::Integer(-1), None),
            (text("0B"), None),
            (text("B"), None),
            (text("1024"), None),
            (text("many"), None),
        ] {
            assert_eq!(max_content(&raw).ok(), limit, "{}", raw.describe());
        }
    }

    #[test]
    fn only_text_of_the_environment_stands_for_a_number() {
        assert_eq!(integer(&Raw::Loose("7".into()), 1..=9_u32), Ok(7));
        assert!(integer(&text("7"), 1..=9_u32).is_err());
        assert!(integer(&Raw::Float(7.0), 1..=9_u32).is_err());
        assert!(integer(&Raw::Integer(i64::MIN), 1..=9_u32).is_err());
        assert!(integer(&Raw::Integer(1 << 40), 1..=9_u32).is_err());
        assert_eq!(boolean(&Raw::Loose("TRUE".into())), Ok(true));
        assert!(boolean(&Raw::Integer(1)).is_err());
    }

    #[test]
    fn a_long_value_is_not_repeated() {
        let Err(wrong) = mode(&text(&"7".repeat(10_000))) else { panic!("taken") };
        assert!(wrong.message.len() < 100, "{}", wrong.message);
    }
}
