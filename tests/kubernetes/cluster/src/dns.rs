//! Names of Services: CoreDNS, on node 1.

use std::fs;

use crate::Result;
use crate::build::Programs;
use crate::control_plane::{here, kubectl};
use crate::layout::{Layout, Node};
use crate::processes::Processes;

/// Starts it, and makes the Service at whose address pods look.
pub(crate) fn start(layout: &Layout, programs: &Programs, processes: &Processes) -> Result<()> {
    let corefile = layout.folder().join("Corefile");
    let text = format!(
        ".:53 {{\n  bind {}\n  errors\n  cache 2\n  kubernetes cluster.local {{\n    kubeconfig {}\n    ttl 2\n  }}\n}}\n",
        Node(1).address(),
        layout.pki("admin.kubeconfig").display()
    );
    fs::write(&corefile, text).map_err(|e| format!("{}: {e}", corefile.display()))?;
    let program = programs.path("coredns");
    processes.add("coredns", layout.log("coredns"), move || {
        let mut command = here(&program);
        command.arg("-conf").arg(&corefile);
        command
    })?;
    let service = layout.folder().join("dns.yaml");
    let text = include_str!("files/dns.yaml").replace("{address}", &Node(1).address());
    fs::write(&service, text).map_err(|e| format!("{}: {e}", service.display()))?;
    kubectl(layout, programs).args(["apply", "--server-side", "-f"]).args([&service]).run().map(drop)
}
