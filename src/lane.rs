//! Threads that each drive a runtime of their own: one takes lines in, one sends reports, and the main thread looks after
//! both.
//!
//! Promises: what is slow or stuck on one lane stops no other: a report of megabytes delays no ack, and a log that nobody
//! reads stops who logs. Work stays on its thread: no task moves between cores, none wakes a second thread to help.
//! A lane lives as long as the process. Called by the daemon at its start.

use std::io;
use std::sync::mpsc;

use tokio::runtime::{Builder, Handle};

/// Threads for blocking work a lane may start: mostly short reads of the database.
const BLOCKING_THREADS: usize = 8;

/// Starts a lane and answers the way onto it.
///
/// # Errors
/// When the system gives no thread or descriptor for it.
pub fn start(name: &str) -> io::Result<Handle> {
    let (tell, told) = mpsc::channel();
    let drive = move || {
        // Made where it is driven: a runtime must not be dropped on a thread that drives another.
        match Builder::new_current_thread().max_blocking_threads(BLOCKING_THREADS).enable_all().build() {
            Ok(runtime) => {
                let _ = tell.send(Ok(runtime.handle().clone()));
                runtime.block_on(std::future::pending::<()>());
            }
            Err(failure) => drop(tell.send(Err(failure))),
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(drive)?;
    told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread is gone")))
}
