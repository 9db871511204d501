//! Looks at what may not answer: a file on a network mount whose server is gone, a disk that hangs.
//!
//! Promises: who looks waits no longer than it wants to. Refuses: to end what hangs; its thread is left to it.

use std::sync::mpsc;
use std::time::Duration;

/// What a look finds, or nothing when there is no answer in this time.
pub fn within<T: Send + 'static>(patience: Duration, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (found, finding) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("look".to_owned()).spawn(move || found.send(look())).ok()?;
    finding.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_found_and_what_hangs_is_left_alone() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (_never, answer) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(1), move || answer.recv()), None);
    }
}
