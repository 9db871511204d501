//! One buffer actor per MAC/session pair: the place where lines become the order of a conversation.
//!
//! Promises: lines of one session are taken in the order they were handed over; a line that is already there is
//! recognised by `(stream, seq)` or `(session, id)`; what the actor knows is a cache of the store and is reloaded from
//! it whenever the store refused a write, so that memory and store never disagree.
//! Refuses: to grow without bounds (inbox, open sessions, what a session remembers), to end a session because the daemon stops.
//! Called by `intake`; writes to `store`.

pub mod actor;
pub mod agents;
pub mod memory;
pub mod registry;
pub mod turns;
mod words;
mod youngest;

pub use actor::{Batch, Entry, Event, Input, ProducerLink};
pub use registry::{Registry, SessionRef, TooManySessions};
