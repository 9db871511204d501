//! The wire protocol, version 1: what a line means, and what the daemon answers.
//!
//! Promises: pure functions over bytes and values; no IO, no clock (the caller passes "now"), bounded work per line.
//! Refuses: to coerce. A value of the wrong type, a chat type of 7, a time that is no time is a [`Refusal`] that names
//! the field, never a guess. No refusal echoes content.
//! Called by `intake` (decoding, replies) and `session` (events).

pub mod decode;
pub mod event;
pub mod extra;
mod fields;
pub mod identity;
mod livekit;
pub mod reply;
pub mod text;
mod time;

pub use decode::{DecodeOptions, decode, starts_a_session};
pub use event::{
    ChatType, Command, Flush, FlushLevel, Line, LiveKitEvent, Message, Refusal, RefusalCode, SessionEnd, SessionStart, Target,
    Transcript, UnixMillis,
};
pub use identity::{MacAddress, SessionId, SessionIdentity};
pub use reply::Reply;
