//! The cells of a b-tree page, taken from its cell pointers alone: no parent, no database header, no schema is needed.
//! Pure; any bytes give some cells or none.
//!
//! Refuses: to carve. Only cells that the page itself points at are read; what lies between them is what was deleted or
//! moved, and text spoken by a user could be made to look like a cell.

use super::record::varint;

const INTERIOR_INDEX: u8 = 0x02;
const LEAF_INDEX: u8 = 0x0a;
const LEAF_TABLE: u8 = 0x0d;

/// Payload bytes on an overflow page; the first four bytes name the next one.
pub(super) const fn overflow_bytes(page_bytes: usize) -> usize {
    page_bytes - 4
}

/// Smallest payload share kept on the page when a cell overflows, and the largest payload kept whole, by SQLite's file
/// format. `None`: no page is so small.
fn local_bytes(page_bytes: usize, tree: Tree) -> Option<(usize, usize)> {
    let usable = page_bytes.checked_sub(12).filter(|usable| *usable >= 500)?;
    let most = if tree == Tree::Table { usable - 23 } else { usable * 64 / 255 - 23 };
    Some((usable * 32 / 255 - 23, most))
}

/// What kind of b-tree a cell was found in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tree {
    Table,
    Index,
}

/// One cell: a row, or an entry of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cell<'a> {
    pub(super) tree: Tree,
    /// 0 in an index.
    pub(super) rowid: i64,
    pub(super) payload_bytes: usize,
    /// The part of the payload that stands on this page.
    pub(super) local: &'a [u8],
    /// The first overflow page, when the payload goes on.
    pub(super) overflow: Option<u32>,
}

/// The readable cells of a page; none when it is no page of a table or index.
pub(super) fn cells(page: &[u8]) -> impl Iterator<Item = Cell<'_>> {
    let (kind, pointers_at) = match page.first() {
        Some(&LEAF_TABLE) => (LEAF_TABLE, 8),
        Some(&LEAF_INDEX) => (LEAF_INDEX, 8),
        Some(&INTERIOR_INDEX) => (INTERIOR_INDEX, 12),
        _ => (0, page.len()),
    };
    let count = if kind == 0 { 0 } else { u16_at(page, 3).unwrap_or(0) };
    (0..usize::from(count))
        .map_while(move |index| u16_at(page, pointers_at + 2 * index))
        .filter_map(move |at| cell(page, kind, usize::from(at)))
}

fn cell(page: &[u8], kind: u8, at: usize) -> Option<Cell<'_>> {
    let mut at = if kind == INTERIOR_INDEX { at + 4 } else { at };
    let tree = if kind == LEAF_TABLE { Tree::Table } else { Tree::Index };
    let (payload, taken) = varint(page.get(at..)?)?;
    at += taken;
    let mut rowid = 0;
    if tree == Tree::Table {
        let (number, taken) = varint(page.get(at..)?)?;
        at += taken;
        rowid = number.cast_signed();
    }
    let payload_bytes = usize::try_from(payload).ok()?;
    let (local_min, local_max) = local_bytes(page.len(), tree)?;
    if payload_bytes <= local_max {
        let local = page.get(at..at + payload_bytes)?;
        return Some(Cell { tree, rowid, payload_bytes, local, overflow: None });
    }
    let fitted = local_min + (payload_bytes - local_min) % overflow_bytes(page.len());
    let local = page.get(at..at + if fitted <= local_max { fitted } else { local_min })?;
    let next = page.get(at + local.len()..)?.first_chunk::<4>()?;
    Some(Cell { tree, rowid, payload_bytes, local, overflow: Some(u32::from_be_bytes(*next)) })
}

fn u16_at(page: &[u8], at: usize) -> Option<u16> {
    page.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::PAGE_BYTES;

    fn page_with(kind: u8, cell: &[u8]) -> Vec<u8> {
        let mut page = vec![0_u8; PAGE_BYTES];
        page[0] = kind;
        page[4] = 1;
        let at = u16::try_from(PAGE_BYTES - cell.len()).unwrap_or_default();
        let pointer = if kind == INTERIOR_INDEX { 12 } else { 8 };
        page[pointer..pointer + 2].copy_from_slice(&at.to_be_bytes());
        page[usize::from(at)..].copy_from_slice(cell);
        page
    }

    #[test]
    fn a_row_on_a_leaf_is_found() {
        let page = page_with(LEAF_TABLE, &[3, 0x81, 0x00, 1, 2, 3]);
        let found: Vec<_> = cells(&page).collect();
        assert_eq!(found, [Cell { tree: Tree::Table, rowid: 128, payload_bytes: 3, local: &[1, 2, 3], overflow: None }]);
    }

    #[test]
    fn an_entry_of_an_interior_index_page_is_found() {
        let page = page_with(INTERIOR_INDEX, &[0, 0, 0, 9, 2, 7, 8]);
        let found: Vec<_> = cells(&page).collect();
        assert_eq!(found, [Cell { tree: Tree::Index, rowid: 0, payload_bytes: 2, local: &[7, 8], overflow: None }]);
    }

    #[test]
    fn pages_of_other_kinds_have_no_cells() {
        assert_eq!(cells(&page_with(0x05, &[1, 1, 1])).count(), 0);
        assert_eq!(cells(&[]).count(), 0);
        assert_eq!(cells(&[LEAF_TABLE]).count(), 0);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            kind in proptest::sample::select(vec![INTERIOR_INDEX, LEAF_INDEX, LEAF_TABLE]),
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..PAGE_BYTES),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            for cell in cells(&bytes) {
                proptest::prop_assert!(cell.local.len() <= bytes.len());
            }
        }
    }
}
