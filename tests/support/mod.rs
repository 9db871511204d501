//! The test ground: the real binary, a stand-in Manager API over a real MariaDB, a producer, and the oracle.
//!
//! Promises: everything started here dies with the test process (even when that is killed), lives in private temporary
//! directories and on loopback, and waits only through [`eventually`].
//! Refuses: to look inside the daemon. Faults come from outside; what is known of it comes from its sockets.

#![allow(dead_code, unused_imports, reason = "not every test module uses every tool")]

pub mod agent;
pub mod canary;
pub mod clock;
pub mod daemon;
pub mod database;
pub mod disk;
pub mod eventually;
pub mod guard;
pub mod history;
pub mod loop_disk;
pub mod manager_api;
pub mod mariadb;
pub mod oracle;
pub mod supervisor;

pub use agent::{Agent, Producer};
pub use daemon::Daemon;
pub use eventually::{eventually, soon};
pub use manager_api::{Endpoint, Fault, ManagerApi, Rule, Variant};
pub use oracle::Oracle;

/// Says that a test could not run here, past the test runner's capturing.
pub fn skipped(why: &str) {
    use std::io::Write;
    // In one piece: other tests write meanwhile, and tests/run counts these lines.
    let line = format!("\nSKIPPED {}: {why}\n", std::thread::current().name().unwrap_or_default());
    let _ = std::io::stderr().write_all(line.as_bytes());
}
