//! Learns which agent a device belongs to, in the background: it serves the archive and the backups. Delivery never
//! waits for it, and nothing is lost without it.
//!
//! Promises: one question at a time, and only while the gate is open; an answer ("none" included) is remembered per
//! device for an hour, and that a server has no such endpoint as long; nothing beyond a reload.
//! Source: Manager API, `GET {url}/agent/device/{mac12}/agent-id`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::manager_api::{AgentLookup, ManagerApi};
use crate::protocol::MacAddress;
use crate::store::{SessionHandle, Store};

/// Questions that may wait. One more is not asked: the session's next opening asks again.
const QUEUE: usize = 1_024;

/// Devices remembered before the memory starts anew.
const REMEMBERED: usize = 10_000;

/// How long an answer is believed: a device may get another agent, or its first, and a server the endpoint.
const BELIEVED: Duration = Duration::from_secs(3600);

/// What the server said.
#[derive(Default)]
struct Known {
    agents: HashMap<MacAddress, (Instant, Option<String>)>,
    /// When it said that it has no such endpoint.
    without_endpoint: Option<Instant>,
}

impl Known {
    /// The device's agent, or that it has none.
    fn agent(&self, mac: MacAddress, now: Instant) -> Option<&Option<String>> {
        self.agents.get(&mac).filter(|(since, _)| now < *since + BELIEVED).map(|(_, agent_id)| agent_id)
    }

    fn remember(&mut self, mac: MacAddress, agent_id: Option<String>, now: Instant) {
        if self.agents.len() >= REMEMBERED {
            self.agents.clear();
        }
        self.agents.insert(mac, (now, agent_id));
    }

    fn has_endpoint(&self, now: Instant) -> bool {
        self.without_endpoint.is_none_or(|since| now >= since + BELIEVED)
    }
}

/// Where actors put their questions.
#[derive(Clone)]
pub struct AgentDirectory {
    questions: Option<mpsc::Sender<Weak<SessionHandle>>>,
}

/// The side that answers them.
pub struct AgentLookups {
    questions: mpsc::Receiver<Weak<SessionHandle>>,
}

impl AgentDirectory {
    /// A directory and the side to be run by the daemon.
    #[must_use]
    pub fn new() -> (Self, AgentLookups) {
        let (sender, questions) = mpsc::channel(QUEUE);
        (Self { questions: Some(sender) }, AgentLookups { questions })
    }

    /// A directory that never asks.
    #[must_use]
    pub const fn silent() -> Self {
        Self { questions: None }
    }

    pub(super) fn look_up(&self, handle: &Arc<SessionHandle>) {
        if let Some(questions) = &self.questions {
            // Full: the next opening asks again.
            let _ = questions.try_send(Arc::downgrade(handle));
        }
    }
}

impl AgentLookups {
    /// Answers questions until all actors are gone. `api` is `None` while no URL is configured; `gate_open` tells
    /// whether the server is worth asking.
    pub async fn run(mut self, store: Store, mut api: watch::Receiver<Option<ManagerApi>>, mut gate_open: watch::Receiver<bool>) {
        let mut known = Known::default();
        while let Some(question) = self.questions.recv().await {
            if gate_open.wait_for(|open| *open).await.is_err() {
                return;
            }
            // Another server, perhaps: what the last one said does not count.
            if api.has_changed().unwrap_or(false) {
                api.mark_unchanged();
                known = Known::default();
            }
            // Gone and delivered: nobody waits for its agent any more.
            let Some(handle) = question.upgrade() else { continue };
            let mac = handle.identity.mac;
            let now = Instant::now();
            if let Some(agent_id) = known.agent(mac, now) {
                if let Some(agent_id) = agent_id {
                    store.suggest_agent(&handle, agent_id.clone()).await;
                }
                continue;
            }
            let Some(api) = api.borrow().clone() else { continue };
            if !known.has_endpoint(now) {
                continue;
            }
            let answer = match api.agent_id(mac).await {
                AgentLookup::Found(agent_id) => Some(agent_id),
                AgentLookup::None => None,
                AgentLookup::NoEndpoint => {
                    debug!("the server has no agent lookup: it is not asked again for a while");
                    known.without_endpoint = Some(now);
                    continue;
                }
                AgentLookup::Failed { reason } => {
                    debug!(mac = %mac.short(), reason, "the agent lookup failed: the next session asks again");
                    continue;
                }
            };
            known.remember(mac, answer.clone(), now);
            if let Some(agent_id) = answer {
                store.suggest_agent(&handle, agent_id).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_for_an_hour() {
        let (mut known, now, mac) = (Known::default(), Instant::now(), MacAddress::from_octets([1; 6]));
        known.remember(mac, None, now);
        known.without_endpoint = Some(now);
        let later = now + BELIEVED;
        let before = later.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        assert_eq!((known.agent(mac, before), known.agent(mac, later)), (Some(&None), None));
        assert_eq!((known.has_endpoint(before), known.has_endpoint(later)), (false, true));
        known.remember(mac, Some("agent".to_owned()), later);
        assert_eq!(known.agent(mac, later), Some(&Some("agent".to_owned())));
    }
}
