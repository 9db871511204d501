use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::protocol::{ChatType, Command, DecodeOptions, LiveKitEvent, UnixMillis, decode};

/// A history as it would be stored, built by carrying out the steps.
#[derive(Default)]
struct History {
    turns: Turns,
    count: u128,
    side_table: Vec<HeldTranscript>,
    item_ids: Vec<String>,
    said: Vec<String>,
    superseded: usize,
}

impl History {
    fn carry_out(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Hold(held) => self.side_table.push(held),
                Step::Emit(held) => {
                    self.side_table.retain(|other| other.uuid != held.uuid);
                    self.said.push(format!("({})", held.text));
                }
                Step::Supersede(held) => {
                    let before = self.side_table.len();
                    self.side_table.retain(|other| other.uuid != held.uuid);
                    assert_eq!(self.side_table.len(), before - 1, "only what is held is superseded");
                    self.superseded += 1;
                }
                Step::Drop(held) => {
                    assert!(self.side_table.iter().all(|other| other.uuid != held.uuid));
                    self.superseded += 1;
                }
            }
        }
        assert_eq!(self.turns.held(), self.side_table.len());
    }

    fn final_of(&mut self, text: &str, item_id: Option<&str>) {
        self.count += 1;
        let steps = self.turns.transcript(held(self.count, text, item_id));
        self.carry_out(steps);
    }

    fn heard(&mut self, text: &str) {
        self.final_of(text, None);
    }

    fn user_item(&mut self, item_id: Option<&str>, text: &str) {
        self.item(item_id, text, true);
    }

    fn item(&mut self, item_id: Option<&str>, text: &str, recognised: bool) {
        let steps = self.turns.user_item(item_id, text, recognised);
        self.carry_out(steps);
        self.item_ids.extend(item_id.map(str::to_owned));
        self.said.push(text.to_owned());
    }

    fn user(&mut self, text: &str) {
        let id = format!("item_{}", self.said.len());
        self.user_item(Some(&id), text);
    }

    fn typed(&mut self, text: &str) {
        let id = format!("item_{}", self.said.len());
        self.item(Some(&id), text, false);
    }

    fn agent(&mut self, text: &str) {
        self.said.push(format!("agent: {text}"));
    }

    fn restart(&mut self) {
        self.turns = Turns::restore(self.side_table.clone(), &self.item_ids);
    }

    fn end(mut self) -> Vec<String> {
        let steps = self.turns.finish();
        self.carry_out(steps);
        assert_eq!(self.turns.held(), 0);
        self.said
    }
}

fn held(number: u128, text: &str, item_id: Option<&str>) -> HeldTranscript {
    HeldTranscript {
        uuid: Uuid::from_u128(number),
        text: text.to_owned(),
        time: UnixMillis(0),
        recorded: UnixMillis(0),
        item_id: item_id.map(str::to_owned),
    }
}

fn history(tell: impl FnOnce(&mut History)) -> Vec<String> {
    let mut history = History::default();
    tell(&mut history);
    history.end()
}

#[test]
fn an_item_supersedes_its_final() {
    let said = history(|h| {
        h.heard("tell me a story");
        h.user("tell me a story");
        h.agent("once");
    });
    assert_eq!(said, ["tell me a story", "agent: once"]);
}

#[test]
fn an_item_supersedes_all_the_finals_it_was_joined_from() {
    let said = history(|h| {
        h.heard("set the volume");
        h.heard("to");
        h.heard("sixty percent");
        h.user("set the volume to sixty percent");
    });
    assert_eq!(said, ["set the volume to sixty percent"]);
}

#[test]
fn words_lost_at_hang_up_are_emitted_at_the_end() {
    let said = history(|h| {
        h.agent("hello");
        h.heard("good night");
    });
    assert_eq!(said, ["agent: hello", "(good night)"]);
}

#[test]
fn an_interim_promoted_at_close_covers_the_finals_before_it() {
    let said = history(|h| {
        h.heard("tell me");
        h.user("tell me about the");
    });
    assert_eq!(said, ["tell me about the"]);
}

#[test]
fn words_spoken_over_an_uninterruptible_speech_come_before_the_next_item() {
    let said = history(|h| {
        h.heard("wait");
        h.agent("a long announcement");
        h.heard("tell me a story");
        h.user("tell me a story");
    });
    assert_eq!(said, ["agent: a long announcement", "(wait)", "tell me a story"]);
}

#[test]
fn the_same_word_lost_and_said_again_is_there_twice() {
    let said = history(|h| {
        h.heard("yes");
        h.heard("yes");
        h.user("yes");
    });
    assert_eq!(said, ["(yes)", "yes"]);
}

#[test]
fn a_final_of_the_next_turn_stays_held_for_its_own_item() {
    let said = history(|h| {
        h.heard("I want a song");
        h.heard("a happy one");
        h.user("I want a song");
        h.agent("which");
        h.user("a happy one");
    });
    assert_eq!(said, ["I want a song", "agent: which", "a happy one"]);
}

#[test]
fn finals_without_words_are_superseded_by_the_very_same_text_alone() {
    let said = history(|h| {
        h.heard("🐯");
        h.heard("🐯");
        h.heard("?!");
        h.user("🐯 ?!");
    });
    assert_eq!(said, ["(🐯)", "🐯 ?!"]);
}

#[test]
fn finals_are_joined_by_spaces_and_nothing_else() {
    let said = history(|h| {
        h.heard("to");
        h.heard("day");
        h.user("today");
    });
    assert_eq!(said, ["(to)", "(day)", "today"]);
}

#[test]
fn punctuation_and_case_of_the_item_do_not_double_a_sentence() {
    let said = history(|h| {
        h.heard("stop stop");
        h.heard("i want a song");
        h.user("Stop, stop! I want a song.");
    });
    assert_eq!(said, ["Stop, stop! I want a song."]);
}

#[test]
fn an_item_of_other_words_emits_what_was_heard_before_it() {
    let said = history(|h| {
        h.heard("never committed");
        h.user("rewritten by agent code");
    });
    assert_eq!(said, ["(never committed)", "rewritten by agent code"]);
}

#[test]
fn what_is_typed_while_somebody_speaks_leaves_the_spoken_words_to_their_own_item() {
    let said = history(|h| {
        h.heard("never committed");
        h.heard("tell me");
        h.typed("typed message");
        h.restart();
        h.heard("a story");
        h.user("tell me a story");
        h.heard("bye");
        h.typed("goodbye for now");
    });
    assert_eq!(said, ["typed message", "(never committed)", "tell me a story", "goodbye for now", "(bye)"]);
}

#[test]
fn the_item_of_a_realtime_model_supersedes_the_final_it_holds() {
    let said = history(|h| {
        h.heard("what is this");
        h.typed("What is this?");
    });
    assert_eq!(said, ["What is this?"]);
}

#[test]
fn in_realtime_order_the_user_item_follows_the_reply() {
    let said = history(|h| {
        h.final_of("what is this", Some("item_C1"));
        h.agent("a tiger");
        h.user_item(Some("item_C1"), "What is this?");
    });
    assert_eq!(said, ["agent: a tiger", "What is this?"]);
}

#[test]
fn a_final_after_its_item_is_dropped_even_when_the_words_differ() {
    let said = history(|h| {
        h.user_item(Some("item_C1"), "What is this?");
        h.final_of("whats this", Some("item_C1"));
        h.restart();
        h.final_of("whats this", Some("item_C1"));
    });
    assert_eq!(said, ["What is this?"]);
}

#[test]
fn an_item_that_agent_code_rewrote_supersedes_the_final_that_names_it() {
    let said = history(|h| {
        h.heard("lost");
        h.final_of("my number is five", Some("item_C1"));
        h.final_of("next turn", Some("item_C2"));
        h.user_item(Some("item_C1"), "[number removed]");
    });
    assert_eq!(said, ["(lost)", "[number removed]", "(next turn)"]);
}

#[test]
fn a_final_that_names_another_item_is_not_covered_by_equal_words() {
    let said = history(|h| {
        h.final_of("yes", Some("item_C1"));
        h.user_item(Some("item_C2"), "yes");
    });
    assert_eq!(said, ["(yes)", "yes"]);
}

#[test]
fn a_final_repeated_or_revised_for_the_same_item_is_there_once() {
    let said = history(|h| {
        h.final_of("tell me", Some("item_C1"));
        h.final_of("tell me", Some("item_C1"));
        h.final_of("Tell me more", Some("item_C1"));
        h.final_of("and sing", Some("item_C1"));
    });
    assert_eq!(said, ["(Tell me more)", "(and sing)"]);
}

#[test]
fn an_item_without_text_supersedes_nothing() {
    let said = history(|h| {
        h.final_of("what is this", Some("item_C1"));
        let steps = h.turns.user_item(Some("item_C1"), "", true);
        h.carry_out(steps);
    });
    assert_eq!(said, ["(what is this)"]);
}

#[test]
fn an_item_that_comes_twice_touches_nothing_the_second_time() {
    let mut history = History::default();
    history.user_item(Some("item_1"), "one");
    history.heard("two");
    assert_eq!(history.turns.user_item(Some("item_1"), "one", true), []);
    assert_eq!(history.turns.held(), 1);
}

#[test]
fn beyond_the_bounds_the_oldest_is_emitted() {
    let mut many = History::default();
    for number in 0..=MAX_HELD {
        many.heard(&format!("sentence {number}"));
    }
    assert_eq!(many.said, ["(sentence 0)"]);
    assert_eq!(many.turns.held(), MAX_HELD);

    let mut large = History::default();
    large.heard("small");
    large.heard(&"x".repeat(MAX_HELD_BYTES));
    assert_eq!(large.said, ["(small)"]);
    large.heard(&"y".repeat(MAX_HELD_BYTES + 1));
    assert_eq!(large.said.len(), 3);
    assert_eq!(large.turns.held(), 0);
}

/// Both fixtures are what a real `AgentSession` emitted.
#[test]
fn a_real_conversation_has_sixteen_messages_and_nothing_left_over() {
    for fixture in [
        include_str!("../../../tests/fixtures/livekit-1.2.8.ndjson"),
        include_str!("../../../tests/fixtures/livekit-1.8.9.ndjson"),
    ] {
        let mut history = History::default();
        let mut items = Vec::new();
        let options = DecodeOptions::at(UnixMillis(1_795_400_000_000), false);
        for line in fixture.lines() {
            match decode(line.as_bytes(), &options).unwrap().command {
                Command::LiveKit(LiveKitEvent::FinalTranscript(transcript)) => history.heard(&transcript.text),
                Command::LiveKit(LiveKitEvent::Item { message: item, recognised }) => {
                    match item.chat_type {
                        ChatType::User => history.item(item.event_id.as_deref(), &item.content, recognised),
                        _ => history.said.push(item.content.clone()),
                    }
                    items.push(item.content);
                }
                _ => {}
            }
        }
        assert_eq!(history.turns.held(), 0);
        assert_eq!(history.superseded, 6);
        assert_eq!(items.len(), 16);
        assert_eq!(history.end(), items);
    }
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one toss of a coin")]
struct Turn {
    /// Words of each final.
    finals: Vec<usize>,
    committed: bool,
    named: bool,
    item_before_reply: bool,
    shouted: bool,
    restart: bool,
}

fn turn() -> impl Strategy<Value = Turn> {
    (prop::collection::vec(1_usize..4, 1..4), any::<[bool; 5]>()).prop_map(|(finals, flags)| {
        let [committed, named, item_before_reply, shouted, restart] = flags;
        Turn { finals, committed, named, item_before_reply, shouted, restart }
    })
}

proptest! {
    /// Every word of the conversation is new, so what must come out is known exactly: the item of each committed turn,
    /// the finals of each other one, in the order they were said.
    #[test]
    fn no_sentence_is_lost_or_doubled_and_the_order_is_kept(turns in prop::collection::vec(turn(), 0..12)) {
        let mut history = History::default();
        let mut expected: Vec<String> = Vec::new();
        let mut word = 0;
        for (number, turn) in turns.iter().enumerate() {
            let id = format!("item_{number}");
            let finals: Vec<String> = turn.finals.iter().map(|&count| {
                let words: Vec<String> = (0..count).map(|_| { word += 1; format!("word{word}") }).collect();
                words.join(" ")
            }).collect();
            for text in &finals {
                history.final_of(text, turn.named.then_some(id.as_str()));
            }
            if turn.restart {
                history.restart();
            }
            if !turn.item_before_reply {
                history.agent("reply");
            }
            if turn.committed {
                let text = finals.join(" ");
                let text = if turn.shouted { format!("{}!", text.to_uppercase()) } else { text };
                history.user_item(Some(&id), &text);
                expected.push(text);
            } else {
                expected.extend(finals.iter().map(|text| format!("({text})")));
            }
            if turn.item_before_reply {
                history.agent("reply");
            }
        }
        let said = history.end();
        let users: Vec<String> = said.into_iter().filter(|text| !text.starts_with("agent")).collect();
        prop_assert_eq!(users, expected);
    }

    /// With three words only, everything looks like everything: still each final ends once, in order, and an item
    /// supersedes no more words than it has.
    #[test]
    fn every_final_ends_once_however_alike_they_are(
        events in prop::collection::vec((any::<bool>(), any::<bool>(), "(a|b|c)( (a|b|c)){0,3}", prop::option::of(0_u8..4)), 0..40),
    ) {
        let mut turns = Turns::default();
        let mut ended: Vec<(u128, bool)> = Vec::new();
        let mut count = 0_u128;
        for (is_item, recognised, text, id) in events {
            let id = id.map(|id| format!("item_{id}"));
            let steps = if is_item { turns.user_item(id.as_deref(), &text, recognised) } else {
                count += 1;
                turns.transcript(held(count, &text, id.as_deref()))
            };
            let mut words = text.split(' ').count();
            for step in steps {
                match step {
                    Step::Hold(_) => prop_assert!(!is_item),
                    Step::Emit(held) => ended.push((held.uuid.as_u128(), true)),
                    Step::Drop(held) => ended.push((held.uuid.as_u128(), false)),
                    Step::Supersede(held) => {
                        ended.push((held.uuid.as_u128(), false));
                        if is_item && held.item_id.as_ref().is_none_or(|held| Some(held) != id.as_ref()) {
                            let taken = held.text.split(' ').count();
                            prop_assert!(taken <= words);
                            words -= taken;
                        }
                    }
                }
            }
        }
        for step in turns.finish() {
            let Step::Emit(held) = step else { return Err(TestCaseError::fail("finish only emits")) };
            ended.push((held.uuid.as_u128(), true));
        }
        let emitted: Vec<u128> = ended.iter().filter(|(_, emitted)| *emitted).map(|(id, _)| *id).collect();
        prop_assert!(emitted.is_sorted());
        let mut all: Vec<u128> = ended.iter().map(|(id, _)| *id).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (1..=count).collect::<Vec<u128>>());
    }
}
