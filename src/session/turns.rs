//! Final transcripts, held back until it is known whether an item says the same.
//!
//! The framework's truth is the item, but it loses what the user said last (hang-up before the end of the turn, talking
//! over an uninterruptible speech): then only the recogniser's final transcript is left. So finals are held. An item of
//! the user supersedes those it covers; older ones that it does not cover never became an item and are emitted before
//! it; younger ones belong to the next turn and stay held. What is still held at the end is emitted. An item that was not
//! recognised and covers none of them was typed while somebody spoke: they stay held for the item of what was spoken.
//!
//! Promises: every final ends in exactly one of [`Step::Drop`], [`Step::Supersede`] and [`Step::Emit`]; emission keeps
//! the order of holding; a final is superseded only by an item that names it or holds its words; the state is bounded;
//! [`Turns::restore`] from the side table goes on as if nothing had happened. Pure: no clock, no IO.
//! Refuses: to guess. Words that are typed in the very moment in which they are said count once, for the items of realtime
//! models look like typed ones. A turn that agent code rewrote is a new turn unless the framework names the item, so the words
//! recognised and the item both stand. A user item after the reply it prompted (realtime models) is an item like any
//! other: replies touch nothing here.
//!
//! Only `conversation_item_added` of the user comes here. A `message` line is its producer's own truth: it is stored as
//! it is and touches no transcript, for a producer that sends both means both.
//! Called by the session actor, which must have dropped items already known by `(session, id)` before.

use std::collections::VecDeque;

use super::words;
use super::youngest::YoungestIds;
use crate::store::HeldTranscript;

/// The most transcripts held in a session. A turn has a handful; the oldest is emitted rather than lost.
pub const MAX_HELD: usize = 256;
/// The most text held in a session, in bytes.
pub const MAX_HELD_BYTES: usize = 1 << 20;
/// The most item ids remembered in a session: a final comes at most a few items after its own.
pub const MAX_ITEM_IDS: usize = 512;
/// The longest transcript searched for the words of another one: every line may bring one to be compared with all held.
const MAX_COMPARED_BYTES: usize = 4096;

/// What to do with a transcript. Steps are carried out in order, and before whatever caused them.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Write it to the side table.
    Hold(HeldTranscript),
    /// Append it as a message of the user (`uncommitted`, its own time, no `event_id`) and release it from the side
    /// table, if it is there.
    Emit(HeldTranscript),
    /// An item, or a later transcript of the same item, says it: release it and count it as superseded.
    Supersede(HeldTranscript),
    /// An item seen before, or a held transcript of the same item, says it: it was never held. Count it as superseded.
    Drop(HeldTranscript),
}

/// The held transcripts of one session.
#[derive(Debug, Default)]
pub struct Turns {
    held: VecDeque<HeldTranscript>,
    held_bytes: usize,
    items: YoungestIds<MAX_ITEM_IDS>,
}

impl Turns {
    /// The state of a session that is opened again: its held transcripts in order, and ids of its items, oldest first.
    /// Ids of other messages among them do no harm.
    #[must_use]
    pub fn restore(held: Vec<HeldTranscript>, item_ids: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let held_bytes = held.iter().map(|transcript| transcript.text.len()).sum();
        Self { held: held.into(), held_bytes, items: item_ids.into_iter().collect() }
    }

    /// Takes in a final transcript.
    pub fn transcript(&mut self, new: HeldTranscript) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(id) = &new.item_id {
            let same_item = |old: &HeldTranscript| old.item_id.as_ref() == Some(id);
            if self.items.contains(id) || self.held.iter().any(|old| same_item(old) && says(&old.text, &new.text)) {
                return vec![Step::Drop(new)];
            }
            let (revised, held) =
                std::mem::take(&mut self.held).into_iter().partition(|old| same_item(old) && says(&new.text, &old.text));
            self.held = held;
            let revised: VecDeque<HeldTranscript> = revised;
            steps.extend(revised.into_iter().map(|old| Step::Supersede(self.forget(old))));
        }
        while self.held.len() >= MAX_HELD || self.held_bytes + new.text.len() > MAX_HELD_BYTES {
            let Some(oldest) = self.held.pop_front() else {
                steps.push(Step::Emit(new));
                return steps;
            };
            steps.push(Step::Emit(self.forget(oldest)));
        }
        self.held_bytes += new.text.len();
        self.held.push_back(new.clone());
        steps.push(Step::Hold(new));
        steps
    }

    /// Takes in an item of the user with its cleaned text, and whether the framework says that its recogniser heard it. All
    /// steps come before the item itself. An item without text says nothing, so it supersedes nothing, not even a transcript
    /// that names it.
    pub fn user_item(&mut self, item_id: Option<&str>, text: &str, recognised: bool) -> Vec<Step> {
        if text.is_empty() || item_id.is_some_and(|id| !self.items.insert(id)) {
            return Vec::new();
        }
        let named: Vec<bool> =
            self.held.iter().map(|held| held.item_id.is_some() && held.item_id.as_deref() == item_id).collect();
        let covered = if named.contains(&true) { named } else { self.covered_by_text(item_id, text) };
        let settled = match covered.iter().rposition(|&covered| covered) {
            Some(last) => last + 1,
            None if recognised => self.held.len(),
            // What was said meanwhile may become an item yet.
            None => 0,
        };
        let settled: Vec<HeldTranscript> = self.held.drain(..settled).collect();
        let steps = settled.into_iter().zip(covered);
        steps
            .map(|(held, covered)| {
                let held = self.forget(held);
                if covered { Step::Supersede(held) } else { Step::Emit(held) }
            })
            .collect()
    }

    /// The end of the session, or idle after `close` or the end of the connection: emits everything still held.
    pub fn finish(&mut self) -> Vec<Step> {
        self.held_bytes = 0;
        self.held.drain(..).map(Step::Emit).collect()
    }

    /// How many transcripts are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Which of the held transcripts the text covers: the last few, if joined they are the text, as the framework joins
    /// them; else those whose words stand in it. One that names another item is none of them.
    fn covered_by_text(&self, item_id: Option<&str>, text: &str) -> Vec<bool> {
        let nameless = |held: &HeldTranscript| held.item_id.is_none() || item_id.is_none();
        let mut covered: Vec<bool> = Vec::with_capacity(self.held.len());
        let mut rest = Some(text);
        for held in self.held.iter().rev() {
            let before = rest.filter(|_| nameless(held)).and_then(|rest| rest.strip_suffix(held.text.as_str()));
            covered.push(before.is_some());
            rest = match before {
                Some("") => {
                    covered.resize(self.held.len(), false);
                    covered.reverse();
                    return covered;
                }
                before => before.and_then(|before| before.strip_suffix(' ')),
            };
            if rest.is_none() {
                break;
            }
        }
        words::covered(text, self.held.iter().map(|held| if nameless(held) { held.text.as_str() } else { "" }))
    }

    fn forget(&mut self, held: HeldTranscript) -> HeldTranscript {
        self.held_bytes = self.held_bytes.saturating_sub(held.text.len());
        held
    }
}

/// Whether one transcript of an item says all that another one says. Of very long ones only the very same text counts.
fn says(text: &str, other: &str) -> bool {
    text == other || (text.len() <= MAX_COMPARED_BYTES && words::covered(text, [other]) == [true])
}

#[cfg(test)]
mod tests;
