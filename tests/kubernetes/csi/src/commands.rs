//! Programs that the driver runs.

use std::process::{Command, Stdio};

use tonic::Status;

/// Runs a program to its end. What it said of a failure is the error.
pub(crate) fn run(line: &[&str]) -> Result<String, Status> {
    let [program, args @ ..] = line else { return Err(Status::internal("no program")) };
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Status::internal(format!("{program}: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Status::internal(format!("{}: {}: {said}", line.join(" "), output.status)))
}
