//! One request on the wire: what was handed over, what came back, and a clear word when nothing did.
//!
//! Promises: an honest answer to "may the server have the body?"; at most `cap` bytes of an answer are held; failures
//! are named in words an operator can act on, without URL, content or secret. Refuses: to judge — that is `verdict`.
//! Called by the client alone.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use reqwest::Response;

use super::envelope::printable;
use super::verdict::{BodyEnd, Verdict, later};

/// A request body that remembers whether the connection ever took it. As long as it did not, the server has at most a
/// head that announces a body, and cannot have stored anything.
pub(super) struct WatchedBody {
    data: Option<Bytes>,
    taken: Taken,
}

/// Tells whether a [`WatchedBody`] was taken.
#[derive(Clone, Default)]
pub(super) struct Taken(Arc<AtomicBool>);

impl Taken {
    /// Whether any of the body may have left.
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl WatchedBody {
    pub(super) const fn new(data: Bytes, taken: Taken) -> Self {
        Self { data: Some(data), taken }
    }
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let data = self.data.take();
        if data.is_some() {
            self.taken.0.store(true, Ordering::Release);
        }
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

/// Reads the body of an answer, at most `cap` bytes of it.
pub(super) async fn read_body(response: &mut Response, cap: usize) -> (Vec<u8>, BodyEnd) {
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(256);
    let mut body = Vec::with_capacity(announced.min(cap));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = cap - body.len();
                if let Some(fitting) = chunk.get(..room)
                    && chunk.len() > room
                {
                    body.extend_from_slice(fitting);
                    return (body, BodyEnd::TooLong);
                }
                body.extend_from_slice(&chunk);
            }
            Ok(None) => return (body, BodyEnd::Complete),
            Err(_) => return (body, BodyEnd::Cut),
        }
    }
}

/// The verdict on an attempt without any answer.
pub(super) fn failure(error: &reqwest::Error, taken: &Taken) -> Verdict {
    let sent = taken.get();
    // The total timeout can strike before there is a connection; the error does not say so.
    let reason = if error.is_timeout() && !sent { CONNECTING_TIMED_OUT.to_owned() } else { describe(error) };
    later(reason, None, sent)
}

const CONNECTING_TIMED_OUT: &str = "connecting timed out";

/// What went wrong, in words; never the URL.
pub(super) fn describe(error: &reqwest::Error) -> String {
    if let Some(tls) = find::<rustls::Error>(error) {
        return tls_words(tls);
    }
    let connecting = error.is_connect();
    if error.is_dns() {
        return "cannot resolve the host of manager_api.url".to_owned();
    }
    if error.is_timeout() {
        return if connecting { CONNECTING_TIMED_OUT } else { "no answer in time" }.to_owned();
    }
    let cause = match find::<io::Error>(error) {
        Some(io) => io_words(io),
        None => printable(&innermost(error).to_string(), 200),
    };
    if connecting { format!("cannot connect: {cause}") } else { format!("the connection failed: {cause}") }
}

fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        kind => kind.to_string(),
    }
}

fn tls_words(error: &rustls::Error) -> String {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            // The bad signature is that of an authority with the right name and another key.
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "TLS: the server's certificate is signed by an unknown authority (set manager_api.ca_file)".to_owned()
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "TLS: the server's certificate is for another host name".to_owned()
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => "TLS: the server's certificate has expired".to_owned(),
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "TLS: the server's certificate is not valid yet (is this machine's clock right?)".to_owned()
            }
            other => format!("TLS: the server's certificate is not accepted: {}", printable(&format!("{other:?}"), 120)),
        },
        rustls::Error::InvalidMessage(_) => {
            "TLS: the server does not speak TLS on this port (https:// in manager_api.url?)".to_owned()
        }
        other => format!("TLS: {}", printable(&other.to_string(), 200)),
    }
}

/// The first error of a type in a chain. An `io::Error` hides what it wraps from `source()`, so it is opened.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(found) = find::<E>(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

fn innermost<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
