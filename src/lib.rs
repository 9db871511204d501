//! `chat-historyd`: a sidecar that brings every sentence spoken with a voice agent to the Manager API.
//!
//! ```text
//! intake ──▶ protocol ──▶ session ──▶ store ──▶ upload ──▶ manager_api
//! (bytes)    (events)     (actors)    (SQLite)  (due work)  (HTTP)
//!                                       └──▶ history (backup, transcripts)
//! observe, systemd, signals look on; daemon alone knows everybody and orders the shutdown
//! ```
//!
//! The failure path is the normal path: every message is durable in the store before it is acknowledged, and the
//! uploader only ever sends what the store holds.

pub mod config;
pub mod observe;
pub mod protocol;
pub mod store;
