//! `chat-historyd`: a sidecar that brings every sentence spoken with a voice agent to the Manager API.
//!
//! ```text
//! intake ──▶ protocol ──▶ session ──▶ store ──▶ upload ──▶ manager_api
//! (bytes)    (events)     (actors)    (SQLite)  (due work)  (HTTP)
//!                                       └──▶ history (backup, transcripts, export)
//! observe, systemd, signals look on; daemon alone knows everybody and orders the shutdown
//! ```
//!
//! The failure path is the normal path: every message is durable in the store before it is acknowledged, and the
//! uploader only ever sends what the store holds.

pub mod check_config;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod history;
pub mod history_command;
pub mod intake;
pub mod lane;
pub mod manager_api;
pub mod observe;
pub mod patience;
pub mod protocol;
pub mod send;
pub mod session;
pub mod status_command;
pub mod store;
pub mod systemd;
pub mod upload;
