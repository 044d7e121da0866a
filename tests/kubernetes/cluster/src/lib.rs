//! A real Kubernetes cluster on one machine: etcd, the API server, controllers and scheduler, and for each node a
//! containerd, a kubelet, a kube-proxy and a CSI driver. Nothing is simulated but the disks.
//!
//! Everything lives in namespaces of its own, so that a cluster goes without a trace when its supervisor ends:
//!
//! ```text
//! supervisor       PID and mount namespace: when it ends, the kernel ends all processes and mounts of the cluster
//!   hub            network namespace with a bridge, which is the nodes' network
//!   node1 … nodeN  mount, host name and network namespaces; /run and /var/lib are the node's own
//! ```
//!
//! etcd, the API server, the controllers and the scheduler run in the network of node 1.
//! The supervisor forwards a port of the machine's loopback to the API server, and others the other way.

mod build;
mod command;
mod control;
mod control_plane;
mod csi;
mod demo;
mod dns;
mod down;
mod forward;
mod images;
mod layout;
mod loops;
mod network;
mod node;
mod node_space;
mod pki;
mod process;
mod processes;
mod supervisor;
mod up;

pub use build::{Programs, build};
pub use command::{HELP, run};
pub use images::milkrun as make_image;

/// What a person reads who asked for something that failed.
pub type Result<T> = std::result::Result<T, String>;
