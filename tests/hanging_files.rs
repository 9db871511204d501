//! A secret on a file system that does not answer, at a start and at a reload: only delivery needs it, so only delivery
//! waits. (A knock that hangs there: see `lifecycle`.)

use std::time::{Duration, Instant};

use crate::support::disk::HANGS;
use crate::support::eventually::SOON;
use crate::support::supervisor::Supervisor;
use crate::support::{Daemon, ManagerApi, Producer, Variant, disk, soon};

const MAC: &str = "68:25:dd:ba:39:78";

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
}

#[test]
fn a_secret_that_does_not_answer_at_a_start_keeps_nobody_from_being_heard_and_is_used_when_it_does() {
    if !disk::strace_works() {
        return;
    }
    let silence = Duration::from_secs(20);
    let api = api();
    let mut daemon = Daemon::builder().api(&api).prepare();
    let secret = daemon.secret_file().display().to_string();
    let mut words = disk::inject("openat", &format!("delay_enter={}", silence.as_micros()));
    words.extend(["-P".to_owned(), secret.clone()]);
    daemon.set_wrapper(&words);
    let began = Instant::now();
    daemon.start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    producer.wait_until_acked();
    soon("the gate is closed", || daemon.status()["gate"]["kind"] == "operator");
    assert!(began.elapsed() < silence, "it waited for the secret");
    let warned = |line: &str| line.contains("WARN") && line.contains(&format!("{secret} does not answer"));
    assert!(daemon.log().lines().any(warned), "it is said which file");
    assert!(daemon.status()["gate"]["reason"].as_str().is_some_and(|reason| reason.contains("does not answer")));
    soon("it is delivered when the file has answered", || api.rows("s").len() == 1);
}

#[test]
fn a_secret_that_does_not_answer_at_a_reload_keeps_the_old_settings_and_holds_up_nobody() {
    if !disk::strace_works() {
        return;
    }
    let api = api();
    let supervisor = Supervisor::new();
    let mut daemon = supervisor.fed_by(Daemon::builder().api(&api)).prepare();
    daemon.spawn();
    supervisor.wait_for("READY=1");
    let mut producer = Producer::connected(&daemon, MAC, "s");
    let silence = disk::Injection::attach(daemon.pid(), "openat", HANGS, &[&daemon.secret_file()]);
    daemon.set("session.batch_size", "1");
    daemon.hup();
    let end = Instant::now() + SOON;
    while !daemon.log().contains("the old settings stay") {
        assert!(Instant::now() < end, "the reload never ended");
        producer.say(1, "meanwhile");
        producer.wait_until_acked();
        assert!(supervisor.feedings(Duration::from_secs(1)) > 0, "the watchdog is fed");
    }
    let said = format!("{} does not answer", daemon.secret_file().display());
    assert!(daemon.log().lines().any(|line| line.contains("ERROR") && line.contains(&said)), "it is said which file");
    assert!(!daemon.log().contains("setting changed"), "nothing was applied");
    drop(silence);
    daemon.hup();
    soon("the next reload finds it", || {
        supervisor.feedings(Duration::from_millis(100));
        daemon.log().contains("configuration reloaded")
    });
    // A stop is heard while a reload hangs.
    let silence = disk::Injection::attach(daemon.pid(), "openat", HANGS, &[&daemon.secret_file()]);
    daemon.hup();
    supervisor.wait_for("RELOADING=1");
    daemon.signal("TERM");
    supervisor.wait_for("STOPPING=1");
    soon("it has done all but leave its traced threads", || {
        supervisor.feedings(Duration::from_millis(100));
        daemon.log().contains("INFO stopped")
    });
    drop(silence);
    assert!(daemon.wait(SOON).success());
}
