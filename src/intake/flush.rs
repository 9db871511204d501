//! The answer to a `flush`: waits, beside the connection, until the lines before it are durable or delivered.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::protocol::reply::Reply;
use crate::protocol::{Flush, FlushLevel};
use crate::session::actor::{Reached, Unsettled};
use crate::upload::Deliveries;

/// Waits for the barrier behind the flush's lines, then, if that was asked for, for their delivery.
///
/// # Cancel safety
/// The session stays due.
pub(super) async fn answer(flush: Flush, barrier: oneshot::Receiver<Reached>, deliveries: &Deliveries) -> Reply {
    let Flush { id, level, timeout } = flush;
    let deadline = Instant::now() + timeout.max(Duration::ZERO);
    match timeout_at(deadline, barrier).await {
        Ok(Ok(Ok(handle))) => match level {
            FlushLevel::Durable => Reply::Flushed { id, delivered: 0, pending: handle.pending(), ok: true, reason: None },
            FlushLevel::Delivered => {
                let outcome = deliveries.wait(handle, deadline).await;
                let reason = outcome.reason.map(Into::into);
                Reply::Flushed { id, delivered: outcome.delivered, pending: outcome.pending, ok: reason.is_none(), reason }
            }
        },
        Ok(Ok(Err(Unsettled { pending, reason }))) => refusal(id, pending, reason),
        Ok(Err(_)) => refusal(id, 0, "the daemon is stopping"),
        Err(_) => refusal(id, 0, "the time is up before the lines are durable"),
    }
}

/// The flush cannot be fulfilled soon.
pub(super) fn refusal(id: Option<String>, pending: u64, reason: &'static str) -> Reply {
    Reply::Flushed { id, delivered: 0, pending, ok: false, reason: Some(reason.into()) }
}
