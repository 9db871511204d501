//! The test ground itself: the stand-in against requests made by hand. What these tests say of the Manager API is what
//! was measured on the real one (Manager API facts §1); a stand-in that is kinder than that would hide losses.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::disk::SmallDisk;
use crate::support::eventually::always;
use crate::support::manager_api::{SECRET, now_ms, xss};
use crate::support::{Endpoint, Fault, ManagerApi, Rule, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";
const RAW: &str = "application/json; charset=utf-8";

/// Sends bytes, returns all bytes until the connection closes or falls silent for four seconds.
fn exchange(api: &ManagerApi, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", api.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..count]);
        if answer.len() > 1_000_000 {
            break;
        }
    }
    answer
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

fn status_and_body(answer: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

fn send(api: &ManagerApi, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
    let (status, body) = status_and_body(&exchange(api, &request(method, path, headers, body)));
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

fn report_path(api: &ManagerApi) -> String {
    let url = api.url();
    format!("/{}/agent/chat-history/report", url.rsplit('/').next().unwrap())
}

/// `code` and `data` of the answer to a report with the right secret.
fn report_as(api: &ManagerApi, content_type: &str, body: &str) -> (i64, Value) {
    let bearer = format!("Bearer {SECRET}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", content_type)];
    let (status, envelope) = send(api, "POST", &report_path(api), &headers, body.as_bytes());
    assert_eq!(status, 200, "nearly every answer is 200");
    (envelope["code"].as_i64().unwrap(), envelope["data"].clone())
}

fn report(api: &ManagerApi, body: &Value) -> (i64, Value) {
    report_as(api, RAW, &body.to_string())
}

fn message(session: &str, content: &str) -> Value {
    json!({ "macAddress": MAC, "sessionId": session, "chatType": 1, "content": content, "audioBase64": null, "reportTime": 1_758_701_973 })
}

fn fork() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
}

fn upstream() -> ManagerApi {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    api
}

#[test]
fn a_good_report_is_stored_as_sent() {
    let api = fork();
    assert_eq!(report(&api, &message("s", "Hello 🐯 नमस्ते")), (0, json!(true)));
    let rows = api.rows("s");
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].mac.as_str(), rows[0].chat_type, rows[0].content.as_str()), (MAC, 1, "Hello 🐯 नमस्ते"));
    assert_eq!(rows[0].created_at_ms, 1_758_701_973_000);
    assert_eq!(api.reports()[0].row, Some(rows[0].id));
}

#[test]
fn there_is_no_idempotency() {
    let api = fork();
    report(&api, &message("s", "yes"));
    report(&api, &message("s", "yes"));
    assert_eq!(api.rows("s").len(), 2);
}

#[test]
fn a_wrong_or_missing_secret_is_401_inside_a_200() {
    let api = fork();
    let path = report_path(&api);
    let body = message("s", "x").to_string();
    for authorization in [None, Some("Bearer wrong"), Some("bearer canary-secret-3f9c1e7a"), Some("Bearer ")] {
        let mut headers = vec![("Content-Type", RAW)];
        headers.extend(authorization.map(|value| ("Authorization", value)));
        let (status, envelope) = send(&api, "POST", &path, &headers, body.as_bytes());
        assert_eq!((status, envelope["code"].as_i64()), (200, Some(401)), "{authorization:?}");
        assert_eq!(envelope["data"], Value::Null);
    }
    assert_eq!(send(&api, "POST", &path, &[("secret", SECRET), ("Content-Type", RAW)], body.as_bytes()).1["code"], 0);
    assert_eq!(api.row_count(), 1, "only the last of them was let in");
    let api = upstream();
    let headers = [("secret", SECRET), ("Content-Type", RAW)];
    assert_eq!(
        send(&api, "POST", &report_path(&api), &headers, body.as_bytes()).1["code"],
        401,
        "only the fork reads that header"
    );
}

#[test]
fn a_secret_can_change_while_it_runs() {
    let api = fork();
    api.set_secret("another");
    assert_eq!(report(&api, &message("s", "x")).0, 401);
    api.set_secret(SECRET);
    assert_eq!(report(&api, &message("s", "x")).0, 0);
}

#[test]
fn an_unknown_device_is_data_false() {
    let api = ManagerApi::start(Variant::Fork);
    assert_eq!(report(&api, &message("s", "x")), (0, json!(false)));
    api.register_without_agent(MAC);
    assert_eq!(report(&api, &message("s", "x")), (0, json!(false)));
    api.unregister(MAC);
    api.register(MAC);
    assert_eq!(report(&api, &message("s", "x")), (0, json!(true)));
    api.unregister(MAC);
    assert_eq!(report(&api, &message("s", "x")), (0, json!(false)));
    assert_eq!(api.row_count(), 1);
}

#[test]
fn two_devices_with_one_address_are_a_500() {
    let api = fork();
    api.register(MAC);
    assert_eq!(report(&api, &message("s", "x")), (500, Value::Null));
    assert_eq!(api.row_count(), 0);
}

#[test]
fn history_switched_off_looks_exactly_like_success() {
    for conf in [0, 7] {
        let api = ManagerApi::start(Variant::Fork);
        api.register_with_conf(MAC, conf);
        assert_eq!(report(&api, &message("s", "x")), (0, json!(true)));
        assert_eq!(api.row_count(), 0);
    }
}

#[test]
fn audio_is_kept_only_with_conf_2_and_never_spoils_the_text() {
    let with_audio = |audio: &str| {
        let mut body = message("s", "x");
        body["audioBase64"] = json!(audio);
        body
    };
    let api = fork();
    assert_eq!(report(&api, &with_audio("UklGRg==")), (0, json!(true)));
    assert_eq!(api.rows("s")[0].audio, None, "conf 1: silently dropped");
    let api = ManagerApi::start(Variant::Upstream);
    api.register_with_conf(MAC, 2);
    for (audio, kept) in
        [("UklGRg==", true), ("UklGRg", true), ("Ukl\nGRg==", false), ("data:audio/wav;base64,UklGRg==", false), ("-_-_", false)]
    {
        assert_eq!(report(&api, &with_audio(audio)), (0, json!(true)));
        assert_eq!(api.rows("s").last().unwrap().audio.as_deref(), kept.then_some(b"RIFF".as_slice()), "{audio}");
    }
}

#[test]
fn what_is_blank_or_missing_is_10034() {
    let api = fork();
    assert_eq!(report_as(&api, RAW, "{}"), (10034, Value::Null));
    for field in ["macAddress", "sessionId", "chatType", "content"] {
        for value in [Value::Null, json!("")] {
            let mut body = message("s", "x");
            body[field] = value;
            assert_eq!(report(&api, &body).0, 10034, "{field}");
        }
    }
    assert_eq!(report(&api, &message(" \n", "x")).0, 10034);
    assert_eq!(report(&api, &message("s", " \t ")).0, 10034);
    assert_eq!(api.row_count(), 0);
}

#[test]
fn the_probe_tells_a_wrong_secret_from_a_right_one_and_stores_nothing() {
    let api = ManagerApi::start(Variant::Upstream);
    assert_eq!(report_as(&api, RAW, "{}").0, 10034);
    api.set_secret("another");
    assert_eq!(report_as(&api, RAW, "{}").0, 401);
    assert!(api.reports().is_empty(), "a probe is no report");
    assert_eq!(api.count(Endpoint::Report), 2);
}

#[test]
fn malformed_bodies_wrong_types_and_wrong_methods_are_500() {
    let api = fork();
    let good = message("s", "x");
    for text in ["", "{", "[]", "nonsense", r#"{"macAddress":["a"]}"#] {
        assert_eq!(report_as(&api, RAW, text).0, 500, "{text}");
    }
    for (field, value) in
        [("chatType", json!("user")), ("chatType", json!(256)), ("reportTime", json!("soon")), ("content", json!({}))]
    {
        let mut body = good.clone();
        body[field] = value;
        assert_eq!(report(&api, &body).0, 500, "{field}");
    }
    assert_eq!(report_as(&api, "text/plain", &good.to_string()).0, 500);
    let bearer = format!("Bearer {SECRET}");
    assert_eq!(send(&api, "GET", &report_path(&api), &[("Authorization", bearer.as_str())], b"").1["code"], 500);
    let mut huge = good;
    huge["content"] = json!("a".repeat(20_000_001));
    assert_eq!(report(&api, &huge).0, 500);
    assert_eq!(api.row_count(), 0);
}

#[test]
fn unknown_properties_are_ignored_and_chat_types_wrap() {
    let api = fork();
    let mut body = message("s", "x");
    body["id"] = json!("mine");
    for (sent, stored) in [(-1, -1), (127, 127), (200, -56), (3, 3)] {
        body["chatType"] = json!(sent);
        assert_eq!(report(&api, &body), (0, json!(true)));
        assert_eq!(api.rows("s").last().unwrap().chat_type, stored);
    }
}

#[test]
fn the_forks_columns_have_the_forks_widths() {
    let api = fork();
    assert_eq!(report(&api, &message("s", &"🐯".repeat(1024))).0, 0);
    assert_eq!(report(&api, &message("s", &"a".repeat(1025))).0, 500);
    assert_eq!(report(&api, &message(&"s".repeat(100), "x")).0, 0);
    assert_eq!(report(&api, &message(&"s".repeat(101), "x")).0, 500);
    assert_eq!(api.rows("s")[0].content, "🐯".repeat(1024));
    assert_eq!(api.row_count(), 2, "what is too long is rolled back");
}

#[test]
fn upstreams_columns_have_upstreams_widths() {
    let api = upstream();
    assert_eq!(report(&api, &message("s", &"a".repeat(65_535))).0, 0);
    assert_eq!(report(&api, &message("s", &"a".repeat(65_536))).0, 500);
    assert_eq!(report(&api, &message("s", &"é".repeat(32_768))).0, 500, "TEXT is counted in bytes");
    assert_eq!(report(&api, &message(&"s".repeat(50), "x")).0, 0);
    assert_eq!(report(&api, &message(&"s".repeat(51), "x")).0, 500);
    assert_eq!(api.row_count(), 2);
}

#[test]
fn a_wrong_time_unit_is_refused_by_one_and_silently_taken_by_the_other() {
    let millis = 1_758_701_973_250_i64;
    let at = |time: Value| {
        let mut body = message("s", "x");
        body["reportTime"] = time;
        body
    };
    let api = fork();
    assert_eq!(report(&api, &at(json!(millis))).0, 500, "year 57862");
    assert_eq!(api.row_count(), 0);
    assert_eq!(report(&api, &at(json!(0))).0, 0);
    assert_eq!(report(&api, &at(json!(-5))).0, 0);
    assert_eq!(report(&api, &at(Value::Null)).0, 0);
    let times: Vec<i64> = api.rows("s").iter().map(|row| row.created_at_ms).collect();
    assert_eq!(times[..2], [0, -5000]);
    assert!((times[2] - now_ms()).abs() < 60_000, "no time is the server's now");
    let api = upstream();
    assert_eq!(report(&api, &at(json!(millis))).0, 0);
    assert_eq!(report(&api, &at(json!(millis / 1000))).0, 0);
    let times: Vec<i64> = api.rows("s").iter().map(|row| row.created_at_ms).collect();
    assert_eq!(times, [millis, millis / 1000], "seconds end in January 1970");
}

#[test]
fn the_fork_knows_any_spelling_of_a_mac_and_upstream_only_its_own() {
    for (variant, known) in [(Variant::Fork, [true; 4]), (Variant::Upstream, [true, true, false, false])] {
        let api = ManagerApi::start(variant);
        api.register("00:16:3e:ac:b5:38");
        for (mac, known) in ["00:16:3e:ac:b5:38", "00:16:3E:AC:B5:38", "00163eacb538", "00-16-3E-AC-B5-38"].iter().zip(known) {
            let mut body = message("s", "x");
            body["macAddress"] = json!(mac);
            assert_eq!(report(&api, &body), (0, json!(known)), "{variant:?} {mac}");
        }
    }
}

#[test]
fn the_version_is_public_and_can_be_missing() {
    let api = fork();
    assert_eq!(send(&api, "GET", "/toy/user/pub-config", &[], b"").1["data"]["version"], "0.7.5");
    api.set_version(None);
    let (status, envelope) = send(&api, "GET", "/toy/user/pub-config", &[], b"");
    assert_eq!((status, envelope["code"].as_i64()), (200, Some(401)));
    assert_eq!(send(&upstream(), "GET", "/xiaozhi/user/pub-config", &[], b"").1["data"]["version"], "0.9.6");
}

#[test]
fn the_agent_is_looked_up_in_the_fork_only() {
    let api = ManagerApi::start(Variant::Fork);
    let agent = api.register(MAC);
    api.register_without_agent("00:16:3e:ac:b5:38");
    let bearer = format!("Bearer {SECRET}");
    let ask = |api: &ManagerApi, path: &str| send(api, "GET", path, &[("Authorization", bearer.as_str())], b"").1;
    assert_eq!(ask(&api, "/toy/agent/device/6825ddba3978/agent-id"), json!({ "code": 0, "msg": "success", "data": agent }));
    let unbound = ask(&api, "/toy/agent/device/00163eacb538/agent-id");
    assert_eq!(
        (unbound["code"].as_i64(), unbound["msg"].as_str()),
        (Some(500), Some("No agent associated with device: 00163eacb538"))
    );
    let unknown = ask(&api, "/toy/agent/device/000000000000/agent-id");
    assert_eq!(
        (unknown["code"].as_i64(), unknown["msg"].as_str()),
        (Some(500), Some("Device not found for MAC address: 000000000000"))
    );
    assert_eq!(send(&api, "GET", "/toy/agent/device/6825ddba3978/agent-id", &[], b"").1["code"], 401);
    assert_eq!(ask(&upstream(), "/xiaozhi/agent/device/6825ddba3978/agent-id")["code"], 401);
}

#[test]
fn wrong_paths_are_401_inside_the_context_and_html_outside() {
    let api = upstream();
    assert_eq!(send(&api, "POST", "/xiaozhi/agent/chat-history/reprot", &[], b"{}").1["code"], 401);
    assert_eq!(send(&api, "GET", "/xiaozhi/health", &[], b"").1["code"], 401);
    assert_eq!(send(&api, "POST", "/toy/agent/chat-history/report", &[], b"{}"), (404, Value::Null));
    api.put_behind_nginx();
    assert_eq!(send(&api, "POST", "/toy/agent/chat-history/report", &[], b"{}"), (405, Value::Null));
    assert_eq!(send(&api, "GET", "/toy/user/pub-config", &[], b""), (200, Value::Null));
}

#[test]
fn an_upgrade_changes_unit_and_widths_in_place() {
    let api = fork();
    api.upgrade();
    assert_eq!(send(&api, "GET", "/toy/user/pub-config", &[], b"").1["data"]["version"], "0.9.6");
    let mut body = message("s", &"a".repeat(2000));
    body["reportTime"] = json!(1_758_701_973_250_i64);
    assert_eq!(report(&api, &body).0, 0);
    assert_eq!(api.rows("s")[0].created_at_ms, 1_758_701_973_250);
}

/// Measured on the real filter, for exactly `application/json`.
const MANGLED: [(&str, &str); 7] = [
    ("Tom & Jerry", "Tom &amp; Jerry"),
    ("1 < 2", "1 &lt; 2"),
    ("&copy", "©"),
    ("a\u{a0}b", "a&nbsp;b"),
    ("two  spaces   three", "two spaces three"),
    ("<think>x</think>y", "xy"),
    ("a<script>alert(1)</script>b", "ab"),
];

#[test]
fn the_xss_filter_rewrites_plain_json() {
    let api = fork();
    for (sent, stored) in MANGLED {
        assert_eq!(report_as(&api, "application/json", &message("s", sent).to_string()), (0, json!(true)), "{sent}");
        assert_eq!(api.rows("s").last().unwrap().content, stored);
    }
    let pause = message("s", r#"wait <break time="1s"/>now"#).to_string();
    assert_eq!(report_as(&api, "Application/JSON", &pause).0, 0);
    assert_eq!(api.rows("s").last().unwrap().content, "wait now");
}

#[test]
fn an_open_bracket_cuts_plain_json_off_for_ever() {
    let api = fork();
    for text in ["if a<b then", "x <b y", "<!-- c", "say &quot;hi&quot;"] {
        assert_eq!(report_as(&api, "application/json", &message("s", text).to_string()).0, 500, "{text}");
        assert_eq!(report_as(&api, RAW, &message("s", text).to_string()).0, 0, "a charset parameter keeps the filter away");
        assert_eq!(api.rows("s").last().unwrap().content, text);
    }
}

#[test]
fn escaped_json_passes_the_filter_byte_for_byte() {
    for text in [r#"{"content":"if a\u003cb \u0026 c\u003e \u0020d\u00a0e"}"#, "{\"x\":\"नमस्ते 🐯 —\\n\"}"] {
        assert_eq!(xss::clean(text), text);
    }
}

#[test]
fn faults_hit_whom_they_are_meant_for() {
    let api = fork();
    api.rule(Rule::new(Fault::database_down()).session("bad").times(2));
    api.rule(Rule::new(Fault::code(10053)).content("poison"));
    assert_eq!(report(&api, &message("good", "x")).0, 0);
    let codes: Vec<i64> = (0..3).map(|_| report(&api, &message("bad", "x")).0).collect();
    assert_eq!(codes, [500, 500, 0]);
    assert_eq!(report(&api, &message("good", "a poison b")).0, 10053);
    api.clear_faults();
    api.rule(Rule::new(Fault::status_with(503, "Retry-After", "7")).after(1).times(1));
    api.rule(Rule::new(Fault::html()).on(Endpoint::PubConfig));
    assert_eq!(report(&api, &message("good", "x")).0, 0);
    let answer = exchange(&api, &request("POST", &report_path(&api), &[], b"{}"));
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 503 "));
    assert!(String::from_utf8_lossy(&answer).contains("Retry-After: 7\r\n"));
    assert_eq!(send(&api, "GET", "/toy/user/pub-config", &[], b""), (200, Value::Null));
}

#[test]
fn a_lost_answer_is_stored_and_a_reset_before_the_commit_is_not() {
    for (fault, stored, reset) in [
        (Fault::ResetMidBody, 0, true),
        (Fault::ResetBeforeCommit, 0, true),
        (Fault::ResetAfterCommit, 1, true),
        (Fault::LoseAnswer, 1, false),
        (Fault::HangBeforeHeaders, 0, false),
        (Fault::HalfClose, 1, false),
    ] {
        let api = fork();
        api.fault(fault.clone());
        let bearer = format!("Bearer {SECRET}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", RAW)];
        let mut stream = TcpStream::connect(("127.0.0.1", api.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        stream.write_all(&request("POST", &report_path(&api), &headers, message("s", "x").to_string().as_bytes())).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{fault:?}");
        assert_eq!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), reset, "{fault:?}");
        assert_eq!(api.row_count(), stored, "{fault:?}");
    }
}

#[test]
fn slow_cut_endless_and_foreign_answers_are_what_they_say() {
    let api = fork();
    let bearer = format!("Bearer {SECRET}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", RAW)];
    let bytes = request("POST", &report_path(&api), &headers, message("s", "x").to_string().as_bytes());
    let with = |fault: Fault| {
        api.clear_faults();
        api.fault(fault);
        exchange(&api, &bytes)
    };
    assert!(with(Fault::Trickle(Duration::from_millis(1))).ends_with(br#""msg":"success"}"#));
    assert!(with(Fault::Delay(Duration::from_millis(50))).ends_with(br#""msg":"success"}"#));
    assert!(!with(Fault::CutBody).ends_with(b"}"));
    assert!(with(Fault::HangAfterHeaders).ends_with(b"\r\n\r\n"));
    assert!(with(Fault::EndlessBody).len() > 1_000_000);
    assert!(with(Fault::Garbage).starts_with(b"SSH-2.0"));
    assert!(String::from_utf8_lossy(&with(Fault::GzipBomb)).contains("Content-Encoding: gzip"));
    assert!(String::from_utf8_lossy(&with(Fault::redirect("http://127.0.0.1:1/"))).contains("302"));
    assert_eq!(api.rows("s").len(), 3, "of these, the slow and the cut ones were stored");
}

#[test]
fn an_outage_refuses_connections_and_ends_on_the_same_port() {
    let api = fork();
    assert_eq!(report(&api, &message("s", "x")).0, 0);
    let mut open = TcpStream::connect(("127.0.0.1", api.port())).unwrap();
    soon("the connection is known", || api.count(Endpoint::Report) == 1);
    api.stop();
    open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(open.read(&mut [0; 1]), Ok(0) | Err(_)));
    always(Duration::from_millis(50), "the port refuses", || TcpStream::connect(("127.0.0.1", api.port())).is_err());
    api.start_again();
    assert_eq!(report(&api, &message("s", "y")).0, 0);
    assert_eq!(api.rows("s").len(), 2, "the rows outlive the outage");
}

#[test]
fn a_connection_carries_many_requests() {
    let api = fork();
    let mut stream = TcpStream::connect(("127.0.0.1", api.port())).unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /toy/user/pub-config HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).unwrap();
        assert!(String::from_utf8_lossy(&chunk[..count]).contains("0.7.5"));
    }
    assert!(api.requests().iter().all(|request| request.connection == api.requests()[0].connection));
}

#[test]
fn a_small_disk_fills_up_and_has_space_again() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let write = || std::fs::write(disk.outside().join("x"), [7; 5000]);
    write().unwrap();
    disk.fill();
    let wrapper = disk.wrapper();
    let seen =
        std::process::Command::new(&wrapper[0]).args(&wrapper[1..]).arg("stat").arg(disk.path().join("filler")).output().unwrap();
    assert!(seen.status.success(), "a program started by the wrapper sees the disk");
    assert!(!disk.path().join("filler").exists(), "nobody else does");
    assert_eq!(std::fs::write(disk.outside().join("y"), [7; 5000]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    disk.free();
    write().unwrap();
    disk.remount("ro");
    assert_eq!(write().unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    disk.remount("rw");
    write().unwrap();
}

#[test]
fn a_session_id_over_the_column_is_expected_shortened() {
    let long = "d3746a02-1111-2222-3333-444455556666_6825ddba3978_conversation";
    assert_eq!(fork().stored_session_id(long), long);
    let short = upstream().stored_session_id(long);
    assert_eq!(short.len(), 50);
    assert!(short.starts_with("d3746a02-1111-2222-3333-444455556-"));
}
