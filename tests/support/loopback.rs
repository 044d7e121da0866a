//! Ports of loopback, and questions to whoever listens there.

/// The answer to `GET path` on loopback: the status line and the body.
///
/// # Panics
/// If nobody answers.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn http_get(port: u16, path: &str) -> (String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("it takes the question");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// A port of loopback that nobody listens on.
///
/// # Panics
/// If there is none.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("a port").port()
}
