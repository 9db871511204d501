//! The HTTP face, and that dashboard and alerts name only what there is.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::disk::SmallDisk;
use crate::support::eventually::{SOON, always, free_port};
use crate::support::{Agent, Daemon, ManagerApi, Producer, Variant, skipped, soon};

const MAC: &str = "68:25:dd:ba:39:78";
const CONTRIB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib");

/// What `promtool check metrics` complains about; `None` where there is none.
pub fn promtool_check(text: &str) -> Option<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() == complaints.trim().is_empty(), "{}: {complaints}", output.status);
    Some(complaints)
}

struct Face {
    address: SocketAddr,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Face {
    fn of(daemon: crate::support::daemon::Builder) -> (Daemon, Self) {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let daemon = daemon.set("status.http_listen", &format!("'{address}'")).start();
        (daemon, Self { address })
    }

    fn say(&self, request: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }

    fn get(&self, path: &str) -> Answer {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).expect("an answer")
    }
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().unwrap()
}

/// Else the watchdog would end a daemon that does its best.
#[test]
fn who_fills_the_accept_queue_does_not_make_the_daemon_look_dead() {
    let (daemon, face) = Face::of(Daemon::builder().set("socket.max_connections", "16"));
    let (socket, stop) = (daemon.socket(), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::os::unix::net::UnixStream::connect(&socket);
                }
            });
        }
        let answers: Vec<u16> = (0..5).map(|_| face.get("/healthz").status).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(answers, [200; 5]);
    });
}

#[test]
fn metrics_are_clean_and_count_what_happened() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (daemon, face) = Face::of(Daemon::builder().api(&api));
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    for index in 0..4 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    producer.agent().text("no json");
    producer.agent().end();
    api.wait_for_rows("talk", 4);
    soon("all is booked", || {
        let text = face.get("/metrics").body;
        value(&text, "chat_historyd_delivered_total") == 4.0 && value(&text, "chat_historyd_conversation_messages_count") == 1.0
    });
    let answer = face.get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", answer.head);
    let text = &answer.body;
    for (series, expected) in [
        ("chat_historyd_received_total", 5.0),
        ("chat_historyd_pending", 0.0),
        ("chat_historyd_gate_open", 1.0),
        ("chat_historyd_store_failing", 0.0),
        ("chat_historyd_attempts_total{outcome=\"accepted\"}", 4.0),
        ("chat_historyd_attempts_total{outcome=\"later\"}", 0.0),
        ("chat_historyd_refusals_total{code=\"bad_json\"}", 1.0),
        ("chat_historyd_rejected_total{reason=\"invalid\"}", 0.0),
        ("chat_historyd_request_duration_seconds_count", 4.0),
        ("chat_historyd_request_duration_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("chat_historyd_conversation_messages_bucket{le=\"2.0\"}", 0.0),
        ("chat_historyd_conversation_messages_bucket{le=\"5.0\"}", 1.0),
        ("chat_historyd_conversation_messages_sum", 4.0),
        ("chat_historyd_retries_total", 0.0),
        ("chat_historyd_ambiguous_total", 0.0),
        ("chat_historyd_store_errors_total", 0.0),
    ] {
        assert!((value(text, series) - expected).abs() < f64::EPSILON, "{series} is not {expected}:\n{text}");
    }
    assert!(value(text, "chat_historyd_start_time_seconds") > 1.7e9);
    assert!(value(text, "chat_historyd_disk_free_bytes") > 0.0);
    assert!(!text.contains("39:78") && !text.contains("talk"), "no label names a device or a session");
    match promtool_check(text) {
        Some(complaints) => assert_eq!(complaints, ""),
        None => skipped("promtool is not installed (Debian package prometheus)"),
    }
}

#[test]
fn the_metrics_tell_why_the_gate_is_closed_and_that_of_a_host_without_a_url_is_not() {
    let gates = |face: &Face| {
        let text = face.get("/metrics").body;
        let kinds = ["operator", "outage", "profile_unknown"];
        let closed = kinds.map(|kind| value(&text, &format!("chat_historyd_gate_closed{{kind=\"{kind}\"}}")));
        (value(&text, "chat_historyd_gate_open"), closed)
    };
    let (_daemon, face) = Face::of(Daemon::builder());
    assert_eq!(gates(&face), (0.0, [0.0, 0.0, 0.0]), "no URL: nothing to be alarmed about");
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    // A fixed unit: nothing has to be asked before the first report.
    let (daemon, face) = Face::of(Daemon::builder().api(&api).set("manager_api.report_time_unit", "'seconds'"));
    let mut producer = Producer::connected(&daemon, MAC, "talk");
    assert_eq!(gates(&face), (1.0, [0.0, 0.0, 0.0]));
    api.set_secret("another");
    producer.say(1, "Hello");
    soon("an operator is needed", || gates(&face) == (0.0, [1.0, 0.0, 0.0]));
    api.set_secret(crate::support::manager_api::SECRET);
    soon("the gate opens", || gates(&face) == (1.0, [0.0, 0.0, 0.0]));
    api.stop();
    producer.say(1, "Hello again");
    soon("it is an outage", || gates(&face) == (0.0, [0.0, 1.0, 0.0]));
}

#[test]
fn what_the_command_prints_is_what_the_http_face_tells() {
    let (daemon, face) = Face::of(Daemon::builder());
    let printed = Command::new(crate::support::daemon::binary())
        .args(["status", "--format", "prometheus", "--config"])
        .arg(daemon.config())
        .output()
        .unwrap();
    let told = face.get("/metrics").body;
    // Names, types, help texts and labels; the figures of two moments differ.
    let shape = |text: &str| -> Vec<String> {
        text.lines().map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 }.to_owned()).collect()
    };
    assert_eq!(shape(&String::from_utf8(printed.stdout).unwrap()), shape(&told));
    for name in ["open_fds", "max_fds", "resident_memory_bytes", "cpu_seconds_total", "disk_size_bytes", "shelf_max_bytes"] {
        assert!(value(&told, &format!("chat_historyd_{name}")) > 0.0, "{name}");
    }
}

#[test]
fn the_start_time_never_moves() {
    let (_daemon, face) = Face::of(Daemon::builder());
    let start = || value(&face.get("/metrics").body, "chat_historyd_start_time_seconds");
    let first = start();
    // Over more than a second, so that each part of one is seen: a figure that is made of two clocks wavers.
    always(Duration::from_millis(1_500), "the start stands where it stood: one that moves looks like a restart", || {
        start() == first
    });
}

#[test]
fn a_refused_reload_is_told_until_one_is_taken() {
    let (mut daemon, face) = Face::of(Daemon::builder());
    let successful = || value(&face.get("/metrics").body, "chat_historyd_config_last_reload_successful");
    assert_eq!(successful(), 1.0);
    daemon.set("session.batch_size", "0");
    daemon.hup();
    soon("it is told", || successful() == 0.0);
    daemon.set("session.batch_size", "7");
    daemon.hup();
    soon("it is over", || successful() == 1.0);
}

#[test]
fn a_daemon_on_its_way_out_is_not_ready_and_says_so() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (daemon, face) = Face::of(Daemon::builder().api(&api).set("upload.shutdown_grace", "'60s'"));
    // An answer that never comes keeps the delivery, and with it the shutdown, under way.
    api.fault(crate::support::Fault::HangBeforeHeaders);
    Producer::connected(&daemon, MAC, "talk").say(1, "Hello");
    soon("it is being sent", || daemon.status()["upload"]["sending"] == 1);
    daemon.signal("TERM");
    soon("it is not ready any more", || face.get("/readyz").status == 503);
    let ready = face.get("/readyz").body;
    assert!(ready.starts_with("not ok\nthe daemon is stopping\n"), "{ready}");
    assert_eq!(face.get("/healthz").body, "ok\n", "nothing is wrong with it");
    assert_eq!(daemon.status()["state"], "stopping");
}

#[test]
fn healthy_and_ready_even_behind_a_closed_gate_and_it_says_so() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (daemon, face) = Face::of(Daemon::builder().api(&api));
    assert_eq!((face.get("/healthz").status, face.get("/healthz").body.as_str()), (200, "ok\n"));
    assert_eq!((face.get("/readyz").status, face.get("/readyz").body.as_str()), (200, "ok\n"));
    api.set_secret("another");
    Producer::connected(&daemon, MAC, "talk").say(1, "Hello");
    soon("the gate closes", || daemon.metric("gate_closings") >= 1);
    let ready = face.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.body.starts_with("ok\nthe gate is closed, messages wait: operator: "), "{}", ready.body);
    assert_eq!(value(&face.get("/metrics").body, "chat_historyd_gate_open"), 0.0);
    assert!(!ready.body.contains(crate::support::manager_api::SECRET));
}

#[test]
fn a_store_that_cannot_be_written_is_not_ready_but_healthy() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let store = format!("'{}'", disk.path().join("store").display());
    let (daemon, face) = Face::of(Daemon::builder().wrapper(&disk.wrapper()).set("store.directory", &store));
    disk.fill();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "talk");
    soon("the store fails", || {
        agent.say(1, &"x".repeat(20_000));
        daemon.status()["store"]["failing"].is_object()
    });
    let ready = face.get("/readyz");
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert!(ready.body.starts_with("not ok\nthe store has not been writable for "), "{}", ready.body);
    assert_eq!(face.get("/healthz").status, 200);
    assert_eq!(value(&face.get("/metrics").body, "chat_historyd_store_failing"), 1.0);
}

#[test]
fn only_reading_is_allowed_and_only_what_there_is() {
    let (_daemon, face) = Face::of(Daemon::builder());
    assert_eq!(face.get("/nothing").status, 404);
    let post = face.say(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    assert_eq!(post.status, 405);
    assert!(post.head.contains("allow: get, head"), "{}", post.head);
    let head = face.say(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert!(face.say(long.as_bytes()).is_none_or(|answer| answer.status == 431));
    assert_eq!(face.get("/").status, 200);
    // One request a connection, said as such: what is pipelined behind it is not answered.
    let two = face.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(two.head.contains("connection: close") && !two.body.contains("HTTP/1.1"), "{}", two.head);
    for nonsense in [&b"\x16\x03\x01\x02\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n", b"\0\r\n\r\n"] {
        assert!(face.say(nonsense).is_none_or(|answer| answer.status >= 400), "{nonsense:?}");
    }
    assert_eq!(face.get("/metrics?name=x").status, 200);
    assert_eq!(face.get("/../metrics").status, 404);
}

#[test]
fn connections_that_say_nothing_take_a_bounded_room_and_are_let_go() {
    let (mut daemon, face) = Face::of(Daemon::builder());
    let silent: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(face.address).unwrap()).collect();
    let mut closed = 0;
    for mut stream in &silent {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut said = String::new();
        if stream.read_to_string(&mut said).is_ok() {
            assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("come again\n"), "{said}");
            closed += 1;
        }
    }
    assert!(closed >= 48, "no more than 32 are held: {closed} were sent away at once");
    assert!(Agent::connect(&daemon).is_answered(), "the producers notice nothing");
    // None of these says anything, and yet there is room again.
    soon("the silent ones are let go", || face.say(b"GET / HTTP/1.0\r\n\r\n").is_some());
    assert!(daemon.is_running());
}

#[test]
fn an_address_that_is_taken_costs_the_metrics_until_it_is_free_and_nothing_else() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let daemon = Daemon::builder().set("status.http_listen", &format!("'{address}'")).start();
    let told = || daemon.log().lines().filter(|line| line.contains("ERROR") && line.contains(&address.to_string())).count();
    assert_eq!(told(), 1, "{}", daemon.log());
    assert_eq!(daemon.metric("http_missing"), 1);
    let status = std::process::Command::new(crate::support::daemon::binary())
        .args(["status", "--config"])
        .arg(daemon.config())
        .output()
        .unwrap();
    assert!(String::from_utf8(status.stdout).unwrap().contains("http       status.http_listen cannot be listened on"));
    drop(taken);
    let face = Face { address };
    soon("it is tried again", || face.say(b"GET /readyz HTTP/1.0\r\n\r\n").is_some_and(|answer| answer.status == 200));
    assert_eq!((daemon.metric("http_missing"), told()), (0, 1));
}

/// Names of this daemon's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character: char| !word(character)).filter(|name| name.starts_with("chat_historyd_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_there_are() {
    let (_daemon, face) = Face::of(Daemon::builder());
    let there_are = names(&face.get("/metrics").body);
    assert!(there_are.len() > 50, "{there_are:?}");
    for file in ["grafana-dashboard.json", "prometheus-alerts.yml", "prometheus-alerts.test.yml"] {
        let text = std::fs::read_to_string(format!("{CONTRIB}/{file}")).unwrap();
        let unknown: Vec<String> = names(&text).difference(&there_are).cloned().collect();
        assert_eq!(unknown, Vec::<String>::new(), "{file}");
    }
}

/// The panels of the dashboard.
fn panels() -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(format!("{CONTRIB}/grafana-dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

#[test]
fn the_dashboard_has_one_place_for_each_panel_and_questions_that_prometheus_understands() {
    let panels = panels();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id stands twice");
    let mut taken = BTreeSet::new();
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for panel in &panels {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{} lies over another panel", panel["title"]);
        }
        for target in panel["targets"].as_array().unwrap() {
            let question = target["expr"].as_str().unwrap().replace("$instance", ".*");
            rules.push_str(&format!(
                "  - record: panel_{}_{}\n    expr: '{question}'\n",
                panel["id"],
                target["refId"].as_str().unwrap()
            ));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("rules.yml"), &rules).unwrap();
    let Ok(checked) = Command::new("promtool").args(["check", "rules", "rules.yml"]).current_dir(directory.path()).output()
    else {
        skipped("promtool is not installed (Debian package prometheus)");
        return;
    };
    assert!(checked.status.success(), "{rules}\n{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn the_gate_panel_tells_a_host_without_a_url_from_one_whose_reports_wait() {
    let panels = panels();
    let gate = panels.iter().find(|panel| panel["title"] == "Gate").unwrap();
    let shown = &gate["fieldConfig"]["defaults"]["mappings"][0]["options"];
    let number = |text: &str| {
        let options = shown.as_object().unwrap();
        options.iter().find(|(_, option)| option["text"] == text).expect(text).0.clone()
    };
    assert_ne!(shown[number("no URL")]["color"], "red");
    let question = gate["targets"][0]["expr"].as_str().unwrap().replace("$instance", ".*");
    let gate = |host: &str, open: u8, closed: u8| {
        let closed = ["outage", "operator"].into_iter().zip([closed, 0]).map(|(kind, value)| {
            format!("  - {{series: 'chat_historyd_gate_closed{{instance=\"{host}\", kind=\"{kind}\"}}', values: '{value}'}}\n")
        });
        format!(
            "  - {{series: 'chat_historyd_gate_open{{instance=\"{host}\"}}', values: '{open}'}}\n{}",
            closed.collect::<String>()
        )
    };
    let series = gate("open", 1, 0) + &gate("waiting", 0, 1) + &gate("no URL", 0, 0);
    let expected = ["no URL", "open", "waiting"]
        .map(|host| format!("    - {{labels: '{{instance=\"{host}\"}}', value: {}}}\n", number(host)));
    let test = format!(
        "tests:\n- input_series:\n{series}  promql_expr_test:\n  - expr: '{question}'\n    eval_time: 0s\n    exp_samples:\n{}",
        expected.concat()
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("test.yml"), &test).unwrap();
    let Ok(tested) = Command::new("promtool").args(["test", "rules", "test.yml"]).current_dir(directory.path()).output() else {
        skipped("promtool is not installed (Debian package prometheus)");
        return;
    };
    assert!(tested.status.success(), "{test}\n{}", String::from_utf8_lossy(&tested.stdout));
}

#[test]
fn every_alert_fires_for_its_trouble_and_is_silent_without_it() {
    let run = |arguments: &[&str]| Command::new("promtool").args(arguments).current_dir(CONTRIB).output();
    let Ok(checked) = run(&["check", "rules", "prometheus-alerts.yml"]) else {
        skipped("promtool is not installed (Debian package prometheus)");
        return;
    };
    assert!(checked.status.success(), "{checked:?}");
    let tested = run(&["test", "rules", "prometheus-alerts.test.yml"]).unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    let rules = std::fs::read_to_string(format!("{CONTRIB}/prometheus-alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(format!("{CONTRIB}/prometheus-alerts.test.yml")).unwrap();
    for (index, name) in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).enumerate() {
        let cases: Vec<&str> = tests.split(&format!("alertname=\"{name}\", alertstate=\"firing\"}}'")).skip(1).collect();
        let silent = |case: &&str| case.lines().take(3).any(|line| line.trim() == "exp_samples: []");
        assert!(cases.iter().any(silent), "{name} has no case in which it is silent");
        assert!(cases.iter().any(|case| !silent(case)), "{name} has no case in which it fires");
        let rule = rules.split("- alert: ").nth(index + 1).unwrap();
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
    }
}

#[test]
fn what_finds_no_room_on_the_shelf_either_is_told_loudly_and_everywhere() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let daemon = Daemon::builder().set("store.directory", &format!("'{}'", disk.path().join("store").display()));
    let (daemon, face) = Face::of(daemon.wrapper(&disk.wrapper()).set("store.shelf_bytes", "'64 KiB'"));
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "talk");
    disk.fill();
    let mut said = 0;
    soon("the shelf is full", || {
        agent.say(1, &"x".repeat(9_000));
        said += 1;
        agent.errors().len() >= 3
    });
    soon("all is taken or refused", || daemon.metric("pending") + daemon.labelled("skipped", "overloaded") == said);
    let message = agent.errors()[0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("store.shelf_bytes"), "{message}");
    soon("it is told", || daemon.log().contains("the shelf in memory is full"));
    let log = daemon.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("the shelf in memory is full")).collect();
    assert!(told.len() == 1 && told[0].contains(" ERROR "), "{told:?}");
    let refused = daemon.status()["store"]["failing"]["refused_messages"].as_u64().unwrap();
    assert!(refused >= 3 && refused == daemon.labelled("skipped", "overloaded"), "{refused}");
    assert_eq!(daemon.labelled("refusals", "overloaded"), refused);
    let ready = face.get("/readyz").body;
    assert!(ready.contains(&format!("no room for {refused} messages: they were refused (store.shelf_bytes)")), "{ready}");
    let printed = |command: &str| {
        let output = Command::new(crate::support::daemon::binary()).args([command, "--config"]).arg(daemon.config()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let doctor = printed("doctor");
    assert!(doctor.contains(&format!("broken  refusing     the shelf in memory had no room for {refused} messages")), "{doctor}");
    let status = printed("status");
    assert!(status.contains(&format!(", {refused} messages refused, ")), "{status}");
    assert!(status.contains(&format!(" {refused} skipped (overloaded {refused})\n")), "{status}");
    disk.free();
    soon("its end tells how many", || {
        let log = daemon.log();
        log.lines().any(|line| line.contains("the store works again") && line.contains(&format!("refused={refused}")))
    });
}
