//! Which volumes the storage knows. Some drivers have a process beside them that keeps the storage's register in step with the
//! persistent volumes of Kubernetes: a volume is registered when one of it is made, and no longer when one that was to be retained
//! is deleted, also if there is another one of the same storage.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;

use crate::NAME;
use crate::switches::Switches;

/// The folder of the volumes that are no longer registered, on the driver's disk.
const FOLDER: &str = "unregistered";
const AGAIN: Duration = Duration::from_millis(500);

/// What the process beside the driver is started with.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The program that shows persistent volumes.
    #[arg(long)]
    kubectl: PathBuf,
    /// An account that may see them.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The file system that holds volumes and snapshots.
    #[arg(long)]
    disk: PathBuf,
}

/// Whether the storage still knows a volume.
pub(crate) fn knows(disk: &Path, id: &str) -> bool {
    !disk.join(FOLDER).join(id).exists()
}

/// Follows the persistent volumes for ever.
pub(crate) fn follow(args: &Args) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", args.kubectl.display());
    fs::create_dir_all(args.disk.join(FOLDER)).map_err(failed)?;
    loop {
        let mut command = Command::new(&args.kubectl);
        command.arg("--kubeconfig").arg(&args.kubeconfig);
        command.args(["get", "persistentvolumes", "--watch", "--output=json", "--output-watch-events"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        if let Some(events) = child.stdout.take() {
            // An event is a line.
            for line in BufReader::new(events).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).map_err(|e| format!("{line}: {e}"))?;
                follow_one(&args.disk, &event)?;
            }
        }
        child.wait().map_err(failed)?;
        std::thread::sleep(AGAIN);
    }
}

fn follow_one(disk: &Path, event: &Value) -> Result<(), String> {
    let spec = &event["object"]["spec"];
    let id = spec["csi"]["volumeHandle"].as_str().filter(|_| spec["csi"]["driver"] == NAME);
    let Some(id) = id.filter(|id| !id.contains('/')) else { return Ok(()) };
    let path = disk.join(FOLDER).join(id);
    let forgets = || Switches::read(disk).is_ok_and(|switches| switches.forgets_retained);
    let done = match event["type"].as_str() {
        Some("ADDED") => fs::remove_file(&path),
        Some("DELETED") if spec["persistentVolumeReclaimPolicy"] == "Retain" && forgets() => fs::write(&path, ""),
        _ => Ok(()),
    };
    match done {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_forgotten_with_the_last_one_that_was_to_be_retained() {
        let disk = tempfile::tempdir().unwrap();
        fs::create_dir(disk.path().join(FOLDER)).unwrap();
        let event = |kind: &str, policy: &str| {
            let spec = json!({"csi": {"driver": NAME, "volumeHandle": "v"}, "persistentVolumeReclaimPolicy": policy});
            follow_one(disk.path(), &json!({"type": kind, "object": {"spec": spec}})).unwrap();
            knows(disk.path(), "v")
        };
        assert!(event("ADDED", "Retain") && event("DELETED", "Retain"), "without the switch it is never forgotten");
        fs::write(disk.path().join(crate::switches::FILE), r#"{"forgets_retained": true}"#).unwrap();
        assert!(event("DELETED", "Delete"));
        assert!(!event("DELETED", "Retain"));
        assert!(!event("MODIFIED", "Retain"));
        assert!(event("ADDED", "Retain"));
    }
}
