//! Nothing outlives the tests: one small shell watches a pipe from this process and, when it closes (end, panic or
//! `kill -9` alike), kills every process registered here and removes every directory.
//!
//! A parent-death signal would not do: it fires when the *thread* that started a child ends, and tests are threads.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r what rest; do
    case $what in
        +) pids="$pids$rest " ;;
        -) case "$pids" in *" $rest "*) pids="${pids%% $rest *} ${pids#* $rest }" ;; esac ;;
        d) set -- "$@" "$rest" ;;
    esac
done
for pid in $pids; do kill -9 "$pid"; done
for directory; do rm -rf -- "$directory" || { sleep 1; rm -rf -- "$directory"; }; done
"#;

fn tell(line: &str) {
    static GUARD: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    #[allow(clippy::zombie_processes, reason = "it outlives this process on purpose")]
    let guard = GUARD.get_or_init(|| {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("cannot start sh, which cleans up after the tests");
        Mutex::new(shell.stdin.take().expect("piped"))
    });
    let mut pipe = guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let _ = writeln!(pipe, "{line}");
}

/// Kill this process when the tests are over.
pub fn kill_at_end(pid: u32) {
    tell(&format!("+ {pid}"));
}

/// This process was waited for: its number may be somebody else's from now on.
pub fn forget(pid: u32) {
    tell(&format!("- {pid}"));
}

/// Remove this directory when the tests are over.
pub fn remove_at_end(directory: &Path) {
    tell(&format!("d {}", directory.display()));
}
