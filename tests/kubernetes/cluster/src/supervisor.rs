//! The process that owns a cluster: number 1 of its PID namespace.
//!
//! It starts everything, answers on its socket, and reaps whoever ends. When it ends, the kernel ends all the rest.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};

use crate::build::Programs;
use crate::control::serve;
use crate::control_plane::{self, kubectl};
use crate::csi::{self, Driver};
use crate::layout::{DISK, Layout, Node, Shape};
use crate::node_space::NodeSpace;
use crate::process::{run, wait_for, words};
use crate::processes::Processes;
use crate::{Result, demo, dns, forward, images, network, node, pki};

/// How large the disk of all volumes may grow. It is a sparse file.
const DISK_SIZE: &str = "64G";
const READY_MAX: Duration = Duration::from_secs(60);

/// A cluster that runs.
struct Cluster {
    processes: Arc<Processes>,
    /// A node's namespaces go with its holder.
    spaces: Vec<Arc<NodeSpace>>,
}

/// Brings up a cluster, and looks after it until this process is killed.
///
/// # Errors
/// With the first thing that failed while it came up.
pub(crate) fn supervise(layout: &Layout, shape: &Shape, programs: &Programs, driver: &Path) -> Result<()> {
    let cluster = bring_up(layout, shape, programs, driver)?;
    let processes = Arc::clone(&cluster.processes);
    let socket = layout.control();
    std::thread::spawn(move || serve(&socket, |line| answer(&cluster, line)));
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(status) => status.pid().into_iter().for_each(|pid| processes.ended(pid)),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(format!("no process is left to wait for: {e}")),
        }
    }
}

fn bring_up(layout: &Layout, shape: &Shape, programs: &Programs, driver: &Path) -> Result<Cluster> {
    mount_own(layout)?;
    network::make(shape)?;
    let port = forward::to_api_server().map_err(|e| format!("a port for the API server: {e}"))?;
    for port in &shape.machine_ports {
        forward::to_machine(*port).map_err(|e| format!("port {port}: {e}"))?;
    }
    pki::make(layout, shape, port)?;
    let processes = Arc::new(Processes::default());
    let images = images::base(programs.folder())?;
    control_plane::start(layout, programs, &processes)?;
    let apply = |path: &Path| kubectl(layout, programs).args(["apply", "--server-side", "-f"]).args([path]).run();
    apply(&programs.definitions())?;
    dns::start(layout, programs, &processes)?;
    let spaces = start_nodes(layout, shape, programs, &images, &processes)?;
    csi::start(layout, shape, programs, &Driver { program: driver, spaces: &spaces }, &processes)?;
    if let Some(store) = &shape.store {
        demo::start_store(layout, store, &processes)?;
    }
    wait_until_ready(layout, shape, programs)?;
    Ok(Cluster { processes, spaces })
}

/// Waits for all that a person's first `kubectl apply` needs: nodes, the driver on each, the account of the first namespace.
fn wait_until_ready(layout: &Layout, shape: &Shape, programs: &Programs) -> Result<()> {
    let wait = |what: &str, args: &[&str], enough: &dyn Fn(&str) -> bool| {
        let look = || kubectl(layout, programs).args(args).ok().filter(|said| enough(said)).map(drop);
        wait_for(what, READY_MAX, look)
    };
    let nodes = usize::from(shape.nodes);
    let conditions = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    let ready = |said: &str| said.split_whitespace().filter(|word| *word == "True").count() == nodes;
    wait("all nodes to be ready", &["get", "nodes", "-o", conditions], &ready)?;
    let drivers = "jsonpath={.items[*].spec.drivers[*].nodeID}";
    let registered = |said: &str| said.split_whitespace().count() == nodes;
    wait("the driver on all nodes", &["get", "csinodes", "-o", drivers], &registered)?;
    wait("the first ServiceAccount", &["get", "serviceaccount", "default", "-o", "name"], &|_| true)
}

/// Mounts that are the cluster's own: `/run`, and the disk that volumes lie on.
fn mount_own(layout: &Layout) -> Result<()> {
    run(&mut words("mount -t tmpfs tmpfs /run"))?;
    for folder in ["/run/netns", DISK] {
        fs::create_dir_all(folder).map_err(|e| format!("{folder}: {e}"))?;
    }
    let disk = layout.disk().display().to_string();
    run(&mut words(&format!("truncate -s {DISK_SIZE} {disk}")))?;
    run(&mut words(&format!("mkfs.xfs -q -m reflink=1 {disk}")))?;
    // The kernel frees the loop device when nobody has it mounted any more.
    run(&mut words(&format!("mount -o loop,discard {disk} {DISK}"))).map(drop)
}

/// Starts all nodes at once.
fn start_nodes(
    layout: &Layout,
    shape: &Shape,
    programs: &Programs,
    images: &[std::path::PathBuf],
    processes: &Processes,
) -> Result<Vec<Arc<NodeSpace>>> {
    let started = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in Node::all(shape.nodes) {
            let started = &started;
            scope.spawn(move || {
                let done = node::start(layout, &shape.name, number, programs, images, processes);
                started.lock().unwrap_or_else(PoisonError::into_inner).push((number.0, done));
            });
        }
    });
    let mut started = started.into_inner().unwrap_or_else(PoisonError::into_inner);
    started.sort_by_key(|(number, _)| *number);
    started.into_iter().map(|(_, done)| done).collect()
}

/// What the supervisor's socket is asked.
fn answer(Cluster { processes, spaces }: &Cluster, line: &str) -> Result<String> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("status", "") => {
            let line = |(name, runs): (String, bool)| format!("{name} {}\n", if runs { "running" } else { "ended" });
            Ok(processes.list().into_iter().map(line).collect())
        }
        ("nodes", "") => Ok(spaces.iter().map(|space| format!("{}\n", space.node().name())).collect()),
        ("holder", name) => {
            let space = spaces.iter().find(|space| space.node().name() == name);
            space.map(|space| space.holder().to_string()).ok_or_else(|| format!("no node is called {name}"))
        }
        ("start", name) => processes.start(name).map(|()| String::new()),
        ("kill", name) => {
            processes.signal(name, Signal::SIGKILL)?;
            wait_for(name, READY_MAX, || (!processes.is_running(name)).then(String::new))
        }
        ("pause", name) => processes.signal(name, Signal::SIGSTOP).map(|()| String::new()),
        ("resume", name) => processes.signal(name, Signal::SIGCONT).map(|()| String::new()),
        _ => Err(format!("{line:?} is no request")),
    }
}
