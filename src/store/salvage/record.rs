//! SQLite's record format: a header of serial types, then the values. Pure; any bytes are answered with `None` or a value.
//!
//! Called by `page` (varints), `rows` (shapes) and `files` (which asks for the header before it follows an overflow chain).

/// The most columns a table of ours may have: a longer header is none of ours.
const MAX_COLUMNS: usize = 16;

/// One value of a record.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

/// The header of a record: it tells the shape of a row before its overflow pages are read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    serials: Vec<u64>,
    body_at: usize,
}

/// A variable-length integer and how many bytes it takes.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        if index == 8 {
            return Some(((value << 8) | u64::from(*byte), 9));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

impl Header {
    /// Reads the header from the first bytes of a record of `payload_bytes`. `None` unless header and values fill the
    /// record to the byte, so that hardly any garbage passes.
    pub(super) fn read(start: &[u8], payload_bytes: usize) -> Option<Self> {
        let (length, mut at) = varint(start)?;
        let body_at = usize::try_from(length).ok()?;
        let header = start.get(..body_at)?;
        let mut serials = Vec::with_capacity(MAX_COLUMNS);
        let mut total = body_at;
        while at < body_at {
            let (serial, taken) = varint(header.get(at..)?)?;
            at += taken;
            total = total.checked_add(value_bytes(serial)?)?;
            if serials.len() == MAX_COLUMNS {
                return None;
            }
            serials.push(serial);
        }
        (at == body_at && total == payload_bytes).then_some(Self { serials, body_at })
    }

    /// Whether the columns are those of `pattern`, one letter a column: `n` null, `i` integer, `t` text, `b` blob;
    /// capitals may be null as well.
    pub(super) fn fits(&self, pattern: &str) -> bool {
        self.serials.len() == pattern.len()
            && self.serials.iter().zip(pattern.bytes()).all(|(serial, wanted)| {
                let found = class(*serial);
                found == wanted || (wanted.is_ascii_uppercase() && (found == b'n' || found == wanted.to_ascii_lowercase()))
            })
    }

    /// The values of the whole record. `None` for a text that is not UTF-8 or a float.
    pub(super) fn values<'a>(&self, payload: &'a [u8]) -> Option<Vec<Value<'a>>> {
        let mut at = self.body_at;
        let mut values = Vec::with_capacity(self.serials.len());
        for serial in &self.serials {
            let bytes = payload.get(at..at.checked_add(value_bytes(*serial)?)?)?;
            at += bytes.len();
            values.push(match serial {
                0 => Value::Null,
                1..=6 => Value::Integer(big_endian(bytes)),
                8 => Value::Integer(0),
                9 => Value::Integer(1),
                12.. if serial % 2 == 0 => Value::Blob(bytes),
                13.. => Value::Text(std::str::from_utf8(bytes).ok()?),
                _ => return None,
            });
        }
        Some(values)
    }
}

/// How many bytes a value of this serial type takes; `None` for the types that SQLite does not write to disk.
fn value_bytes(serial: u64) -> Option<usize> {
    match serial {
        0 | 8 | 9 => Some(0),
        1..=4 => usize::try_from(serial).ok(),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => usize::try_from((serial - 12) / 2).ok(),
    }
}

const fn class(serial: u64) -> u8 {
    match serial {
        0 => b'n',
        1..=6 | 8 | 9 => b'i',
        12.. if serial.is_multiple_of(2) => b'b',
        13.. => b't',
        _ => b'?',
    }
}

fn big_endian(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |value: i64, byte| (value << 8) | i64::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn varints_of_every_length_are_read() {
        assert_eq!(varint(&[0x7f]), Some((127, 1)));
        assert_eq!(varint(&[0x81, 0x00]), Some((128, 2)));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0xff; 8]), None);
        assert_eq!(varint(&[]), None);
    }

    #[test]
    fn a_record_gives_back_its_values() {
        // header of 6: null, two-byte integer, constant one, text of two, blob of one
        let record = [6, 0, 2, 9, 17, 14, 0xff, 0xfe, b'h', b'i', 7];
        let header = Header::read(&record, record.len()).unwrap();
        assert!(header.fits("niitb"));
        assert!(header.fits("IiiTB"));
        assert!(!header.fits("iiitb"));
        assert!(!header.fits("niit"));
        let values = header.values(&record).unwrap();
        let expected = [Value::Null, Value::Integer(-2), Value::Integer(1), Value::Text("hi"), Value::Blob(&[7])];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_header_that_does_not_fill_its_record_is_refused() {
        let record = [6, 0, 2, 9, 17, 14, 0xff, 0xfe, b'h', b'i', 7];
        assert_eq!(Header::read(&record, record.len() + 1), None);
        assert_eq!(Header::read(&record[..3], record.len()), None);
        assert_eq!(Header::read(&[0xff; 30], 30), None);
        assert_eq!(Header::read(&[2, 10], 2), None, "a reserved serial type");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), length in 0_usize..100) {
            if let Some(header) = Header::read(&bytes, length) {
                let _ = header.values(&bytes);
            }
        }
    }
}
