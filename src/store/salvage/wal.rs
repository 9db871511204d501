//! What a write-ahead log still says: which frame holds which page, and how far that is to be believed.
//!
//! SQLite stops at the first frame whose checksum fails and forgets all commits behind it. Here every frame is checked
//! by itself: the checksum of a frame starts from the one *stored* in the frame before it, so that one damaged frame
//! leaves the others provable.
//!
//! Promises: `committed` is exactly what SQLite would see, so a page changed since never brings back what was deleted
//! from it. `newest` and `suspects` are filled only when the log is broken; nothing of them replaces a committed page.
//! Refuses: frames of an earlier generation of the log, and a clean end without its commit (it was never acknowledged).

use std::collections::BTreeMap;

use super::files::Bytes;
use crate::store::schema::PAGE_SIZES;

const HEADER_BYTES: usize = 32;
pub(super) const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// Where a frame starts.
pub(super) const fn frame_at(frame: u64, page_bytes: usize) -> u64 {
    HEADER_BYTES as u64 + frame * (FRAME_HEADER_BYTES + page_bytes) as u64
}

/// The frames that matter.
#[derive(Default, Debug)]
pub(super) struct Layout {
    /// The page size, when sums of the log prove it.
    pub(super) page_bytes: Option<usize>,
    /// Page → its last committed frame before any damage.
    pub(super) committed: BTreeMap<u32, u64>,
    /// Page → its last sound frame behind the first damage.
    pub(super) newest: BTreeMap<u32, u64>,
    /// Frames whose checksum fails and that no later frame of the page replaces: single rows of them may be sound.
    pub(super) suspects: Vec<u64>,
    /// Page → the last suspect that claims to be it.
    pub(super) claimed: BTreeMap<u32, u64>,
    /// Something is wrong with the log.
    pub(super) broken: bool,
    /// Frames of the current generation.
    pub(super) frames: u64,
    /// Those of them that are damaged.
    pub(super) damaged_frames: u64,
    /// Pages of the database after the last commit in `committed`.
    pub(super) database_pages: Option<u32>,
    /// Behind damage stands a transaction that was begun after another one behind it was finished. A write that was cut
    /// off cannot look so: it is the last, and what an earlier one left further behind does not continue its sums.
    pub(super) hides_commits: bool,
}

type Sum = (u32, u32);

struct Frame {
    page: u32,
    database_pages: u32,
    salts: [u8; 8],
    stored: Sum,
    computed: Sum,
}

impl Layout {
    /// Reads the whole log once, a frame at a time.
    pub(super) fn of(wal: &Bytes) -> Self {
        let mut header = [0_u8; HEADER_BYTES];
        if wal.fill(0, &mut header) < HEADER_BYTES {
            return Self { broken: wal.length() > 0, ..Self::default() };
        }
        let magic = u32_at(&header, 0);
        let big_endian = magic == MAGIC | 1;
        let seed = (u32_at(&header, 24), u32_at(&header, 28));
        let told = PAGE_SIZES.into_iter().find(|size| u32_at(&header, 8) as usize == *size);
        let sound = (magic == MAGIC || big_endian) && sum(big_endian, (0, 0), header.get(..24).unwrap_or_default()) == seed;
        let frames = |big_endian, page_bytes| Frames {
            wal,
            big_endian,
            seed,
            next: 0,
            page_bytes,
            buffer: vec![0_u8; FRAME_HEADER_BYTES + page_bytes],
        };
        if let (true, Some(page_bytes)) = (sound, told) {
            let salts = header.get(16..).and_then(|salts| salts.first_chunk::<8>()).copied().unwrap_or_default();
            let layout = Self::of_frames(frames(big_endian, page_bytes), salts, true);
            return Self { page_bytes: Some(page_bytes), ..layout };
        }
        for (page_bytes, big_endian) in PAGE_SIZES.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            let mut all = frames(big_endian, page_bytes);
            if let Some(first) = all.find(|frame| frame.stored == frame.computed && frame.stored != (0, 0)) {
                let layout = Self::of_frames(frames(big_endian, page_bytes), first.salts, false);
                return Self { page_bytes: Some(page_bytes), ..layout };
            }
        }
        Self { broken: true, ..Self::default() }
    }

    fn of_frames(frames: impl Iterator<Item = Frame>, salts: [u8; 8], header_sound: bool) -> Self {
        let mut layout = Self { broken: !header_sound, ..Self::default() };
        let mut uncommitted: Vec<(u32, u64)> = Vec::new();
        let mut suspects: Vec<(u32, u64)> = Vec::new();
        let mut commits_in_a_row = 0; // behind the last damaged frame
        let mut strangers = 0; // frames since the last one of this generation that cannot be told from older ones
        let mut after_current = header_sound;
        for (frame, number) in frames.zip(0..) {
            let sound = frame.computed == frame.stored && frame.page != 0;
            if frame.salts != salts && !(sound && after_current) {
                strangers += 1;
                after_current = false;
                continue;
            }
            after_current = true;
            // Its sums prove a frame of this generation, but one with other salts ends the log for SQLite, too.
            let damaged = !sound || frame.salts != salts;
            layout.frames += 1 + strangers;
            layout.damaged_frames += strangers + u64::from(damaged);
            if strangers > 0 || damaged {
                layout.broken = true;
                commits_in_a_row = 0;
            }
            if layout.broken && !damaged && frame.database_pages > 0 {
                commits_in_a_row += 1;
                layout.hides_commits |= commits_in_a_row > 1;
            }
            strangers = 0;
            if layout.broken {
                layout.newest.extend(uncommitted.drain(..));
            }
            match (sound, layout.broken) {
                (false, _) => suspects.push((frame.page, number)),
                (true, true) => {
                    layout.newest.insert(frame.page, number);
                }
                (true, false) => uncommitted.push((frame.page, number)),
            }
            if !layout.broken && frame.database_pages > 0 {
                layout.committed.extend(uncommitted.drain(..));
                layout.database_pages = Some(frame.database_pages);
            }
        }
        let superseded = |page: &u32, number: u64| layout.newest.get(page).is_some_and(|newest| *newest > number);
        suspects.retain(|(page, number)| !superseded(page, *number));
        layout.suspects = suspects.iter().map(|(_, number)| *number).collect();
        layout.claimed = suspects.into_iter().collect();
        layout
    }
}

struct Frames<'a> {
    wal: &'a Bytes,
    big_endian: bool,
    seed: Sum,
    next: u64,
    page_bytes: usize,
    buffer: Vec<u8>,
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let at = frame_at(self.next, self.page_bytes);
        if at + FRAME_HEADER_BYTES as u64 > self.wal.length() {
            return None;
        }
        self.wal.fill(at, &mut self.buffer);
        self.next += 1;
        let (header, page) = self.buffer.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let mut salts = [0_u8; 8];
        salts.copy_from_slice(header.get(8..16)?);
        let stored = (u32_at(header, 16), u32_at(header, 20));
        let computed = sum(self.big_endian, sum(self.big_endian, self.seed, header.get(..8)?), page);
        self.seed = stored;
        Some(Frame { page: u32_at(header, 0), database_pages: u32_at(header, 4), salts, stored, computed })
    }
}

/// SQLite's running checksum over pairs of 32-bit words.
fn sum(big_endian: bool, seed: Sum, bytes: &[u8]) -> Sum {
    let word = |bytes: [u8; 4]| if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
    bytes.as_chunks::<8>().0.iter().fold(seed, |(mut first, mut second), &[a, b, c, d, e, f, g, h]| {
        first = first.wrapping_add(word([a, b, c, d])).wrapping_add(second);
        second = second.wrapping_add(word([e, f, g, h])).wrapping_add(first);
        (first, second)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk::<4>()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALTS: [u8; 8] = *b"saltsalt";

    fn frame(page: u32, database_pages: u32, sound: bool) -> Frame {
        Frame { page, database_pages, salts: SALTS, stored: (1, 1), computed: if sound { (1, 1) } else { (2, 2) } }
    }

    fn layout(frames: Vec<Frame>) -> Layout {
        Layout::of_frames(frames.into_iter(), SALTS, true)
    }

    #[test]
    fn the_last_committed_frame_of_a_page_wins() {
        let layout = layout(vec![frame(2, 0, true), frame(3, 3, true), frame(2, 3, true)]);
        assert_eq!(layout.committed, BTreeMap::from([(2, 2), (3, 1)]));
        assert!(!layout.broken);
    }

    #[test]
    fn a_clean_end_without_commit_is_ignored() {
        let layout = layout(vec![frame(2, 2, true), frame(2, 0, true), frame(3, 0, true)]);
        assert_eq!(layout.committed, BTreeMap::from([(2, 0)]));
        assert!(layout.newest.is_empty() && layout.suspects.is_empty() && !layout.broken);
    }

    #[test]
    fn frames_behind_damage_are_kept_beside_the_committed_ones() {
        let layout = layout(vec![frame(2, 2, true), frame(3, 3, false), frame(4, 4, true), frame(2, 4, true)]);
        assert_eq!(layout.committed, BTreeMap::from([(2, 0)]));
        assert_eq!(layout.newest, BTreeMap::from([(2, 3), (4, 2)]));
        assert_eq!(layout.suspects, [1]);
        assert_eq!(layout.claimed, BTreeMap::from([(3, 1)]));
        assert!(layout.broken);
    }

    #[test]
    fn a_suspect_that_was_written_again_is_not_read() {
        let layout = layout(vec![frame(2, 2, false), frame(2, 2, true)]);
        assert!(layout.suspects.is_empty());
        assert_eq!(layout.damaged_frames, 1);
    }

    #[test]
    fn finished_transactions_behind_damage_are_told_from_a_write_that_was_cut_off() {
        let (commit, part, bad) = (|| frame(2, 2, true), || frame(3, 0, true), || frame(4, 0, false));
        assert!(layout(vec![commit(), bad(), part(), commit(), part(), commit()]).hides_commits);
        assert!(layout(vec![bad(), bad(), commit(), commit()]).hides_commits);
        assert!(!layout(vec![commit(), commit(), commit()]).hides_commits);
        assert!(!layout(vec![commit(), bad(), part(), commit()]).hides_commits, "cut off, its commit arrived first");
        assert!(!layout(vec![commit(), bad(), commit(), bad(), part(), commit()]).hides_commits, "twice");
        let old = || Frame { salts: [0; 8], ..commit() };
        assert!(!layout(vec![commit(), bad(), old(), old(), old()]).hides_commits, "of an older generation");
        assert!(Layout::of_frames(vec![bad(), commit(), commit()].into_iter(), SALTS, false).hides_commits, "no header");
    }

    #[test]
    fn an_older_generation_behind_the_end_is_no_damage() {
        let old = |sound| Frame { salts: [0; 8], ..frame(2, 2, sound) };
        let layout = layout(vec![frame(2, 2, true), old(false), old(true)]);
        assert_eq!(layout.committed, BTreeMap::from([(2, 0)]));
        assert_eq!((layout.frames, layout.damaged_frames, layout.broken), (1, 0, false));
    }

    #[test]
    fn an_unreadable_stretch_inside_the_log_is_damage() {
        let zeros = || Frame { page: 0, database_pages: 0, salts: [0; 8], stored: (0, 0), computed: (7, 7) };
        let layout = layout(vec![frame(2, 2, true), zeros(), zeros(), frame(5, 5, false), frame(6, 6, true)]);
        assert_eq!((layout.frames, layout.damaged_frames, layout.broken), (5, 3, true));
        assert_eq!(layout.newest, BTreeMap::from([(6, 4)]));
        assert_eq!(layout.suspects, [3]);
    }
}
