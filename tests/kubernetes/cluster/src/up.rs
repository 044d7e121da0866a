//! Bringing a cluster up: makes its folder, starts its supervisor, and waits until all runs.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::control::ask;
use crate::down::down;
use crate::layout::{Layout, Shape};

const UP_MAX: Duration = Duration::from_secs(180);

/// Starts a cluster, and returns when all nodes are ready.
pub(crate) fn up(layout: &Layout, shape: &Shape, supervisor: Command) -> Result<Duration> {
    if ask(&layout.control(), "status").is_ok() {
        return Err(format!("cluster {} is up. `cargo xtask cluster down` ends it", shape.name));
    }
    let began = Instant::now();
    // What is left of one that was killed.
    down(layout, &shape.name)?;
    fs::create_dir_all(layout.log("")).map_err(|e| format!("{}: {e}", layout.folder().display()))?;
    let mut child = start(layout, supervisor)?;
    loop {
        if ask(&layout.control(), "status").is_ok() {
            return Ok(began.elapsed());
        }
        let ended = child.try_wait().map_err(|e| e.to_string())?;
        if ended.is_some() || began.elapsed() > UP_MAX {
            let said = fs::read_to_string(layout.log("supervisor")).unwrap_or_default();
            let why = said.lines().last().unwrap_or("the supervisor said nothing").to_owned();
            let logs = layout.log("");
            let kept = layout.folder().with_extension("failed");
            let _ = fs::remove_dir_all(&kept);
            let _ = fs::create_dir_all(&kept);
            let _ = fs::rename(&logs, kept.join("log"));
            down(layout, &shape.name)?;
            return Err(format!("{why}\nLogs: {}", kept.join("log").display()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The supervisor is number 1 of a PID namespace, so that everything ends with it. It outlives whoever started it.
fn start(layout: &Layout, supervisor: Command) -> Result<Child> {
    let log = File::create(layout.log("supervisor")).map_err(|e| e.to_string())?;
    let copy = log.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new("setsid");
    command.args(["unshare", "--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--propagation", "private"]);
    command.arg(supervisor.get_program()).args(supervisor.get_args());
    let child = command.stdin(Stdio::null()).stdout(log).stderr(copy).spawn().map_err(|e| e.to_string())?;
    write(&layout.pid(), &child.id().to_string())?;
    Ok(child)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
