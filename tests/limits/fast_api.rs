//! A Manager API that says yes as fast as it can: for what the daemon itself can do. It stores nothing but a number.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const YES: &str = r#"{"code":0,"msg":"success","data":true}"#;

/// The server.
pub struct FastApi {
    port: u16,
    reports: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
}

impl FastApi {
    /// Starts one on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let port = listener.local_addr().expect("bound").port();
        let (reports, stopping) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let api = Self { port, reports: Arc::clone(&reports), stopping: Arc::clone(&stopping) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !stopping.load(Ordering::Relaxed)) {
                let reports = Arc::clone(&reports);
                std::thread::spawn(move || serve(&stream, &reports));
            }
        });
        api
    }

    /// For `manager_api.url`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/toy", self.port)
    }

    /// How many reports it has had.
    pub fn reports(&self) -> u64 {
        self.reports.load(Ordering::Relaxed)
    }
}

impl Drop for FastApi {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: &TcpStream, reports: &AtomicU64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{YES}", YES.len());
    loop {
        let (mut length, mut is_report) = (0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            is_report |= line.contains("chat-history/report");
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().ok()?,
                _ if line == "\r\n" => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if is_report {
            reports.fetch_add(1, Ordering::Relaxed);
        }
        (&mut &*stream).write_all(answer.as_bytes()).ok()?;
    }
}
