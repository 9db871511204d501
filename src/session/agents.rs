//! Learns which agent a device belongs to, in the background: it serves the archive and the backups. Delivery never
//! waits for it, and nothing is lost without it.
//!
//! Promises: one question at a time, and only while the gate is open; an answer ("none" included) is remembered per
//! device; a server without the endpoint is asked once.
//! Source: Manager API, `GET {url}/agent/device/{mac12}/agent-id`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::manager_api::{AgentLookup, ManagerApi};
use crate::protocol::MacAddress;
use crate::store::{SessionHandle, Store};

/// Questions that may wait. One more is not asked: the session's next opening asks again.
const QUEUE: usize = 1_024;

/// Devices remembered before the memory starts anew.
const REMEMBERED: usize = 10_000;

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
        let mut known: HashMap<MacAddress, Option<String>> = HashMap::new();
        let mut has_endpoint = true;
        while let Some(question) = self.questions.recv().await {
            if gate_open.wait_for(|open| *open).await.is_err() {
                return;
            }
            // Another server, perhaps: what the last one said does not count.
            if api.has_changed().unwrap_or(false) {
                api.mark_unchanged();
                known.clear();
                has_endpoint = true;
            }
            // Gone and delivered: nobody waits for its agent any more.
            let Some(handle) = question.upgrade() else { continue };
            let mac = handle.identity.mac;
            if let Some(agent_id) = known.get(&mac) {
                if let Some(agent_id) = agent_id {
                    store.suggest_agent(&handle, agent_id.clone()).await;
                }
                continue;
            }
            let Some(api) = api.borrow().clone() else { continue };
            if !has_endpoint {
                continue;
            }
            let answer = match api.agent_id(mac).await {
                AgentLookup::Found(agent_id) => Some(agent_id),
                AgentLookup::None => None,
                AgentLookup::NoEndpoint => {
                    debug!("the server has no agent lookup: it is not asked again");
                    has_endpoint = false;
                    continue;
                }
                AgentLookup::Failed { reason } => {
                    debug!(mac = %mac.short(), reason, "the agent lookup failed: the next session asks again");
                    continue;
                }
            };
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(mac, answer.clone());
            if let Some(agent_id) = answer {
                store.suggest_agent(&handle, agent_id).await;
            }
        }
    }
}
