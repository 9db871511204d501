//! Real disks that are full or read-only: a small tmpfs in a mount namespace of its own. Where namespaces are not allowed
//! the tests say so and pass.

use std::process::Command;

use super::*;

/// Set for the inner half of a test: where the small disk is.
const DISK: &str = "CHAT_HISTORYD_TEST_DISK";

/// Runs the ignored test `inner` with a tmpfs of 1 MiB.
fn on_a_small_disk(inner: &str) {
    let place = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m tmpfs \"$0\" || exit 77; exec \"$1\" --exact \"$2\" --ignored --nocapture";
    let result = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(place.path())
        .arg(std::env::current_exe().unwrap())
        .arg(format!("store::tests::disk::{inner}"))
        .env(DISK, place.path())
        .output();
    match result {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "the inner test did not run: {said}");
        }
        Ok(output) if output.status.code() == Some(77) => eprintln!("SKIPPED: no tmpfs may be mounted here"),
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("unshare: ") => {
            eprintln!("SKIPPED: no namespaces here");
        }
        Ok(output) => panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("SKIPPED: no unshare here: {error}"),
    }
}

fn small_disk() -> StoreSettings {
    let disk = std::env::var_os(DISK).expect("run by the outer half");
    StoreSettings { durability: Durability::Fsync, ..settings(Path::new(&disk)) }
}

#[test]
fn a_full_disk_is_survived_from_memory() {
    on_a_small_disk("inner_full_disk");
}

#[tokio::test]
#[ignore = "the inner half of a_full_disk_is_survived_from_memory"]
async fn inner_full_disk() {
    let settings = small_disk();
    let ballast = settings.directory.parent().unwrap().join("ballast");
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["before"])).await;
    // Everything but nothing: the log cannot grow by a page.
    let _ = std::fs::write(&ballast, vec![0; 2 << 20]);
    let text = "x".repeat(3000);
    let mut outcomes = Vec::new();
    for _ in 0..100 {
        outcomes.push(lab.send(write_of(&session, &[&text])).await);
    }
    eventually("the disk is full", || lab.store.health().failing.is_some() && lab.store.health().shelf_messages > 0).await;
    eventually("all are taken in", || session.pending() == 101).await;
    let all = lab.store.pending(&session, 999, usize::MAX).await.unwrap();
    assert_eq!(all.len(), 101, "all is readable, from the store and from memory");
    lab.deliver(&session, all[50].row, 51).await;
    assert_eq!(outcomes.remove(0).await.unwrap(), Settled::Durable);
    // A new session can begin on a full disk.
    let other = lab.session("b").await.handle;
    let started = lab.send(write_of(&other, &["elsewhere"])).await;
    eventually("it stands on the shelf", || other.pending() == 1).await;
    assert_eq!(lab.contents(&other).await, ["elsewhere"]);
    std::fs::remove_file(&ballast).unwrap();
    eventually("the store works again", || lab.store.health().failing.is_none()).await;
    for outcome in outcomes {
        assert_eq!(outcome.await.unwrap(), Settled::Durable);
    }
    assert_eq!(started.await.unwrap(), Settled::Durable);
    lab.store.clone().close().await;
    drop((session, other, lab));
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    assert_eq!((session.pending(), lab.contents(&session).await.len()), (50, 50));
    assert_eq!(lab.metrics.pending_at_start.get(), 51);
}

/// Runs the ignored test `inner` under strace, which makes system calls fail.
fn under_injection(inner: &str, injection: &str) {
    let place = tempfile::tempdir().unwrap();
    let result = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync,pwrite64", "-e", injection])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("store::tests::disk::{inner}"), "--ignored", "--nocapture"])
        .env(DISK, place.path())
        .output();
    match result {
        Ok(output) if output.status.success() => assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed")),
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("strace: ") => eprintln!("SKIPPED: strace may not trace"),
        Ok(output) => {
            panic!("{injection}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        }
        Err(error) => eprintln!("SKIPPED: no strace here: {error}"),
    }
}

#[test]
fn failing_syncs_and_writes_lose_and_double_nothing() {
    for injection in [
        "inject=fsync,fdatasync:error=EIO:when=4+7",
        "inject=pwrite64:error=EIO:when=60+41",
        "inject=pwrite64:error=EROFS:when=70+37",
    ] {
        under_injection("inner_failing_calls", injection);
    }
}

#[tokio::test]
#[ignore = "the inner half of failing_syncs_and_writes_lose_and_double_nothing"]
async fn inner_failing_calls() {
    let settings = small_disk();
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let expected: Vec<String> = (0..25).map(|number| number.to_string()).collect();
    for text in &expected {
        assert_eq!(lab.write(write_of(&session, &[text])).await, Settled::Durable);
    }
    assert!(lab.metrics.store_errors.get() > 0, "nothing failed");
    assert_eq!(lab.metrics.stores_salvaged.get(), 0, "a disk that says no is no damage");
    assert_eq!(lab.contents(&session).await, expected);
    lab.store.clone().close().await;
    drop((session, lab));
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    assert_eq!(lab.contents(&session).await, expected);
}
