//! What the process itself takes of the machine, by the kernel's word. Reads `/proc/self`, which no disk can hold up.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

/// The figures; one that the kernel does not tell is null.
pub(super) fn figures() -> Value {
    // The directory that is read is a descriptor, too.
    let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1));
    let max_fds = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
    json!({
        "open_fds": open_fds,
        "max_fds": max_fds,
        "resident_memory_bytes": resident_bytes(),
        "cpu_seconds": cpu_seconds(),
    })
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[allow(clippy::cast_precision_loss, reason = "a microsecond of it is not seen")]
fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    Some((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_all_of_it() {
        let figures = figures();
        for (name, figure) in figures.as_object().unwrap() {
            assert!(figure.as_f64().is_some_and(|figure| figure > 0.0), "{name}: {figure}");
        }
        assert!(figures["open_fds"].as_u64() < figures["max_fds"].as_u64());
    }
}
