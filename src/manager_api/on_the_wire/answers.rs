//! What comes back, or does not.

use super::*;
use crate::manager_api::AnsweredBy;

/// The verdict on a server that answers exactly `answer` and closes.
async fn on(answer: &'static str) -> Verdict {
    attempt(LONG, move |stream, _| answer_once(stream, answer.as_bytes())).await.verdict
}

#[tokio::test]
async fn a_whole_answer_is_read_however_it_is_framed() {
    assert_eq!(on(SUCCESS).await, Verdict::Delivered);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"code\":\r\ne\r\n0,\"data\":true}\r\n0\r\n\r\n";
    assert_eq!(on(chunked).await, Verdict::Delivered);
    assert_eq!(on("HTTP/1.1 200 OK\r\n\r\n{\"code\":0,\"data\":true}").await, Verdict::Delivered);
    assert_eq!(on("HTTP/1.0 200 OK\r\n\r\n{\"code\":0,\"data\":true}").await, Verdict::Delivered);
    let early_hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"code\":0,\"data\":true}";
    assert_eq!(on(early_hints).await, Verdict::Delivered);
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_ambiguous() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"code\":0,\"data\":true}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n16\r\n{\"code\":0,\"data\":true}\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{\"code\":0,\"data\":true}",
        "HTTP/1.1 200 OK\r\n\r\n{\"code\":0,\"data\":tr",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "",
    ] {
        let verdict = on(answer).await;
        assert!(is_later(&verdict, true), "{answer:?}: {verdict:?}");
    }
}

#[tokio::test]
async fn another_server_altogether_needs_the_operator() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<!DOCTYPE html><html></html>",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!",
        "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n",
    ] {
        let verdict = on(answer).await;
        assert!(matches!(verdict, Verdict::Operator { .. }), "{answer:?}: {verdict:?}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_ambiguous_and_not_quoted() {
    for answer in ["SSH-2.0-Hello\r\n", "\u{16}\u{3}\u{1}", "HTTP/9.9 Hello\r\n\r\n"] {
        let verdict = on(answer).await;
        assert!(is_later(&verdict, true) && !verdict.text().contains("Hello"), "{answer:?}: {verdict:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Server::start(|stream, _| answer_once(stream, SUCCESS.as_bytes())).await;
        let location = format!("HTTP/1.1 {status} Moved\r\nLocation: {}/toy\r\nContent-Length: 0\r\n\r\n", elsewhere.url);
        let attempt = attempt(LONG, move |stream, _| {
            let location = location.clone();
            async move { answer_once(stream, location.as_bytes()).await }
        })
        .await;
        assert!(matches!(attempt.verdict, Verdict::Operator { .. }), "{attempt:?}");
        assert_eq!((attempt.status, elsewhere.connections()), (Some(status), 0));
    }
}

#[tokio::test]
async fn an_answer_may_come_before_the_report_was_read() {
    let answer = "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let server = Server::start(move |mut stream, _| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let attempt = client(&server.url, LONG).report(Bytes::from(vec![b'x'; 4_000_000]), "key").await;
    assert_eq!((attempt.verdict, attempt.status), (Verdict::Refused { answer: "HTTP 413".to_owned() }, Some(413)));
}

#[tokio::test]
async fn a_tls_port_behind_an_http_url_is_not_taken_for_an_answer() {
    let verdict = on("\u{15}\u{3}\u{1}\u{0}\u{2}\u{2}\u{16}").await;
    assert!(is_later(&verdict, true), "{verdict:?}");
}

#[tokio::test]
async fn the_server_may_ask_for_patience() {
    let verdict = on("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n").await;
    let expected = Some(Duration::from_secs(7));
    assert!(matches!(verdict, Verdict::Later { retry_after, ambiguous: false, .. } if retry_after == expected), "{verdict:?}");
    let verdict =
        on("HTTP/1.1 503 Service Unavailable\r\nRetry-After: Fri, 01 Jan 2100 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n").await;
    let expected = Some(Duration::from_secs(3600));
    assert!(matches!(verdict, Verdict::Later { retry_after, .. } if retry_after == expected), "{verdict:?}");
}

#[tokio::test]
async fn a_reset_after_the_body_is_ambiguous() {
    let attempt = attempt(LONG, |mut stream, _| async move {
        let _ = read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    assert!(is_later(&attempt.verdict, true), "{attempt:?}");
    assert!(!attempt.never_connected() && attempt.answered_by() == AnsweredBy::Nobody);
    assert_eq!((attempt.status, attempt.verdict.text()), (None, "the connection failed: connection reset"));
}

#[tokio::test]
async fn a_half_closed_connection_without_an_answer_is_ambiguous() {
    let attempt = attempt(LONG, |mut stream, _| async move {
        let _ = read_request(&mut stream).await;
        let _ = stream.shutdown().await;
        hang(stream).await;
    })
    .await;
    assert!(is_later(&attempt.verdict, true), "{attempt:?}");
}

#[tokio::test]
async fn a_server_that_hangs_before_its_answer_is_left_at_the_timeout() {
    let attempt = attempt(SHORT, |mut stream, _| async move {
        let _ = read_request(&mut stream).await;
        hang(stream).await;
    })
    .await;
    assert!(is_later(&attempt.verdict, true) && attempt.elapsed >= SHORT && attempt.elapsed < LONG, "{attempt:?}");
    assert_eq!(attempt.verdict.text(), "no answer in time");
}

#[tokio::test]
async fn a_server_that_hangs_within_its_answer_is_left_at_the_timeout() {
    let attempt = attempt(SHORT, |mut stream, _| async move {
        let _ = read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"code\":0,").await;
        hang(stream).await;
    })
    .await;
    assert!(is_later(&attempt.verdict, true) && attempt.elapsed < LONG, "{attempt:?}");
    assert_eq!(attempt.status, Some(200));
}

#[tokio::test]
async fn a_trickle_does_not_outlast_the_timeout() {
    let attempt = attempt(SHORT, |mut stream, _| async move {
        let _ = read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{").await;
        let mut pace = tokio::time::interval(SHORT / 20);
        while stream.write_all(b" ").await.is_ok() {
            pace.tick().await;
        }
    })
    .await;
    assert!(is_later(&attempt.verdict, true) && attempt.elapsed < LONG, "{attempt:?}");
}

#[tokio::test]
async fn endless_heads_and_bodies_are_left_early() {
    for (head, endless, ambiguous) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "4\r\n    \r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\n{", " ", true),
        ("HTTP/1.1 200 OK\r\n\r\n<html>", "x", false),
        ("HTTP/1.1 200 OK\r\n", "X-Endless: x\r\n", true),
    ] {
        let attempt = attempt(LONG, move |mut stream, _| async move {
            let _ = read_request(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            let block = endless.repeat(1000);
            while stream.write_all(block.as_bytes()).await.is_ok() {}
        })
        .await;
        assert_eq!(is_later(&attempt.verdict, true), ambiguous, "{head:?}: {attempt:?}");
        assert!(attempt.elapsed < LONG / 2 && attempt.verdict != Verdict::Delivered, "{attempt:?}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_not_ambiguous() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let attempt = report(&client(&url, LONG), "key").await;
    assert!(is_later(&attempt.verdict, false), "{attempt:?}");
    assert!(attempt.never_connected() && attempt.answered_by() == AnsweredBy::Nobody);
    assert_eq!(attempt.verdict.text(), "cannot connect: connection refused");
}

#[tokio::test]
async fn a_host_without_an_address_is_named_as_such() {
    // A label of more than 63 characters is refused by every resolver without asking the network.
    let attempt = report(&client(&format!("http://{}.invalid", "x".repeat(64)), LONG), "key").await;
    assert!(attempt.never_connected(), "{attempt:?}");
    assert_eq!(attempt.verdict.text(), "cannot resolve the host of manager_api.url");
}

#[tokio::test]
async fn a_connection_the_server_closed_while_idle_is_not_used_again() {
    let (noticed, mut seen) = tokio::sync::mpsc::channel(4);
    let server = Server::start(move |mut stream, number| {
        let noticed = noticed.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let key = request.header("idempotency-key").unwrap_or_default().to_owned();
                stream.write_all(SUCCESS.as_bytes()).await.unwrap();
                if number == 0 {
                    stream.shutdown().await.unwrap();
                    // The client answers with its own end once it has seen ours.
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                }
                noticed.send(key).await.unwrap();
            }
        }
    })
    .await;
    let api = client(&server.url, LONG);
    for key in ["one", "two"] {
        assert_eq!(report(&api, key).await.verdict, Verdict::Delivered);
        assert_eq!(seen.recv().await.as_deref(), Some(key));
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_closed_just_as_the_next_report_is_sent_is_ambiguous_and_not_repeated() {
    let server = Server::start(|mut stream, _| async move {
        let _ = read_request(&mut stream).await;
        stream.write_all(SUCCESS.as_bytes()).await.unwrap();
        let _ = read_request(&mut stream).await;
    })
    .await;
    let api = client(&server.url, LONG);
    assert_eq!(report(&api, "one").await.verdict, Verdict::Delivered);
    let second = report(&api, "two").await;
    assert!(is_later(&second.verdict, true), "{second:?}");
    assert_eq!(server.connections(), 1);
}
