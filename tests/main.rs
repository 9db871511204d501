//! Behaviours of the real binary: one test binary, a module per kind of behaviour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests: a failed unwrap is a failed test"
)]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::missing_errors_doc,
    clippy::doc_markdown,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    clippy::struct_field_names,
    reason = "tests are read by people, not called by other crates"
)]

mod api_faults;
mod check_config;
mod delivery;
mod hostile_input;
mod lifecycle;
mod livekit;
mod ordering;
mod packaging;
mod recovery;
mod reload;
mod security;
mod support;
mod support_self;
