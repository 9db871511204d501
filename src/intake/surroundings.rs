//! What all connections of the daemon share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::long_lines::LongLines;
use crate::config::Settings;
use crate::observe::{Metrics, Throttle};
use crate::protocol::RefusalCode;
use crate::session::Registry;
use crate::upload::Deliveries;

/// What every connection works with.
#[derive(Clone)]
pub struct Surroundings {
    /// The sessions.
    pub registry: Registry,
    /// Asked by `flush`.
    pub deliveries: Deliveries,
    /// The settings of the moment.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// The books.
    pub metrics: Arc<Metrics>,
    /// The memory that long lines share.
    pub long_lines: LongLines,
    /// Refused lines are told of once a minute for each code, whoever sends them.
    pub refused_lines: Arc<Mutex<HashMap<RefusalCode, Throttle>>>,
    /// So are lines of sessions for which there is no room.
    pub refused_sessions: Arc<Mutex<Throttle>>,
    /// The daemon is stopping: say so, read what is there, end.
    pub draining: CancellationToken,
    /// The time for that is over.
    pub cut_off: CancellationToken,
}

impl Surroundings {
    /// Those of a daemon that has just started.
    #[must_use]
    pub fn new(
        registry: Registry,
        deliveries: Deliveries,
        settings: watch::Receiver<Arc<Settings>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            registry,
            deliveries,
            settings,
            metrics,
            long_lines: LongLines::default(),
            refused_lines: Arc::default(),
            refused_sessions: Arc::default(),
            draining: CancellationToken::new(),
            cut_off: CancellationToken::new(),
        }
    }
}
