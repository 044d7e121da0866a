//! The supervisor's socket: one line asks, the answer is text that begins with `ok` or `error`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::Result;

/// Serves requests, each in its turn.
pub(crate) fn serve(socket: &Path, answer: impl Fn(&str) -> Result<String>) -> Result<()> {
    let listener = UnixListener::bind(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    for stream in listener.incoming().flatten() {
        // Whoever breaks off gets no answer.
        let _ = respond(&stream, &answer);
    }
    Ok(())
}

fn respond(mut stream: &UnixStream, answer: &impl Fn(&str) -> Result<String>) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match answer(line.trim()) {
        Ok(text) => write!(stream, "ok\n{text}"),
        Err(why) => write!(stream, "error\n{why}"),
    }
}

/// Asks the supervisor.
pub(crate) fn ask(socket: &Path, line: &str) -> Result<String> {
    let unreachable = |e: std::io::Error| format!("the cluster does not answer ({}: {e}): is it up?", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    writeln!(stream, "{line}").map_err(unreachable)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(unreachable)?;
    match text.split_once('\n') {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        Some((_, rest)) => Err(rest.to_owned()),
        None => Err("the cluster ended".into()),
    }
}
