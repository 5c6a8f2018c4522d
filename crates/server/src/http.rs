//! As much of HTTP/1.1 (RFC 9112) as the control socket needs: one request a connection, bodies by Content-Length.

use std::io::{self, Read, Write};

use crate::types::{ApiError, Status};

/// Request line and headers.
const HEAD_MAX: usize = 8 << 10;
/// A request's body; the largest is a path.
const REQUEST_BODY_MAX: usize = 64 << 10;
/// An answer's body.
const RESPONSE_BODY_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 32;

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
    /// The protocol to go on with, if another is asked for.
    pub upgrade: Option<String>,
}

/// The protocol of a console's connection.
pub(crate) const CONSOLE: &str = "umbra-console";

/// Reads until the head is complete; what follows it is returned too.
fn read_head(stream: &mut impl Read) -> io::Result<(Vec<u8>, usize)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            return Ok((bytes, end + 4));
        }
        if bytes.len() > HEAD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of the message is too long"));
        }
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}

fn content_length(headers: &[httparse::Header<'_>]) -> Option<usize> {
    let mut found = headers.iter().filter(|h| h.name.eq_ignore_ascii_case("content-length"));
    match (found.next(), found.next()) {
        (None, _) => Some(0),
        (Some(h), None) => std::str::from_utf8(h.value).ok()?.trim().parse().ok(),
        _ => None,
    }
}

fn read_body(stream: &mut impl Read, mut have: Vec<u8>, len: usize) -> io::Result<Vec<u8>> {
    let got = have.len();
    have.resize(len, 0);
    if got < len {
        stream.read_exact(&mut have[got..])?;
    }
    Ok(have)
}

/// Reads a request.
pub(crate) fn read_request(stream: &mut impl Read) -> Result<Request, ApiError> {
    let bad = |what: &str| ApiError::new(Status::BadRequest, what);
    let (bytes, end) = read_head(stream).map_err(|e| bad(&format!("cannot read the request: {e}")))?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(&bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err(bad("this is no HTTP/1.1 request")),
    }
    let (Some(method), Some(path)) = (head.method, head.path) else {
        return Err(bad("this is no HTTP/1.1 request"));
    };
    let len = content_length(head.headers).ok_or_else(|| bad("the Content-Length is no number"))?;
    if len > REQUEST_BODY_MAX {
        return Err(ApiError::new(Status::TooLarge, "the request's body is larger than 64 KiB"));
    }
    let upgrade = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("upgrade"));
    let upgrade = upgrade.and_then(|h| Some(std::str::from_utf8(h.value).ok()?.trim().to_owned()));
    let (method, path) = (method.to_owned(), path.to_owned());
    let body = read_body(stream, bytes[end..].to_vec(), len)
        .map_err(|e| bad(&format!("cannot read the request's body: {e}")))?;
    Ok(Request { method, path, body, upgrade })
}

/// Writes a request.
pub(crate) fn write_request(
    stream: &mut impl Write,
    method: &str,
    path: &str,
    body: &[u8],
) -> io::Result<()> {
    let len = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: umbra\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Asks for the console.
pub(crate) fn write_upgrade(stream: &mut impl Write, path: &str) -> io::Result<()> {
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: umbra\r\nConnection: Upgrade\r\nUpgrade: {CONSOLE}\r\n\r\n");
    stream.write_all(head.as_bytes())
}

/// Agrees to go on with the console.
pub(crate) fn write_switch(stream: &mut impl Write) -> io::Result<()> {
    let (code, phrase) = Status::Switching.line();
    let head = format!("HTTP/1.1 {code} {phrase}\r\nConnection: Upgrade\r\nUpgrade: {CONSOLE}\r\n\r\n");
    stream.write_all(head.as_bytes())
}

/// Writes an answer.
pub(crate) fn write_response(stream: &mut impl Write, status: Status, body: &[u8]) -> io::Result<()> {
    let ((code, phrase), len) = (status.line(), body.len());
    let head = format!(
        "HTTP/1.1 {code} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Reads an answer: its code and body. Of an answer that switches the protocol, the body is what has come of the other one.
pub(crate) fn read_response(stream: &mut impl Read) -> io::Result<(u16, Vec<u8>)> {
    let odd = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let (bytes, end) = read_head(stream)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    head.parse(&bytes).map_err(|_| odd("the answer is no HTTP/1.1"))?;
    let code = head.code.ok_or_else(|| odd("the answer has no status"))?;
    if code == Status::Switching.line().0 {
        return Ok((code, bytes[end..].to_vec()));
    }
    let len = content_length(head.headers)
        .filter(|n| *n <= RESPONSE_BODY_MAX)
        .ok_or_else(|| odd("the answer's length is wrong"))?;
    Ok((code, read_body(stream, bytes[end..].to_vec(), len)?))
}
