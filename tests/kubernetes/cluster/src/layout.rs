//! Names, paths and addresses of a cluster.

use std::path::{Path, PathBuf};

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Its name: `[a-z0-9]`, at most 12 characters, since names of cgroups and loop devices are made from it.
    pub(crate) name: String,
    /// How many nodes it has, 1 to 9.
    pub(crate) nodes: u8,
    /// Ports of the machine's loopback that the nodes reach at the same port of [`Layout::machine`].
    pub(crate) machine_ports: Vec<u16>,
    /// The program of the store that runs beside it, if one does.
    pub(crate) store: Option<PathBuf>,
}

/// Where the files of a cluster lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// The folder of the cluster `name` below the build's target folder.
    pub(crate) fn new(target: &Path, name: &str) -> Self {
        Self { folder: target.join("cluster").join("run").join(name) }
    }

    /// The cluster whose folder this is.
    pub(crate) fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kubeconfig of an administrator, for programs of this machine.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.folder.join("log").join(process)
    }

    /// A key, a certificate or a kubeconfig.
    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.folder.join("pki").join(file)
    }

    /// A folder that one node alone uses.
    pub(crate) fn node(&self, node: Node, what: &str) -> PathBuf {
        self.folder.join(node.name()).join(what)
    }

    /// The socket that the supervisor listens on.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// The process id, on this machine, of the supervisor's parent.
    pub(crate) fn pid(&self) -> PathBuf {
        self.folder.join("pid")
    }

    /// The file system that volumes lie on, as a file.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk.xfs")
    }
}

/// A node, by its number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node(pub(crate) u8);

impl Node {
    pub(crate) fn all(count: u8) -> impl Iterator<Item = Self> {
        (1..=count).map(Self)
    }

    pub(crate) fn name(self) -> String {
        format!("node{}", self.0)
    }

    pub(crate) fn zone(self) -> String {
        format!("zone-{}", self.0)
    }

    pub(crate) fn address(self) -> String {
        format!("10.90.0.{}", self.0)
    }

    /// The network of its pods.
    pub(crate) fn pods(self) -> String {
        format!("10.91.{}.0/24", self.0)
    }

    /// The network namespace, as a file.
    pub(crate) fn network(self) -> String {
        format!("/run/netns/{}", self.name())
    }
}

/// The address at which nodes and pods find ports of the machine's loopback that are forwarded to them.
pub(crate) const MACHINE: &str = "10.90.0.1";
/// The network of Services.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The API server's own Service.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// The API server's port on node 1.
pub(crate) const API_PORT: u16 = 6443;
/// Where volumes lie, inside of the supervisor's mount namespace.
pub(crate) const DISK: &str = "/run/milkrun-disk";

/// The cgroup that a node's pods are below, in each hierarchy.
pub(crate) fn cgroup(cluster: &str, node: Node) -> String {
    format!("milkrun-{cluster}/{}", node.name())
}
