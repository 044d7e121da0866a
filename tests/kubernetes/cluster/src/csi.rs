//! The CSI driver of the tests, and the programs beside it that speak with the API server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::build::Programs;
use crate::control_plane::kubectl;
use crate::layout::{DISK, Layout, Node, Shape};
use crate::node_space::NodeSpace;
use crate::process::{run, wait_for};
use crate::processes::Processes;

const NAME: &str = "csi.milkrun.test";
/// The socket of a node's driver. Each node has its own `/run`.
const SOCKET: &str = "/run/csi.sock";
const START_MAX: Duration = Duration::from_secs(30);

/// The driver's program, and the nodes that it runs on.
pub(crate) struct Driver<'a> {
    pub(crate) program: &'a Path,
    pub(crate) spaces: &'a [Arc<NodeSpace>],
}

/// Builds the driver, unless the tests say where it is. Returns its program.
pub(crate) fn build_driver(root: &Path, target: &Path) -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("MILKRUN_TEST_CSI_DRIVER") {
        return Ok(program.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).args(["build", "--quiet", "--package", "milkrun-test-csi"]).current_dir(root))?;
    let program = target.join("debug/milkrun-test-csi");
    program.canonicalize().map_err(|e| format!("{}: {e}", program.display()))
}

/// Starts the driver on each node, and on node 1 what provisions, attaches, expands and snapshots.
pub(crate) fn start(
    layout: &Layout,
    shape: &Shape,
    programs: &Programs,
    driver: &Driver<'_>,
    processes: &Processes,
) -> Result<()> {
    for (node, space) in Node::all(shape.nodes).zip(driver.spaces) {
        let name = format!("csi-driver-{}", node.0);
        let (space, program, cluster) = (Arc::clone(space), driver.program.to_owned(), shape.name.clone());
        let start = {
            let space = Arc::clone(&space);
            move || {
                let mut command = space.command(&program);
                command.args(["--socket", SOCKET, "--disk", DISK]);
                command.args(["--cluster", &cluster, "--node", &node.name(), "--zone", &node.zone()]);
                command
            }
        };
        processes.add(&name, layout.log(&name), start)?;
        wait_for(&name, START_MAX, || run(space.command("/usr/bin/test").args(["-S", SOCKET])).ok())?;
        let (name, path) = (format!("registrar-{}", node.0), programs.path("registrar"));
        processes.add(&name, layout.log(&name), move || {
            let mut command = space.command(&path);
            command.args(["--driver", NAME, "--socket", SOCKET]);
            command
        })?;
    }
    let Some(first) = driver.spaces.first() else { return Ok(()) };
    let sidecars: [(&str, &[&str]); 4] = [
        ("csi-provisioner", &["--feature-gates=Topology=true", "--extra-create-metadata", "--strict-topology"]),
        ("csi-attacher", &[]),
        ("csi-resizer", &[]),
        ("csi-snapshotter", &["--feature-gates=CSIVolumeGroupSnapshot=true", "--extra-create-metadata"]),
    ];
    let kubeconfig = format!("--kubeconfig={}", layout.pki("admin.kubeconfig").display());
    let register = {
        let (space, program, kubectl) = (Arc::clone(first), driver.program.to_owned(), programs.path("kubectl"));
        let kubeconfig = kubeconfig.clone();
        move || {
            let mut command = space.command(&program);
            command.args(["register", "--disk", DISK, &kubeconfig, "--kubectl"]).arg(&kubectl);
            command
        }
    };
    processes.add("csi-register", layout.log("csi-register"), register)?;
    for (name, args) in sidecars {
        let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        all.extend([kubeconfig.clone(), format!("--csi-address={SOCKET}")]);
        let (space, path) = (Arc::clone(first), programs.path(name));
        processes.add(name, layout.log(name), move || {
            let mut command = space.command(&path);
            command.args(&all);
            command
        })?;
    }
    let (space, path) = (Arc::clone(first), programs.path("snapshot-controller"));
    processes.add("snapshot-controller", layout.log("snapshot-controller"), move || {
        let mut command = space.command(&path);
        command.arg(&kubeconfig).args(["--leader-election=false", "--feature-gates=CSIVolumeGroupSnapshot=true"]);
        command
    })?;
    let classes = layout.folder().join("classes.yaml");
    fs::write(&classes, include_str!("files/classes.yaml")).map_err(|e| format!("{}: {e}", classes.display()))?;
    kubectl(layout, programs).args(["apply", "--server-side", "-f"]).args([&classes]).run().map(drop)
}
