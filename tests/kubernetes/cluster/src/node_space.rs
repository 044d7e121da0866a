//! The namespaces of a node, and the process that holds them.
//!
//! A node has `/run` and `/var/lib` of its own, so that each of its programs finds its usual paths, and nothing of them is
//! left on the machine.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};

use crate::Result;
use crate::layout::{DISK, Layout, Node, cgroup};

/// The line with which the holder says that all is mounted.
const READY: &str = "ready";
/// What each node keeps on disk, and where.
const KEPT: [(&str, &str); 2] = [("kubelet", "/var/lib/kubelet"), ("containerd", "/var/lib/containerd")];

/// A node's namespaces. They go when the process that holds them ends.
pub(crate) struct NodeSpace {
    node: Node,
    holder: Child,
}

impl NodeSpace {
    /// Makes the namespaces of a node, in a child of this process.
    pub(crate) fn make(layout: &Layout, cluster: &str, node: Node) -> Result<Self> {
        make_cgroups(&cgroup(cluster, node))?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node.network()));
        command.args(["unshare", "--mount", "--uts", "--propagation", "private"]).arg(program);
        command.args(["cluster", "hold-node"]).arg(layout.folder()).arg(node.0.to_string());
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
        let mut line = String::new();
        if let Some(out) = holder.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(|e| e.to_string())?;
        }
        if line.trim() == READY { Ok(Self { node, holder }) } else { Err(format!("{}: {}", node.name(), line.trim())) }
    }

    pub(crate) fn node(&self) -> Node {
        self.node
    }

    /// The process that holds the namespaces, as the supervisor numbers processes.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs on the node.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.holder.id())).args(["--mount", "--uts"]);
        command.arg(format!("--net={}", self.node.network())).arg("--").arg(program.as_ref());
        command
    }
}

/// What the holder does: mounts, says so, and waits until its standard input ends.
pub(crate) fn hold(folder: &Path, node: Node) -> Result<()> {
    let done = prepare(folder, node);
    let mut out = std::io::stdout();
    let line = done.as_ref().err().map_or(READY, String::as_str);
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| e.to_string())?;
    done?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop).map_err(|e| e.to_string())
}

fn prepare(folder: &Path, node: Node) -> Result<()> {
    nix::unistd::sethostname(node.name()).map_err(|e| format!("host name: {e}"))?;
    // Held open over the new /run.
    let disk = File::open(DISK).map_err(|e| format!("{DISK}: {e}"))?;
    let networks = File::open("/run/netns").map_err(|e| format!("/run/netns: {e}"))?;
    let through = |file: &File| PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
    tmpfs("/run")?;
    bind(&through(&disk), Path::new(DISK))?;
    bind(&through(&networks), Path::new("/run/netns"))?;
    tmpfs("/var/lib")?;
    // Kubelets remove logs of pods that they do not know.
    tmpfs("/var/log")?;
    for (what, place) in KEPT {
        let kept = folder.join(node.name()).join(what);
        fs::create_dir_all(&kept).map_err(|e| format!("{}: {e}", kept.display()))?;
        bind(&kept, Path::new(place))?;
    }
    // Mounts of pods must reach the kubelet, and the other way.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| format!("/: {e}"))
}

fn tmpfs(place: &str) -> Result<()> {
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(|e| format!("{place}: {e}"))
}

fn bind(source: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place).map_err(|e| format!("{}: {e}", place.display()))?;
    mount(Some(source), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| format!("{} on {}: {e}", source.display(), place.display()))
}

/// Every hierarchy of version 1, or the only one of version 2.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

fn make_cgroups(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let mut at = hierarchy.clone();
        for part in Path::new(name) {
            let parent = at.clone();
            at.push(part);
            fs::create_dir_all(&at).map_err(|e| format!("{}: {e}", at.display()))?;
            // A cpuset is empty at first, and no process may enter it so.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(parent.join(file)) {
                    let _ = fs::write(at.join(file), value);
                }
            }
        }
    }
    Ok(())
}
