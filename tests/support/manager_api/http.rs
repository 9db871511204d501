//! Just enough HTTP/1.1 to be a server with control over every byte: a library would not reset, half-close or hang.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::eventually::pace;

const MAX_HEAD: usize = 64 * 1024;

/// A connection, plain or TLS.
pub enum Wire {
    /// HTTP.
    Plain(TcpStream),
    /// HTTPS.
    Tls(Box<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>),
}

impl Wire {
    /// Takes an accepted socket; the TLS handshake happens at the first read.
    pub fn new(socket: TcpStream, tls: Option<&Arc<rustls::ServerConfig>>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        match tls {
            None => Ok(Self::Plain(socket)),
            Some(config) => {
                let session = rustls::ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Ok(Self::Tls(Box::new(rustls::StreamOwned::new(session, socket))))
            }
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// Closes so that the peer sees a connection reset.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }

    /// Closes the writing half only.
    pub fn half_close(&self) {
        let _ = self.socket().shutdown(Shutdown::Write);
    }

    /// Lets time pass, but ends early when the client gives up.
    pub fn linger(&self, span: Duration) {
        let end = Instant::now() + span;
        let _ = self.socket().set_read_timeout(Some(span.max(Duration::from_millis(1))));
        let closed = matches!(self.socket().peek(&mut [0; 1]), Ok(0));
        let _ = self.socket().set_read_timeout(None);
        if !closed {
            pace(end.saturating_duration_since(Instant::now()));
        }
    }

    /// Keeps the connection open, silent, until the peer (or the end of the stand-in) closes it.
    pub fn hang(mut self) {
        let mut sink = [0; 4096];
        while matches!(self.read(&mut sink), Ok(1..)) {}
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// What a client asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// Names lower-cased, values as sent.
    pub headers: Vec<(String, String)>,
    /// The body as sent.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads request after request from one connection.
pub struct Reader {
    /// The connection, for the answers.
    pub wire: Wire,
    ahead: Vec<u8>,
}

impl Reader {
    /// Begins.
    pub const fn new(wire: Wire) -> Self {
        Self { wire, ahead: Vec::new() }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.wire.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.ahead.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }

    /// The next request's head; `None` when the client closed between requests.
    pub fn head(&mut self) -> io::Result<Option<Request>> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if self.ahead.len() > MAX_HEAD {
                return Err(io::Error::other("head too long"));
            }
            match self.more() {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.ahead.is_empty() => return Ok(None),
                other => other?,
            }
        };
        let head = String::from_utf8_lossy(&self.ahead[..end]).into_owned();
        self.ahead.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let method = first.next().unwrap_or_default().to_owned();
        let target = first.next().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Some(Request { method, path, headers, body: Vec::new() }))
    }

    /// The body of the request whose head was read.
    pub fn body(&mut self, head: &Request) -> io::Result<Vec<u8>> {
        if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            self.wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return self.chunked();
        }
        let length = head.header("content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
        self.exactly(length)
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < length {
            self.more()?;
        }
        Ok(self.ahead.drain(..length).collect())
    }

    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = self.ahead.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.more()?;
            };
            let line: Vec<u8> = self.ahead.drain(..end + 2).take(end).collect();
            let size = usize::from_str_radix(String::from_utf8_lossy(&line).split(';').next().unwrap_or_default().trim(), 16)
                .map_err(io::Error::other)?;
            body.extend(self.exactly(size)?);
            self.exactly(2)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Headers beside `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer with one content type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("Content-Type".to_owned(), content_type.to_owned())], body: body.into() }
    }

    /// The bytes up to and including the blank line, announcing `length` bytes of body.
    pub fn head(&self, length: usize) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {length}\r\n\r\n"));
        text.into_bytes()
    }

    /// Writes all of it.
    pub fn write(&self, wire: &mut Wire) -> io::Result<()> {
        let mut bytes = self.head(self.body.len());
        bytes.extend_from_slice(&self.body);
        wire.write_all(&bytes)?;
        wire.flush()
    }
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400..=499 => "Client Error",
        500..=599 => "Server Error",
        _ => "Status",
    }
}
