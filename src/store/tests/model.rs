//! The store in lock-step with a plain model: whatever is appended, held, released, delivered, rejected, closed or killed,
//! both know the same messages in the same order, the same cursors, keys, held transcripts and streams.

use proptest::prelude::*;

use super::*;

const SESSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Append {
        session: usize,
        count: usize,
        sendable: bool,
        keyed: bool,
        streamed: bool,
    },
    Hold {
        session: usize,
        count: usize,
    },
    /// Emits the oldest held transcript, or lets it go.
    Release {
        session: usize,
        emit: bool,
    },
    Deliver {
        session: usize,
        count: usize,
    },
    Reject {
        session: usize,
    },
    End {
        session: usize,
    },
    Start {
        session: usize,
    },
    Reopen,
    /// What a `kill -9` leaves: the files as they are.
    Kill,
}

#[derive(Clone, Default)]
struct Model {
    sessions: [ModelSession; SESSIONS],
    delivered: u64,
    rejected: u64,
}

#[derive(Clone, Default)]
struct ModelSession {
    /// Content, whether it is sent, key.
    messages: Vec<(String, bool, Option<String>)>,
    passed: usize,
    held: Vec<HeldTranscript>,
    seq: u64,
    ended: bool,
}

impl ModelSession {
    fn pending(&self) -> u64 {
        self.messages.iter().skip(self.passed).filter(|message| message.1).count() as u64
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = 0..SESSIONS;
    let step = prop_oneof![
        6 => (session.clone(), 1_usize..5, prop::bool::weighted(0.8), any::<bool>(), any::<bool>())
            .prop_map(|(session, count, sendable, keyed, streamed)| Step::Append { session, count, sendable, keyed, streamed }),
        2 => (session.clone(), 1_usize..3).prop_map(|(session, count)| Step::Hold { session, count }),
        2 => (session.clone(), any::<bool>()).prop_map(|(session, emit)| Step::Release { session, emit }),
        3 => (session.clone(), 1_usize..6).prop_map(|(session, count)| Step::Deliver { session, count }),
        1 => session.clone().prop_map(|session| Step::Reject { session }),
        1 => session.clone().prop_map(|session| Step::End { session }),
        1 => session.prop_map(|session| Step::Start { session }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..40)
}

/// The store under test, and where it lives.
struct Subject {
    root: tempfile::TempDir,
    home: usize,
    lab: Lab,
}

impl Subject {
    fn settings(root: &tempfile::TempDir, home: usize) -> StoreSettings {
        settings(&root.path().join(home.to_string()))
    }

    async fn reopen(self) -> Self {
        assert_eq!(self.lab.store.close().await, CloseReport::default());
        let lab = Lab::open(&Self::settings(&self.root, self.home));
        Self { lab, ..self }
    }

    fn kill(self) -> Self {
        let (from, to) = (Self::settings(&self.root, self.home), Self::settings(&self.root, self.home + 1));
        std::fs::create_dir_all(&to.directory).unwrap();
        for name in ["history.db", "history.db-wal"] {
            std::fs::copy(from.directory.join(name), to.directory.join(name)).unwrap();
        }
        Self { root: self.root, home: self.home + 1, lab: Lab::open(&to) }
    }

    async fn open(&self, session: usize) -> OpenedSession {
        self.lab.session(&session.to_string()).await
    }

    async fn advance(&self, handle: &Arc<SessionHandle>, model: &mut ModelSession, count: usize, reject: bool) -> (u64, u64) {
        let rows = self.lab.store.pending(handle, count, usize::MAX).await.unwrap();
        let Some(last) = rows.last() else { return (0, 0) };
        let sent = rows.iter().filter(|message| message.disposition == Disposition::Send).count() as u64;
        let passed = if reject && sent == 1 {
            let rejection = Rejection { reason: RejectReason::Invalid, answer: None };
            Passed::rejected(last.row, rejection)
        } else {
            Passed::delivered(sent)
        };
        let counted = (passed.delivered, passed.rejected.len() as u64);
        let cursor = Cursor { row: last.row, offset: 0, last_report: UnixMillis(last.row.0) };
        self.lab.store.advance(handle, cursor, passed);
        self.lab.store.cursor_follows(handle, 0).await;
        model.passed += rows.len();
        counted
    }
}

async fn take(subject: Subject, model: &mut Model, step: Step, number: usize) -> Subject {
    match step {
        Step::Append { session, count, sendable, keyed, streamed } => {
            let handle = subject.open(session).await.handle;
            let model = &mut model.sessions[session];
            let mut write = empty_write(&handle);
            for index in 0..count {
                let content = format!("{number}.{index}");
                let event_id = keyed.then(|| format!("id {content}"));
                model.messages.push((content.clone(), sendable, event_id.clone()));
                write.messages.push(NewMessage { event_id, sendable, ..message(&content) });
            }
            if streamed {
                model.seq += count as u64;
                write.stream = Some((session.to_string().into(), model.seq));
            }
            assert_eq!(subject.lab.write(write).await, Settled::Durable);
        }
        Step::Hold { session, count } => {
            let handle = subject.open(session).await.handle;
            let hold: Vec<_> = (0..count).map(|index| held(&format!("held {number}.{index}"))).collect();
            model.sessions[session].held.extend(hold.iter().cloned());
            subject.lab.write(SessionWrite { hold, ..empty_write(&handle) }).await;
        }
        Step::Release { session, emit } => {
            let handle = subject.open(session).await.handle;
            let model = &mut model.sessions[session];
            if model.held.is_empty() {
                return subject;
            }
            let held = model.held.remove(0);
            let mut write = SessionWrite { release: vec![held.uuid], ..empty_write(&handle) };
            if emit {
                model.messages.push((held.text.clone(), true, None));
                write.messages.push(NewMessage { uuid: held.uuid, uncommitted: true, ..message(&held.text) });
            }
            subject.lab.write(write).await;
        }
        Step::Deliver { session, count } => {
            let handle = subject.open(session).await.handle;
            let (delivered, rejected) = subject.advance(&handle, &mut model.sessions[session], count, false).await;
            (model.delivered, model.rejected) = (model.delivered + delivered, model.rejected + rejected);
        }
        Step::Reject { session } => {
            let handle = subject.open(session).await.handle;
            let (delivered, rejected) = subject.advance(&handle, &mut model.sessions[session], 1, true).await;
            (model.delivered, model.rejected) = (model.delivered + delivered, model.rejected + rejected);
        }
        Step::End { session } => {
            let handle = subject.open(session).await.handle;
            model.sessions[session].ended = true;
            let ended = Lifecycle::Ended { reason: None, dropped: 0 };
            subject.lab.write(SessionWrite { lifecycle: Some(ended), ..empty_write(&handle) }).await;
        }
        Step::Start { session } => {
            let handle = subject.open(session).await.handle;
            model.sessions[session].ended = false;
            let started = Lifecycle::Started { agent_id: None, client: None };
            subject.lab.write(SessionWrite { lifecycle: Some(started), ..empty_write(&handle) }).await;
        }
        Step::Reopen => return subject.reopen().await,
        Step::Kill => return subject.kill(),
    }
    subject
}

async fn compare(subject: &Subject, model: &Model) {
    let mut rows = std::collections::HashSet::new();
    for (number, expected) in model.sessions.iter().enumerate() {
        let opened = subject.open(number).await;
        let handle = &opened.handle;
        let all = subject.lab.store.transcript(handle.key, RowId(0), 10_000).await.unwrap();
        let contents: Vec<&str> = all.iter().map(|message| message.content.as_str()).collect();
        let expected_contents: Vec<&str> = expected.messages.iter().map(|message| message.0.as_str()).collect();
        assert_eq!(contents, expected_contents);
        assert!(all.iter().all(|message| rows.insert(message.row)), "a row id was used twice");
        let pending = subject.lab.contents(handle).await;
        assert_eq!(pending, expected_contents[expected.passed..]);
        assert_eq!(handle.pending(), expected.pending());
        assert_eq!(opened.held, expected.held);
        assert_eq!(opened.was_ended, expected.ended);
        let mut keys = opened.event_ids;
        keys.sort_unstable();
        let mut expected_keys: Vec<String> = expected.messages.iter().filter_map(|message| message.2.clone()).collect();
        expected_keys.sort_unstable();
        assert_eq!(keys, expected_keys);
        assert_eq!(subject.lab.store.bind_stream(handle, &number.to_string(), NOW).await.unwrap().settled, expected.seq);
    }
    let pending: u64 = model.sessions.iter().map(ModelSession::pending).sum();
    let held: usize = model.sessions.iter().map(|session| session.held.len()).sum();
    assert_eq!((subject.lab.metrics.pending.get(), subject.lab.metrics.held.get()), (pending, held as u64));
    let backlog = subject.lab.store.backlog(None, 99).await.unwrap();
    assert_eq!(backlog.iter().map(|session| session.handle.pending()).sum::<u64>(), pending);
    // Nothing of this looks like damage.
    assert_eq!(subject.lab.store.check(false).await.unwrap(), Checked::Whole);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn store_and_model_agree_through_every_reopening(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let root = tempfile::tempdir().unwrap();
            let lab = Lab::open(&Subject::settings(&root, 0));
            let mut subject = Subject { root, home: 0, lab };
            let mut model = Model::default();
            for (number, step) in steps.into_iter().enumerate() {
                subject = take(subject, &mut model, step, number).await;
                compare(&subject, &model).await;
            }
        });
    }
}
