//! What others ask of the uploader, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::{Done, UNKNOWN_DEVICE, Uploader, gate_backoff, now};
use crate::store::SessionHandle;
use crate::upload::deliveries::{Delivered, Request, Server, UploadStatus};
use crate::upload::files::FileReader;
use crate::upload::gate::Change;
use crate::upload::queue::Order;

impl Uploader {
    pub(super) fn requested(&mut self, request: Request) {
        match request {
            Request::Heartbeat(answer) => {
                let _ = answer.send(());
            }
            Request::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Request::Wait { handle, reply } => self.wait(handle, reply),
            Request::Stop { grace, done } => self.stop(grace, done),
            Request::Reload(server) => self.reload(server),
        }
    }

    fn reload(&mut self, server: Server) {
        let settings = self.settings.borrow().clone();
        if let Server::Changed(_) = server {
            // Turns that are under way keep the old ones to their end: what hangs at the old server is no request at the new.
            self.requests_in_flight = Arc::new(Semaphore::new(settings.upload.concurrency));
        } else {
            self.resize(self.gate.concurrency(), settings.upload.concurrency);
        }
        self.gate.reconfigure(settings.upload.concurrency, gate_backoff(&settings));
        self.gate.knock_now(now());
        if let (Server::Unchanged, Some(api)) = (&server, &self.api) {
            let files = self.files.read_again(api);
            self.work.spawn(async move { Done::Files(files.await) });
        }
        if let Server::Changed(api) = server {
            let appeared = self.api.is_none() && api.is_some();
            // What hangs is none of this one's.
            self.files = FileReader::default();
            self.api = api;
            self.profile.known = None;
            self.doubt_profile();
            self.forget_devices();
            self.announce(Change::None);
            if appeared {
                // In this order: what is written meanwhile is then seen twice, never not at all.
                self.store.announce_shelved();
                self.look_through(None);
            }
        }
    }

    /// More or fewer requests may be in flight at the same server.
    fn resize(&self, before: usize, now: usize) {
        self.requests_in_flight.add_permits(now.saturating_sub(before));
        let less = before.saturating_sub(now);
        if let (1.., Ok(less)) = (less, u32::try_from(less)) {
            let permits = Arc::clone(&self.requests_in_flight);
            // As they come back: whoever waits for one waits behind this.
            tokio::spawn(async move { permits.acquire_many_owned(less).await.map(OwnedSemaphorePermit::forget) });
        }
    }

    fn stop(&mut self, grace: Duration, done: oneshot::Sender<()>) {
        self.take_arrivals();
        self.stopping = Some((Instant::now() + grace, done));
        for key in self.queue.keys() {
            // Sleeps are cut short, once: a failing server is not hammered in the time that is left.
            self.queue.cut_backoff_short(key);
            self.evaluate(key);
        }
    }

    fn wait(&mut self, handle: Arc<SessionHandle>, reply: oneshot::Sender<Delivered>) {
        let pending = handle.pending();
        let mac = handle.identity.mac;
        let reason = if pending == 0 {
            None
        } else if self.api.is_none() {
            Some("no manager_api.url is set")
        } else if self.gate.closed().is_some() {
            Some("the gate to the Manager API is closed")
        } else if self.devices.is_waiting(mac) {
            Some(UNKNOWN_DEVICE)
        } else if self.store.health().failing.is_some() {
            Some("the store cannot be written")
        } else {
            let key = handle.key;
            self.queue.enter(handle, Instant::now(), Order::Since(Instant::now())).wait(reply);
            self.evaluate(key);
            return;
        };
        let _ = reply.send(Delivered { delivered: 0, pending, reason });
    }

    fn status(&self) -> UploadStatus {
        let waiting = || self.queue.entries().filter(|entry| entry.handle.pending() > 0);
        let known = |mac| !self.devices.is_waiting(mac);
        UploadStatus {
            closed: self.gate.closed().map(|(why, since)| (why.kind(), why.reason().to_owned(), Instant::from_std(since))),
            configured: self.api.is_some(),
            time_unit: self.profile.known.map(|profile| profile.unit.as_str()),
            sending: self.sending,
            sessions_pending: self.queue.len(),
            backing_off: self.queue.entries().filter(|entry| entry.is_backing_off()).count(),
            devices_waiting: self.devices.count(),
            strikes: self.queue.entries().map(|entry| entry.strikes.most()).max().unwrap_or(0),
            oldest: waiting().map(|entry| entry.since).min(),
            oldest_sendable: waiting().filter(|entry| known(entry.handle.identity.mac)).map(|entry| entry.since).min(),
        }
    }
}
