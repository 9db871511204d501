//! What goes out.

use super::*;
use crate::manager_api::{AgentLookup, ManagerApiError, ServerProfile};
use crate::protocol::MacAddress;

const MAC: MacAddress = MacAddress::from_octets([0x68, 0x25, 0xdd, 0xba, 0x39, 0x78]);

/// A server that answers every request with `body` in an envelope of HTTP 200 and passes the requests on.
async fn recording(body: &'static str) -> (Server, tokio::sync::mpsc::Receiver<Received>) {
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    let server = Server::start(move |mut stream, _| {
        let sender = sender.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
                sender.send(request).await.unwrap();
            }
        }
    })
    .await;
    (server, requests)
}

#[tokio::test]
async fn a_report_is_sent_as_the_server_expects_it() {
    let (server, mut requests) = recording(r#"{"code":0,"data":true}"#).await;
    let attempt = report(&client(&server.url, LONG), "0199-7").await;
    assert_eq!((attempt.verdict, attempt.status), (Verdict::Delivered, Some(200)));
    let request = requests.recv().await.unwrap();
    assert_eq!(request.line(), "POST /toy/agent/chat-history/report HTTP/1.1");
    for (name, expected) in [
        ("authorization", "Bearer s3cret"),
        ("content-type", "application/json; charset=utf-8"),
        ("content-length", "19"),
        ("idempotency-key", "0199-7"),
        ("accept-language", "en-US"),
        ("accept", "application/json"),
        ("user-agent", concat!("chat-historyd/", env!("CARGO_PKG_VERSION"))),
        ("host", server.url.strip_prefix("http://").unwrap()),
    ] {
        assert_eq!(request.header(name), Some(expected), "{name}");
    }
    for name in ["accept-encoding", "transfer-encoding", "connection", "referer", "expect"] {
        assert_eq!(request.header(name), None, "{name}");
    }
    assert_eq!(request.body, br#"{"content":"Hello"}"#);
}

#[tokio::test]
async fn reports_one_after_another_share_a_connection() {
    let (server, mut requests) = recording(r#"{"code":0,"data":true}"#).await;
    let api = client(&format!("{}/", server.url), LONG);
    for key in ["a", "b", "c"] {
        assert_eq!(report(&api.clone(), key).await.verdict, Verdict::Delivered);
        assert_eq!(requests.recv().await.unwrap().header("idempotency-key"), Some(key));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_large_report_arrives_whole() {
    let (server, mut requests) = recording(r#"{"code":0,"data":true}"#).await;
    let body = Bytes::from(vec![b'x'; 3_000_000]);
    let attempt = client(&server.url, LONG).report(body.clone(), "key").await;
    assert_eq!(attempt.verdict, Verdict::Delivered);
    assert!(requests.recv().await.unwrap().body == body);
}

#[tokio::test]
async fn a_probe_is_an_empty_report() {
    let (server, mut requests) = recording(r#"{"code":10034,"msg":"must not be blank"}"#).await;
    assert!(client(&server.url, LONG).probe().await.proves_open());
    let request = requests.recv().await.unwrap();
    assert_eq!((request.line(), &request.body[..]), ("POST /toy/agent/chat-history/report HTTP/1.1", &b"{}"[..]));
    assert_eq!((request.header("authorization"), request.header("idempotency-key")), (Some("Bearer s3cret"), None));
}

#[tokio::test]
async fn without_a_secret_nothing_is_sent() {
    let (server, _requests) = recording(r#"{"code":0,"data":true}"#).await;
    let directory = tempfile::tempdir().unwrap();
    for secret in [None, Some(SecretSource::File(directory.path().join("missing")))] {
        let api = ManagerApi::new(&ManagerApiSettings { secret, ..settings(&server.url) }).unwrap();
        let attempt = report(&api, "key").await;
        assert!(matches!(&attempt.verdict, Verdict::Operator { reason } if reason.contains("no server secret")), "{attempt:?}");
        assert!(matches!(api.probe().await, Verdict::Operator { .. }));
        assert!(matches!(api.agent_id(MAC).await, AgentLookup::Failed { .. }));
        assert!(matches!(api.reload(), Err(ManagerApiError::Secret(_))));
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_new_secret_is_sent_once_it_is_read_again() {
    let (server, mut requests) = recording(r#"{"code":401,"msg":"no"}"#).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, "old").unwrap();
    let secret = Some(SecretSource::File(path.clone()));
    let api = ManagerApi::new(&ManagerApiSettings { secret, ..settings(&server.url) }).unwrap();
    for (secret, expected) in [("old", "Bearer old"), ("new", "Bearer new")] {
        std::fs::write(&path, secret).unwrap();
        api.clone().reload().unwrap();
        assert!(matches!(report(&api, "key").await.verdict, Verdict::Operator { .. }));
        assert_eq!(requests.recv().await.unwrap().header("authorization"), Some(expected));
    }
}

#[tokio::test]
async fn the_profile_is_asked_for_without_the_secret() {
    let (server, mut requests) = recording(r#"{"code":0,"data":{"version":"0.9.6"}}"#).await;
    assert_eq!(client(&server.url, LONG).profile().await, Ok(ServerProfile::MILLISECONDS));
    let request = requests.recv().await.unwrap();
    assert_eq!((request.line(), request.header("authorization")), ("GET /toy/user/pub-config HTTP/1.1", None));
}

#[tokio::test]
async fn a_fixed_unit_needs_no_question() {
    let (server, _requests) = recording("{}").await;
    let fixed = ManagerApiSettings { report_time_unit: ReportTimeUnit::Seconds, ..settings(&server.url) };
    assert_eq!(ManagerApi::new(&fixed).unwrap().profile().await.unwrap().unit, ServerProfile::SECONDS.unit);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_profile_that_cannot_be_asked_for_is_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let unknown = client(&url, LONG).profile().await.unwrap_err();
    assert_eq!(unknown.to_string(), "server profile unknown: cannot connect: connection refused");
}

#[tokio::test]
async fn the_agent_is_asked_for_by_bare_mac_and_with_the_secret() {
    let (server, mut requests) = recording(r#"{"code":0,"data":"a1b2"}"#).await;
    assert_eq!(client(&server.url, LONG).agent_id(MAC).await, AgentLookup::Found("a1b2".to_owned()));
    let request = requests.recv().await.unwrap();
    assert_eq!(request.line(), "GET /toy/agent/device/6825ddba3978/agent-id HTTP/1.1");
    assert_eq!(request.header("authorization"), Some("Bearer s3cret"));
}

#[tokio::test]
async fn a_configured_proxy_is_used() {
    let (server, mut requests) = recording(r#"{"code":0,"data":true}"#).await;
    let proxied = ManagerApiSettings { proxy: Some(server.url.clone()), ..settings("http://manager.invalid:8002") };
    assert_eq!(report(&ManagerApi::new(&proxied).unwrap(), "key").await.verdict, Verdict::Delivered);
    let line = "POST http://manager.invalid:8002/toy/agent/chat-history/report HTTP/1.1";
    assert_eq!(requests.recv().await.unwrap().line(), line);
}

#[test]
fn settings_that_make_no_client_are_named() {
    let refused = |settings: ManagerApiSettings| ManagerApi::new(&settings).err().unwrap().to_string();
    assert_eq!(refused(ManagerApiSettings { url: None, ..settings("") }), "manager_api.url is not set");
    for url in
        ["", "host:8002", "ftp://host/toy", "http://", "/toy", "http://u:p@host/toy", "http://host/toy?x", "http://host/toy#x"]
    {
        let refused = refused(ManagerApiSettings { url: Some(url.to_owned()), ..settings("") });
        assert!(refused.starts_with("manager_api.url is no"), "{url}: {refused}");
    }
    for proxy in ["", "socks5://host:1", "host:3128"] {
        let settings = ManagerApiSettings { proxy: Some(proxy.to_owned()), ..settings("http://host") };
        assert!(refused(settings).starts_with("manager_api.proxy is no"), "{proxy}");
    }
}

#[tokio::test]
async fn without_its_authorities_nothing_is_asked_until_they_are_read_again() {
    let (server, mut requests) = recording(r#"{"code":0,"data":true}"#).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let api = ManagerApi::new(&ManagerApiSettings { ca_file: Some(path.clone()), ..settings(&server.url) }).unwrap();
    let garbled = "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n";
    let trouble = [(None, "No such file"), (Some("nothing"), "holds no certificate in PEM"), (Some(garbled), "is no PEM file")];
    for (content, words) in trouble {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        assert!(matches!(api.reload(), Err(ManagerApiError::CaFile { .. })), "{words}");
        let verdict = report(&api, "key").await.verdict;
        assert!(matches!(&verdict, Verdict::Operator { reason } if reason.contains(words)), "{words}: {verdict:?}");
        assert!(api.unusable().is_some_and(|reason| reason.contains(words)));
        assert!(api.profile().await.is_err() && matches!(api.agent_id(MAC).await, AgentLookup::Failed { .. }));
    }
    assert_eq!(server.connections(), 0);
    let authority = rcgen::generate_simple_self_signed(Vec::new()).unwrap().cert.pem();
    std::fs::write(&path, authority).unwrap();
    api.reload().unwrap();
    assert_eq!(report(&api, "key").await.verdict, Verdict::Delivered);
    requests.recv().await.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(api.reload().is_err());
    assert_eq!(report(&api, "key").await.verdict, Verdict::Delivered, "what was read before stays in use");
}
