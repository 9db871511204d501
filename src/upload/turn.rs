//! One turn of one session: its pending messages, strictly in order, one report in flight.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::{debug, error, warn};

use crate::config::{OnLongContent, Settings};
use crate::manager_api::{
    AnsweredBy, Attempt, ManagerApi, Report, ServerProfile, Verdict, audio_to_send, encode, idempotency_key, next_part,
    report_time, session_id_within, truncate,
};
use crate::observe::metrics::Label;
use crate::observe::{Metrics, Throttle};
use crate::protocol::UnixMillis;
use crate::store::{
    Cursor, Disposition, Passed, PendingMessage, RejectReason, Rejection, RowId, SessionHandle, Store, StoreError,
};

/// Messages of a session in one turn, and reports accepted, for a long message is many; then it is the next session's turn.
pub const TURN_MESSAGES: usize = 64;

/// Messages found invalid with nothing accepted between, after which that may be the server's fault.
const INVALID_IN_A_ROW: u64 = 3;

/// Text read ahead for a turn, but one message at least. There are four turns for each request that may be in flight, so audio
/// is not read ahead: it is there while its report is in flight.
const PAGE_BYTES: usize = 512 * 1024;

/// What turns and the scheduler share.
#[derive(Debug, Default)]
pub struct Progress {
    /// Reports accepted since the start, of all sessions.
    pub accepted: AtomicU64,
    /// Messages found invalid since the last report that was accepted.
    pub invalid: AtomicU64,
    /// The gate is closed or lets fewer in, or the server's profile must be asked for first: turns end after the report they
    /// have in flight.
    pub hold: AtomicBool,
    /// Told when `hold` is set, for those who wait for their turn to send.
    pub held: Notify,
    /// Messages that are cut are told of once a minute, whichever session they are of.
    pub cut: Mutex<Throttle>,
}

/// What a turn needs.
pub struct Turn {
    /// The session.
    pub handle: Arc<SessionHandle>,
    /// The store it reads from and advances in.
    pub store: Store,
    /// The server.
    pub api: ManagerApi,
    /// What the server can store.
    pub profile: ServerProfile,
    /// The settings of the moment.
    pub settings: Arc<Settings>,
    /// The books.
    pub metrics: Arc<Metrics>,
    /// Shared with the scheduler.
    pub progress: Arc<Progress>,
    /// One permit for each request that may be in flight.
    pub requests: Arc<Semaphore>,
    /// Messages at most, and reports accepted.
    pub limit: usize,
    /// Run although the gate is closed: to knock.
    pub knocks: bool,
    /// Messages taken in up to then are rejected if the server still does not know their device.
    pub expire_before: Option<UnixMillis>,
    /// Messages given up, by reason.
    pub losses: BTreeMap<&'static str, u64>,
}

/// What came of a turn.
#[derive(Default)]
pub struct TurnEnd {
    /// Reports accepted: messages, or parts of them.
    pub reports: u64,
    /// Messages accepted or rejected.
    pub passed: u64,
    /// The server said something about a message, if only that it is invalid or of an unknown device.
    pub answered: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// A request that failed keeps its place until that is judged: nobody sends into an outage meanwhile.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// How a turn ended.
#[derive(Debug, Default)]
pub enum Outcome {
    /// Nothing is pending.
    #[default]
    Drained,
    /// Its share is done and there is more, or the gate closed.
    More,
    /// An attempt failed, or was refused.
    Failed(Failure),
    /// The server does not know the device.
    Unregistered,
    /// The store could not be read: the session is held.
    Unreadable(StoreError),
}

/// A failed attempt.
#[derive(Debug)]
pub struct Failure {
    /// The message.
    pub row: RowId,
    /// The verdict: [`Verdict::Later`], [`Verdict::Refused`] or [`Verdict::Operator`].
    pub verdict: Verdict,
    /// It says something about the message, not only about the way to the server: it may count as a strike.
    pub about_the_message: bool,
    /// Reports accepted, of all sessions, when the attempt began.
    pub began: u64,
    /// A connection could not be made, and nothing was accepted since the attempt began.
    pub unreachable: bool,
    /// If it was not the server, the next attempt may lead to another one.
    pub answered_by: AnsweredBy,
}

impl Turn {
    /// Runs the turn.
    ///
    /// # Cancel safety
    /// Dropped in the middle of a report, that report may have been stored; its repetition carries the same key.
    pub async fn run(mut self) -> TurnEnd {
        let mut end = TurnEnd::default();
        end.outcome = match self.work(&mut end).await {
            Outcome::Unregistered => self.expire(&mut end).await,
            outcome => outcome,
        };
        for (reason, messages) in &self.losses {
            error!(mac = %self.handle.identity.mac.short(), reason, messages, "messages are rejected: they will never be delivered");
        }
        end
    }

    async fn work(&mut self, end: &mut TurnEnd) -> Outcome {
        let mut left = self.limit;
        loop {
            let page = match self.page(left).await {
                Ok(page) if page.is_empty() => return Outcome::Drained,
                Ok(page) => page,
                Err(error) => return Outcome::Unreadable(error),
            };
            for message in page {
                if self.is_held() {
                    return Outcome::More;
                }
                left -= 1;
                if !self.is_passed_over(&message).await
                    && let Err(outcome) = self.send(&message, end).await
                {
                    return outcome;
                }
                end.passed += 1;
            }
            if self.handle.pending() == 0 {
                // What comes from now on is an arrival of its own.
                return Outcome::Drained;
            }
            if left == 0 {
                return Outcome::More;
            }
        }
    }

    /// Nothing is to be sent now, but for the one who knocks.
    fn is_held(&self) -> bool {
        !self.knocks && self.progress.hold.load(Ordering::Relaxed)
    }

    /// Rejects what has waited too long for a device that is still not registered.
    async fn expire(&mut self, end: &mut TurnEnd) -> Outcome {
        let Some(before) = self.expire_before else { return Outcome::Unregistered };
        loop {
            let page = match self.page(TURN_MESSAGES).await {
                Ok(page) if page.is_empty() => return Outcome::Drained,
                Ok(page) => page,
                Err(error) => return Outcome::Unreadable(error),
            };
            for message in page {
                if !self.is_passed_over(&message).await {
                    if message.recorded > before {
                        return Outcome::Unregistered;
                    }
                    self.reject(message.row, RejectReason::DeviceNotRegistered, None).await;
                }
                end.passed += 1;
            }
        }
    }

    /// The session's next messages.
    async fn page(&self, limit: usize) -> Result<Vec<PendingMessage>, StoreError> {
        self.store.pending(&self.handle, limit, PAGE_BYTES).await
    }

    /// What is not to be sent is passed over.
    async fn is_passed_over(&mut self, message: &PendingMessage) -> bool {
        if self.handle.has_forgotten(message.row) {
            self.pass(message.row, Passed::default()).await;
            return true;
        }
        match message.disposition {
            Disposition::Send => return false,
            Disposition::KeepOnly => self.pass(message.row, Passed::default()).await,
            Disposition::Damaged => self.reject(message.row, RejectReason::Damaged, None).await,
        }
        true
    }

    async fn reject(&mut self, row: RowId, reason: RejectReason, answer: Option<String>) {
        self.pass(row, Passed::rejected(row, Rejection { reason, answer })).await;
    }

    /// Sends a message in as many parts as the server's limit wants; one that the server finds invalid is rejected.
    async fn send(&mut self, message: &PendingMessage, end: &mut TurnEnd) -> Result<(), Outcome> {
        let limit = self.profile.content_limit;
        // A message that began in parts goes on in parts, whatever the settings say by now.
        let begun = self.handle.sent_of(message.row) > 0;
        let content = match self.settings.manager_api.on_long_content {
            OnLongContent::Truncate if !begun => truncate(&message.content, limit),
            OnLongContent::Truncate | OnLongContent::Split => Cow::Borrowed(message.content.as_str()),
        };
        // The text is worth more than the sound: what stands before a server may find the two too large.
        let mut audio_is_too_large = false;
        loop {
            let permit = self.permit().await?;
            // That may have taken long.
            if self.handle.has_forgotten(message.row) {
                self.pass(message.row, Passed::default()).await;
                return Ok(());
            }
            let Cursor { row, last_report, .. } = self.handle.cursor();
            let offset = self.handle.sent_of(message.row);
            let part = next_part(&content, usize::try_from(offset).unwrap_or(usize::MAX), limit);
            let time = report_time(message.time, last_report, self.profile.unit);
            if begun && part.range.is_empty() {
                // The limit was another one when it began: what is left is white space, which the server refuses.
                self.advance(Cursor { row: message.row, offset: 0, last_report }, Passed::delivered(1)).await;
                return Ok(());
            }
            // The audio belongs to the whole message: it goes with the first part.
            let has_audio = message.has_audio && offset == 0;
            let recorded = if has_audio && self.settings.manager_api.send_audio && !audio_is_too_large {
                self.store.audio(message.row).await.map_err(Outcome::Unreadable)?
            } else {
                None
            };
            let audio = recorded.as_deref().and_then(audio_to_send);
            let report = Report {
                mac: self.handle.identity.mac,
                session_id: &session_id_within(self.handle.identity.session_id.as_str(), self.profile.session_id_limit),
                chat_type: message.chat_type,
                content: content.get(part.range.clone()).unwrap_or_default(),
                audio,
                time,
                unit: self.profile.unit,
            };
            let body = encode(&report, self.settings.manager_api.escape_html);
            let with_audio = audio.is_some();
            drop(recorded);
            let accepted_before = self.progress.accepted.load(Ordering::Relaxed);
            let attempt = self.api.report(body, &idempotency_key(message.uuid, &part)).await;
            self.book(&attempt);
            match &attempt.verdict {
                Verdict::Delivered => {
                    drop(permit);
                    self.progress.accepted.fetch_add(1, Ordering::Relaxed);
                    self.progress.invalid.store(0, Ordering::Relaxed);
                    end.reports += 1;
                    // Counted when it is through: once a message, not at every attempt.
                    self.metrics.messages_split.add(u64::from(offset == 0 && !part.is_last));
                    self.metrics.audio_not_sent.add(u64::from(has_audio && !with_audio));
                    if matches!(content, Cow::Owned(_)) {
                        self.tell_of_cut();
                    }
                    if part.is_last {
                        self.advance(Cursor { row: message.row, offset: 0, last_report: time }, Passed::delivered(1)).await;
                        return Ok(());
                    }
                    self.handle.begin(message.row);
                    self.advance(Cursor { row, offset: part.range.end as u64, last_report: time }, Passed::default()).await;
                    if end.reports >= self.limit as u64 {
                        return Err(Outcome::More);
                    }
                }
                Verdict::Rejected { answer } if self.is_believed_invalid() => {
                    drop(permit);
                    end.answered = true;
                    self.reject(message.row, RejectReason::Invalid, Some(answer.clone())).await;
                    return Ok(());
                }
                Verdict::Unregistered { .. } => {
                    end.answered = true;
                    return Err(Outcome::Unregistered);
                }
                Verdict::Refused { .. } if attempt.status == Some(413) && with_audio => audio_is_too_large = true,
                _ => {
                    end.permit = permit;
                    let nothing_else = self.progress.accepted.load(Ordering::Relaxed) == accepted_before;
                    // "Too busy" and "never connected" are no words about this message.
                    let busy = matches!(attempt.status, Some(408 | 425 | 429)) || asks_to_wait(&attempt.verdict);
                    return Err(Outcome::Failed(Failure {
                        row: message.row,
                        about_the_message: !busy && !attempt.never_connected(),
                        began: accepted_before,
                        unreachable: attempt.never_connected() && nothing_else,
                        answered_by: attempt.answered_by(),
                        verdict: match attempt.verdict {
                            Verdict::Rejected { answer } => Verdict::Refused { answer },
                            verdict => verdict,
                        },
                    }));
                }
            }
        }
    }

    /// Whether a message is invalid because the server says so. One that says so of everything wants something else than it
    /// did: whether it is the message's fault shows when others get through.
    fn is_believed_invalid(&self) -> bool {
        self.progress.invalid.fetch_add(1, Ordering::Relaxed) < INVALID_IN_A_ROW
    }

    /// Waits until a request may be in flight. Who knocks waits for nobody: what hangs may hang for long.
    async fn permit(&self) -> Result<Option<OwnedSemaphorePermit>, Outcome> {
        if self.knocks {
            return Ok(None);
        }
        let held = self.progress.held.notified();
        if self.is_held() {
            return Err(Outcome::More);
        }
        tokio::select! {
            biased;
            () = held => Err(Outcome::More),
            permit = Arc::clone(&self.requests).acquire_owned() => if self.is_held() { Err(Outcome::More) } else { Ok(permit.ok()) },
        }
    }

    fn tell_of_cut(&self) {
        self.metrics.messages_truncated.increment();
        let mac = self.handle.identity.mac.short();
        if let Some(more) = self.progress.cut.lock().unwrap_or_else(PoisonError::into_inner).permits(Instant::now()) {
            warn!(%mac, more, "a message was cut to what the server can hold (manager_api.on_long_content); the store has it whole");
        } else {
            debug!(%mac, "a message was cut to what the server can hold");
        }
    }

    fn book(&self, attempt: &Attempt) {
        self.metrics.attempts.increment(attempt.verdict.outcome());
        if attempt.status.is_some() {
            self.metrics.request_duration_seconds.observe_duration(attempt.elapsed);
        }
        if attempt.verdict.is_ambiguous() {
            self.metrics.ambiguous.increment();
        }
        debug!(
            mac = %self.handle.identity.mac.short(),
            outcome = attempt.verdict.outcome().as_str(),
            status = attempt.status,
            elapsed = ?attempt.elapsed,
            "report"
        );
    }

    /// Goes on to the next row without having sent this one.
    async fn pass(&mut self, row: RowId, passed: Passed) {
        for (_, rejection) in &passed.rejected {
            *self.losses.entry(rejection.reason.as_str()).or_default() += 1;
        }
        let last_report = self.handle.cursor().last_report;
        self.advance(Cursor { row, offset: 0, last_report }, passed).await;
    }

    /// The next report may start before this cursor is durable, the one after it not: so a kill repeats two at most.
    async fn advance(&mut self, cursor: Cursor, passed: Passed) {
        self.store.advance(&self.handle, cursor, passed);
        self.store.cursor_follows(&self.handle, 1).await;
    }
}

const fn asks_to_wait(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Later { retry_after: Some(_), .. })
}
