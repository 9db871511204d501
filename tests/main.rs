//! Behaviours of the real binary: one test binary, a module per kind of behaviour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests: a failed unwrap is a failed test"
)]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::missing_errors_doc,
    clippy::doc_markdown,
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::struct_field_names,
    reason = "tests are read by people, not called by other crates"
)]

mod api_devices;
mod api_faults;
mod api_outage;
mod api_profile;
mod api_secret;
mod api_tls;
mod changes_fail;
mod check_config;
mod commands;
mod delivery;
mod disk_faults;
mod doctor;
mod fuzz;
mod hanging_files;
mod history;
mod history_changes;
mod history_check;
mod history_export;
mod history_forget;
mod history_owner;
mod history_pdf;
mod history_search;
mod hostile_input;
mod lifecycle;
mod limits;
mod livekit;
mod logging;
mod metrics;
mod ordering;
mod packaging;
mod recovery;
mod reload;
mod security;
mod session_ends;
mod status;
mod support;
mod support_self;
mod wrong_clock;
