//! A cluster for people: milkrun from its chart, a SeaweedFS beside it, an application that writes, and what to try.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::build::Programs;
use crate::control_plane::here;
use crate::layout::{Layout, MACHINE};
use crate::process::{run, wait_for, words};
use crate::processes::Processes;

const IMAGE: &str = "milkrun.demo/milkrun:1";
const STORE_PORT: u16 = 8333;
const MASTER_PORT: u16 = 9333;
const FILER_PORT: u16 = 8888;
const START_MAX: Duration = Duration::from_secs(120);
/// Who may use the store.
const IDENTITIES: &str = r#"{"identities": [{"name": "demo", "credentials": [{"accessKey": "demo", "secretKey": "demo"}],
 "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}"#;

/// Starts the store, in the network of node 1, with an empty bucket `backups`.
pub(crate) fn start_store(layout: &Layout, weed: &Path, processes: &Processes) -> Result<()> {
    let folder = layout.folder().join("store");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let identities = folder.join("s3.json");
    std::fs::write(&identities, IDENTITIES).map_err(|e| format!("{}: {e}", identities.display()))?;
    let program = weed.to_owned();
    processes.add("seaweedfs", layout.log("seaweedfs"), move || {
        let mut command = here(&program);
        command.args(["server", "-s3", "-volume.max=20", "-master.volumeSizeLimitMB=256"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.args([format!("-ip={MACHINE}"), format!("-dir={}", folder.display())]);
        command.args([format!("-s3.port={STORE_PORT}"), format!("-s3.config={}", identities.display())]);
        command.args([format!("-master.port={MASTER_PORT}"), format!("-filer.port={FILER_PORT}")]);
        command
    })?;
    let make_bucket = || {
        let line = format!(
            "echo s3.bucket.create -name backups | nsenter --net={} {}",
            crate::layout::Node(1).network(),
            weed.display()
        );
        let shell = format!("{line} shell -master={MACHINE}:{MASTER_PORT} -filer={MACHINE}:{FILER_PORT}");
        run(Command::new("timeout").args(["20", "sh", "-c", &shell])).ok().filter(|said| !said.contains("error"))
    };
    wait_for("the store", START_MAX, make_bucket).map(drop)
}

/// The store's program, as `cargo xtask setup` installs it.
pub(crate) fn store_program(target: &Path) -> Result<PathBuf> {
    let found =
        run(words(&format!("find {} -name weed -type f -size +1M", target.join("venv").display())).arg("-print"));
    let found = found.ok().and_then(|said| said.lines().next().map(PathBuf::from));
    found.ok_or_else(|| "there is no SeaweedFS: cargo xtask setup".into())
}

/// Builds milkrun, and its image.
pub(crate) fn build_image(root: &Path, target: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    say("cluster: building milkrun");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet"]).current_dir(root);
    for package in ["milkrun-cli", "milkrun-agent", "milkrun-coordinator", "milkrun-operator"] {
        build.args(["--package", package]);
    }
    run(&mut build)?;
    let archive = target.join("milkrun-demo.tar");
    crate::images::milkrun(&target.join("debug"), IMAGE, &archive)?;
    Ok(archive)
}

/// Installs milkrun, a repository and the application. Returns what to try.
pub(crate) fn install(layout: &Layout, programs: &Programs, root: &Path) -> Result<String> {
    let kubeconfig = layout.kubeconfig().display().to_string();
    let with = |program: &str| {
        let mut command = Command::new(programs.path(program));
        command.arg(format!("--kubeconfig={kubeconfig}"));
        command
    };
    let chart = root.join("deploy/chart");
    run(with("helm")
        .args(["install", "milkrun"])
        .arg(chart)
        .args(["-n", "milkrun", "--create-namespace", "--set", "imagePullPolicy=Never", "--set"])
        .arg(format!("image={IMAGE}")))?;
    let objects = layout.folder().join("demo.yaml");
    std::fs::write(&objects, include_str!("files/demo.yaml")).map_err(|e| format!("{}: {e}", objects.display()))?;
    // A namespace's own account comes a moment after it.
    wait_for("the demo's objects", START_MAX, || run(with("kubectl").args(["apply", "-f"]).arg(&objects)).ok())?;
    run(with("kubectl").args(["-n", "milkrun", "wait", "--for=condition=Ready", "repository/demo", "--timeout=120s"]))?;
    run(with("kubectl").args(["-n", "shop", "rollout", "status", "deployment/orders", "--timeout=120s"]))?;
    let folder = programs.folder().display().to_string();
    Ok(include_str!("files/try.txt").replace("PROGRAMS", &folder).replace("KUBECONFIG_FILE", &kubeconfig))
}
