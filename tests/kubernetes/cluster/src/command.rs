//! `cargo xtask cluster …`

use std::path::{Path, PathBuf};
use std::process::Command;

use lexopt::prelude::*;

use crate::build::{Programs, build};
use crate::control::ask;
use crate::down::down;
use crate::layout::{Layout, MACHINE, Node, Shape};
use crate::node_space;
use crate::supervisor::supervise;
use crate::up::up;
use crate::{Result, csi, demo};

/// What `cargo xtask cluster` can do.
pub const HELP: &str = "cargo xtask cluster build              build the programs of the cluster; needs Go
cargo xtask cluster programs           print the folder of these programs
cargo xtask cluster up [OPTIONS]       start a cluster; prints its KUBECONFIG
    --nodes N                          how many nodes it has, 1 to 9 (2)
    --version 1.34                     an older Kubernetes; also for build
    --with-demo                        with milkrun, SeaweedFS and an application; prints what to try
    --machine-port PORT                a port of this machine's loopback that nodes reach at 10.90.0.1; may be repeated
cargo xtask cluster down               end it; nothing is left
cargo xtask cluster status             its processes
cargo xtask cluster start|kill|pause|resume PROCESS
cargo xtask cluster load ARCHIVE       give all nodes an image
cargo xtask cluster on NODE COMMAND…   run a command on a node
    --name NAME                        for all but build: which cluster (play)";

struct Options {
    name: String,
    nodes: u8,
    machine_ports: Vec<u16>,
    version: Option<String>,
    with_demo: bool,
    store: Option<PathBuf>,
    rest: Vec<String>,
}

/// Runs `cargo xtask cluster ARGS…`.
///
/// # Errors
/// With a text for a person.
pub fn run(args: &[String], root: &Path, target: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let Some((what, rest)) = args.split_first() else { return Err(HELP.into()) };
    let module = root.join("tests/kubernetes/plane");
    match (what.as_str(), rest) {
        ("programs", []) => {
            let programs =
                Programs::built(&module, target, None)?.ok_or("they are not built: cargo xtask cluster build")?;
            say(&programs.folder().display().to_string());
            return Ok(());
        }
        // These are how the cluster's own processes are started.
        ("supervise", [folder, rest @ ..]) => {
            let options = parse(rest)?;
            let version = options.version.as_deref();
            let programs = Programs::built(&module, target, version)?.ok_or("the cluster's programs are not built")?;
            let [driver] = &options.rest[..] else { return Err("supervise FOLDER DRIVER".into()) };
            return supervise(&Layout::at(folder), &options.shape(), &programs, Path::new(driver));
        }
        ("hold-node", [folder, node]) => {
            let number = node.parse().map_err(|_| format!("{node:?} is no node"))?;
            return node_space::hold(Path::new(folder), Node(number));
        }
        _ => {}
    }
    let mut options = parse(rest)?;
    let layout = Layout::new(target, &options.name);
    match what.as_str() {
        "build" => build(&module, target, options.version.as_deref(), say).map(drop),
        "up" => {
            let programs = build(&module, target, options.version.as_deref(), say)?;
            let image = if options.with_demo {
                options.store = Some(demo::store_program(target)?);
                Some(demo::build_image(root, target, say)?)
            } else {
                None
            };
            let taken =
                up(&layout, &options.shape(), supervisor(&layout, &options, csi::build_driver(root, target)?)?)?;
            say(&format!("cluster: {} nodes are ready after {:.1} s", options.nodes, taken.as_secs_f64()));
            say(&format!("export KUBECONFIG={}", layout.kubeconfig().display()));
            if let Some(image) = image {
                load(&layout, &image.display().to_string())?;
                say(&demo::install(&layout, &programs, root)?);
            }
            Ok(())
        }
        "down" => down(&layout, &options.name),
        "status" => ask(&layout.control(), "status").map(|text| say(text.trim_end())),
        "start" | "kill" | "pause" | "resume" => match &options.rest[..] {
            [process] => ask(&layout.control(), &format!("{what} {process}")).map(drop),
            _ => Err(HELP.into()),
        },
        "load" => match &options.rest[..] {
            [archive] => load(&layout, archive),
            _ => Err(HELP.into()),
        },
        "on" => on_node(&layout, &options.rest),
        _ => Err(HELP.into()),
    }
}

impl Options {
    fn shape(&self) -> Shape {
        Shape {
            name: self.name.clone(),
            nodes: self.nodes,
            machine_ports: self.machine_ports.clone(),
            store: self.store.clone(),
        }
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        name: "play".into(),
        nodes: 2,
        machine_ports: Vec::new(),
        version: None,
        with_demo: false,
        store: None,
        rest: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Long("name") => options.name = text(&mut parser)?,
            Long("nodes") => options.nodes = number(&mut parser)?,
            Long("machine-port") => options.machine_ports.push(number(&mut parser)?),
            Long("version") => options.version = Some(text(&mut parser)?),
            Long("with-demo") => options.with_demo = true,
            Long("store") => options.store = Some(text(&mut parser)?.into()),
            Value(word) => {
                options.rest.push(word.to_string_lossy().into_owned());
                // What follows a node's name is a command with options of its own.
                if let Ok(rest) = parser.raw_args() {
                    let more = rest.map(|word| word.to_string_lossy().into_owned());
                    options.rest.extend(more);
                }
            }
            other => return Err(format!("{}\n{HELP}", other.unexpected())),
        }
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if options.name.is_empty() || options.name.len() > 12 || !options.name.chars().all(fits) {
        return Err(format!("{:?} is no name of a cluster: 1 to 12 of a-z and 0-9", options.name));
    }
    if !(1..=9).contains(&options.nodes) {
        return Err(format!("{} nodes: a cluster has 1 to 9", options.nodes));
    }
    Ok(options)
}

fn text(parser: &mut lexopt::Parser) -> Result<String> {
    parser.value().and_then(|value| value.string()).map_err(|e| e.to_string())
}

fn number<T: std::str::FromStr>(parser: &mut lexopt::Parser) -> Result<T>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
{
    parser.value().and_then(|value| value.parse()).map_err(|e| e.to_string())
}

/// The command that becomes the supervisor.
fn supervisor(layout: &Layout, options: &Options, driver: PathBuf) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command.args(["cluster", "supervise"]).arg(layout.folder());
    command.args(["--name", &options.name, "--nodes", &options.nodes.to_string()]);
    for port in &options.machine_ports {
        command.args(["--machine-port", &port.to_string()]);
    }
    if let Some(version) = &options.version {
        command.args(["--version", version]);
    }
    if let Some(store) = &options.store {
        command.arg("--store").arg(store);
    }
    command.arg(driver);
    Ok(command)
}

/// Imports an image on all nodes.
fn load(layout: &Layout, archive: &str) -> Result<()> {
    let archive = Path::new(archive).canonicalize().map_err(|e| format!("{archive}: {e}"))?.display().to_string();
    for node in ask(&layout.control(), "nodes")?.split_whitespace() {
        let words = [node, "/usr/bin/ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs", &archive];
        on_node(layout, &words.map(str::to_owned))?;
    }
    Ok(())
}

/// Runs a command on a node, with this process's standard streams.
fn on_node(layout: &Layout, words: &[String]) -> Result<()> {
    let [node, program, args @ ..] = words else { return Err(HELP.into()) };
    let holder = ask(&layout.control(), &format!("holder {node}"))?;
    let supervisor = crate::down::supervisor(layout).ok_or("the cluster's supervisor is gone")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={supervisor}")).args(["--pid", "--mount", "nsenter"]);
    command.arg(format!("--target={holder}")).args(["--mount", "--uts", "--net", "--"]).arg(program).args(args);
    let status = command.status().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("{program} ended with {status} on {node} (machine: {MACHINE})")) }
}
