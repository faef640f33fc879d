//! As much of HTTP/1.0 (RFC 1945) as a scrape needs: one GET, one answer, the end.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::control::line::Timed;

/// The longest head of a request, in bytes.
pub const MAX_HEAD: usize = 8192;
/// How long a client may take to ask, and again to read.
const PATIENCE: Duration = Duration::from_secs(2);
/// OpenMetrics 1.0, section "Protocol Negotiation".
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The metrics.
    Metrics,
    /// Their head only.
    HeadOnly,
    /// The status line of a refusal.
    Refusal(&'static str),
}

/// Answers one client; `metrics` is asked only when it is needed.
///
/// # Errors
/// When the connection breaks or is too slow to be answered.
pub fn answer(stream: &UnixStream, metrics: impl FnOnce() -> String) -> io::Result<()> {
    let wanted = read(stream)?;
    let (line, kind, body) = match wanted {
        Wanted::Metrics | Wanted::HeadOnly => ("200 OK", CONTENT_TYPE, metrics()),
        Wanted::Refusal(line) => (line, "text/plain; charset=utf-8", format!("{line}\n")),
    };
    let allow = match wanted {
        Wanted::Refusal(METHOD) => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let length = body.len();
    let mut reply = format!(
        "HTTP/1.0 {line}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n"
    );
    if wanted != Wanted::HeadOnly {
        reply.push_str(&body);
    }
    Timed::new(stream, PATIENCE).write_all(reply.as_bytes())
}

const METHOD: &str = "405 Method Not Allowed";
const TOO_LONG: &str = "431 Request Header Fields Too Large";
const TOO_SLOW: &str = "408 Request Timeout";
const CUT_OFF: &str = "400 Bad Request";

fn read(stream: &UnixStream) -> io::Result<Wanted> {
    let mut timed = Timed::new(stream, PATIENCE);
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let count = match timed.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Ok(Wanted::Refusal(TOO_SLOW));
            }
            Err(error) => return Err(error),
        };
        head.extend(chunk.iter().take(count));
        match (judge(&head), count) {
            (Some(wanted), _) => return Ok(wanted),
            (None, 0) => return Ok(Wanted::Refusal(CUT_OFF)),
            (None, _) => {}
        }
    }
}

/// What a request asks for; `None`: its head is not complete.
pub fn judge(head: &[u8]) -> Option<Wanted> {
    let ends = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
    if !ends(b"\r\n\r\n") && !ends(b"\n\n") {
        return (head.len() > MAX_HEAD).then_some(Wanted::Refusal(TOO_LONG));
    }
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let [method, target, version] = words[..] else {
        return Some(Wanted::Refusal(CUT_OFF));
    };
    let path = target.split('?').next().unwrap_or_default();
    Some(match (method, path) {
        _ if !version.starts_with("HTTP/1.") => Wanted::Refusal(CUT_OFF),
        ("GET", "/metrics" | "/") => Wanted::Metrics,
        ("HEAD", "/metrics" | "/") => Wanted::HeadOnly,
        ("GET" | "HEAD", _) => Wanted::Refusal("404 Not Found"),
        _ => Wanted::Refusal(METHOD),
    })
}
