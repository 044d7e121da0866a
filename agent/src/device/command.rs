//! A byte stream that a command writes. The command's exit status decides whether the stream is whole: a dump that
//! failed half-way ends like one that succeeded, and only the status tells them apart.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::{ByteSource, SourceError};

/// Bytes of a command's standard error, from its end, that are kept for the error message.
const STDERR_MAX: usize = 2000;

/// How long to wait for the end of standard error once the command has ended: its children may keep it open for ever.
const STDERR_WAIT: Duration = Duration::from_secs(2);

/// A command that runs.
struct Running {
    command: String,
    child: Child,
    out: ChildStdout,
    /// The last part of its standard error, once that is closed.
    stderr: Receiver<String>,
    /// The command has ended: there is nothing to kill.
    ended: bool,
}

/// Starts a command, with bash if there is one: bash reports the failure of any part of a pipe (`pipefail`), sh only
/// that of the last part.
///
/// # Errors
/// [`SourceError`] when it can't be started; [`SourceError::Shell`] for a pipe without bash.
pub fn run_command(command: &str) -> Result<Box<dyn ByteSource>, SourceError> {
    let bash = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"].into_iter().find(|b| Path::new(b).exists());
    let mut shell = match bash {
        Some(bash) => Command::new(bash),
        None if command.contains('|') => return Err(SourceError::Shell { command: command.to_owned() }),
        None => Command::new("/bin/sh"),
    };
    if bash.is_some() {
        shell.args(["-o", "pipefail"]);
    }
    shell.arg("-c").arg(command).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fail = |source| SourceError::Open { path: command.into(), source };
    let mut child = shell.spawn().map_err(fail)?;
    let missing = || fail(io::Error::other("it has no output"));
    let (out, err) = (child.stdout.take().ok_or_else(missing)?, child.stderr.take().ok_or_else(missing)?);
    // A larger pipe means fewer context switches between reader and writer. If it is refused, that does not matter.
    let _ = nix::fcntl::fcntl(&out, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20));
    let (sender, stderr) = channel();
    std::thread::Builder::new().name("command".into()).spawn(move || sender.send(pass_on(err))).map_err(fail)?;
    Ok(Box::new(Running { command: command.to_owned(), child, out, stderr, ended: false }))
}

/// Copies a command's standard error to ours, and returns the last part of it.
fn pass_on(mut err: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = err.read(&mut buffer) {
        // Our standard error may be closed.
        let _ = io::stderr().write_all(&buffer[..n]);
        kept.extend_from_slice(&buffer[..n]);
        let over = kept.len().saturating_sub(STDERR_MAX);
        kept.drain(..over);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "did not end as it should".into(),
    }
}

impl Read for Running {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.out.read(buf)
    }
}

impl ByteSource for Running {
    fn finish(&mut self) -> Result<Vec<String>, SourceError> {
        let status =
            self.child.wait().map_err(|source| SourceError::Open { path: self.command.clone().into(), source })?;
        self.ended = true;
        if status.success() {
            return Ok(Vec::new());
        }
        let said = self.stderr.recv_timeout(STDERR_WAIT).unwrap_or_default();
        Err(SourceError::Command { command: self.command.clone(), how: how(status), said })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody reads the output any more. The whole process group is killed: the shell may have started other
        // processes.
        let group = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        if !self.ended {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: &str) -> (Vec<u8>, Result<Vec<String>, String>) {
        let mut source = run_command(command).unwrap();
        let mut out = Vec::new();
        source.read_to_end(&mut out).unwrap();
        (out, source.finish().map_err(|e| e.to_string()))
    }

    #[test]
    fn the_status_decides() {
        assert_eq!(read("echo whole"), (b"whole\n".to_vec(), Ok(vec![])));
        let (part, failed) = read("echo part; echo why >&2; exit 3");
        assert_eq!(part, b"part\n");
        let failed = failed.unwrap_err();
        assert!(failed.contains("exit code 3") && failed.ends_with("it said: why"), "{failed}");
        assert!(read("kill -9 $$").1.unwrap_err().contains("signal 9"));
        // The failure of any part of a pipe counts.
        assert!(read("(echo part; exit 1) | cat").1.is_err());
        assert!(read("/no/such/program").1.unwrap_err().contains("127"));
    }

    #[test]
    fn a_command_that_is_not_read_any_more_ends() {
        let source = run_command("exec yes").unwrap();
        drop(source);
    }
}
