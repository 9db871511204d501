//! Threads and connections of the stand-in: accept, read, decide on a fault, answer.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fault::{Endpoint, Fault};
use super::http::{Reader, Response, Wire};
use super::{Recorded, Shared, endpoints, lock};
use crate::support::eventually::pace;

/// Serves a listener until [`stop`].
pub(super) fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    let mine = Arc::clone(shared);
    lock(&shared.running).stopping = false;
    let thread = std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(socket) = socket else { continue };
            let mut running = lock(&mine.running);
            if running.stopping {
                return;
            }
            running.connections += 1;
            let number = running.connections;
            if let Ok(clone) = socket.try_clone() {
                running.sockets.insert(number, clone);
            }
            drop(running);
            let shared = Arc::clone(&mine);
            std::thread::spawn(move || {
                let _ = serve(&shared, socket, number);
                // The last descriptor of the connection: this is where it really closes, or resets.
                lock(&shared.running).sockets.remove(&number);
            });
        }
    });
    lock(&shared.running).accepting = Some(thread);
}

/// Cuts every connection and closes the port.
pub(super) fn stop(shared: &Arc<Shared>) {
    let (thread, sockets) = {
        let mut running = lock(&shared.running);
        running.stopping = true;
        (running.accepting.take(), std::mem::take(&mut running.sockets))
    };
    if let Some(thread) = thread {
        // Wakes `accept`.
        let _ = TcpStream::connect_timeout(&([127, 0, 0, 1], shared.port).into(), Duration::from_secs(1));
        let _ = thread.join();
    }
    for socket in sockets.into_values() {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

fn serve(shared: &Shared, socket: TcpStream, connection: u64) -> io::Result<()> {
    let mut reader = Reader::new(Wire::new(socket, shared.tls.as_ref())?);
    while let Some(mut request) = reader.head()? {
        let at = Instant::now();
        let endpoint = endpoints::endpoint_of(&lock(&shared.server), &request);
        if lock(&shared.rules).iter_mut().any(|rule| rule.hits_head(endpoint)) {
            record(shared, Recorded { faulted: true, ..entry(at, connection, endpoint, request) });
            reader.wire.reset();
            return Ok(());
        }
        request.body = reader.body(&request)?;
        let understood = (endpoint == Endpoint::Report).then(|| endpoints::understand(&lock(&shared.server), &request));
        let report = understood.as_ref().and_then(|result| result.as_ref().ok()).cloned();
        let fault = {
            let mut rules = lock(&shared.rules);
            rules.iter_mut().find_map(|rule| rule.hits(endpoint, report.as_ref()).then(|| rule.fault.clone()))
        };
        let mut recorded = entry(at, connection, endpoint, request);
        recorded.report = report;
        recorded.faulted = fault.is_some();
        let index = record(shared, recorded.clone());
        let fault = fault.map(|fault| match fault {
            Fault::Overload(most, _) if reports_under_way(shared) > most => Fault::code(500),
            Fault::Overload(_, time) => Fault::Delay(time),
            other => other,
        });
        let close = recorded.request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        // Stamped before the answer leaves: its reader may be back on another connection before this thread goes on.
        let finished = |all: &mut Vec<Recorded>| all[index].finished = Some(Instant::now());
        if matches!(fault, Some(Fault::Answer(..))) {
            finished(&mut lock(&shared.recorded));
        }
        let leaves_at_once = !matches!(fault, Some(Fault::Trickle(_)));
        let work = || -> Response {
            let (response, row) = match understood {
                Some(Ok(report)) => {
                    let server = Snapshot::of(shared);
                    endpoints::store(&server.0, &shared.database, &report)
                }
                Some(Err(refused)) => (refused, None),
                None => {
                    let server = Snapshot::of(shared);
                    (endpoints::answer(&server.0, &shared.database, endpoint, &recorded.request), None)
                }
            };
            let envelope: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
            let mut all = lock(&shared.recorded);
            all[index].status = Some(response.status);
            all[index].code = envelope.and_then(|envelope| envelope.get("code")?.as_i64());
            all[index].row = row;
            if leaves_at_once {
                finished(&mut all);
            }
            drop(all);
            response
        };
        let wire = respond(reader.wire, fault, work);
        lock(&shared.recorded)[index].finished.get_or_insert_with(Instant::now);
        match wire? {
            Some(wire) if !close => reader.wire = wire,
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn reports_under_way(shared: &Shared) -> usize {
    lock(&shared.recorded).iter().rev().take(100).filter(|other| other.report.is_some() && other.finished.is_none()).count()
}

/// Carries out the fault, or the work. The wire comes back when the connection may go on.
fn respond(mut wire: Wire, fault: Option<Fault>, work: impl FnOnce() -> Response) -> io::Result<Option<Wire>> {
    match fault {
        None => work().write(&mut wire)?,
        Some(Fault::Answer(status, headers, body)) => Response { status, headers, body }.write(&mut wire)?,
        Some(Fault::AnswerAfterCommit(status, headers, body)) => {
            work();
            Response { status, headers, body }.write(&mut wire)?;
        }
        Some(Fault::ResetMidBody | Fault::ResetBeforeCommit) => {
            wire.reset();
            return Ok(None);
        }
        Some(Fault::ResetAfterCommit) => {
            work();
            wire.reset();
            return Ok(None);
        }
        Some(Fault::LoseAnswer) => {
            work();
            return Ok(None);
        }
        Some(Fault::HalfClose) => {
            work();
            wire.half_close();
            wire.hang();
            return Ok(None);
        }
        Some(Fault::HangBeforeHeaders) => {
            wire.hang();
            return Ok(None);
        }
        Some(Fault::HangAfterHeaders) => {
            wire.write_all(&Response::new(200, "application/json", "").head(40))?;
            wire.flush()?;
            wire.hang();
            return Ok(None);
        }
        Some(Fault::Trickle(pause)) => {
            let response = work();
            let mut bytes = response.head(response.body.len());
            bytes.extend_from_slice(&response.body);
            for byte in bytes {
                wire.write_all(&[byte])?;
                wire.flush()?;
                pace(pause);
            }
        }
        Some(Fault::Delay(time) | Fault::Overload(_, time)) => {
            wire.linger(time);
            work().write(&mut wire)?;
        }
        Some(Fault::EndlessBody) => {
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x1_0000], b"\r\n"].concat();
            loop {
                wire.write_all(&chunk)?;
            }
        }
        Some(Fault::GzipBomb) => {
            let mut response = Response::new(200, "application/json", gzip_bomb());
            response.headers.push(("Content-Encoding".to_owned(), "gzip".to_owned()));
            response.write(&mut wire)?;
        }
        Some(Fault::CutBody) => {
            let response = work();
            wire.write_all(&response.head(response.body.len()))?;
            wire.write_all(&response.body[..response.body.len() / 2])?;
            wire.flush()?;
            return Ok(None);
        }
        Some(Fault::Garbage) => {
            wire.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n\0\xff\xfe\r\n\r\n")?;
            wire.flush()?;
            return Ok(None);
        }
    }
    Ok(Some(wire))
}

fn entry(at: Instant, connection: u64, endpoint: Endpoint, request: super::Request) -> Recorded {
    let key = request.header("idempotency-key").map(str::to_owned);
    Recorded {
        at,
        finished: None,
        connection,
        endpoint,
        request,
        report: None,
        key,
        status: None,
        code: None,
        row: None,
        faulted: false,
    }
}

fn record(shared: &Shared, recorded: Recorded) -> usize {
    let mut all = lock(&shared.recorded);
    all.push(recorded);
    all.len() - 1
}

/// A quarter of a gigabyte of spaces in about a megabyte.
pub(super) fn gzip_bomb() -> Vec<u8> {
    use std::process::{Command, Stdio};
    static BOMB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || {
        Command::new("sh")
            .args(["-c", "head -c 268435456 /dev/zero | tr '\\0' ' ' | gzip -1"])
            .stdin(Stdio::null())
            .output()
            .expect("gzip runs")
            .stdout
    };
    BOMB.get_or_init(make).clone()
}

/// The server's state at one moment, so that no lock is held over a query.
struct Snapshot(super::Server);

impl Snapshot {
    fn of(shared: &Shared) -> Self {
        let server = lock(&shared.server);
        Self(super::Server { version: server.version.clone(), secret: server.secret.clone(), ..*server })
    }
}
