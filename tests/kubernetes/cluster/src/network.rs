//! The network of the nodes: a bridge, and a pair of links for each node.

use std::fs::File;
use std::io;

use crate::Result;
use crate::layout::{Node, Shape};
use crate::process::{run, words};

/// Makes the namespaces, links and routes. `/run` must be the supervisor's own, since the names of namespaces lie there.
pub(crate) fn make(shape: &Shape) -> Result<()> {
    let ip = |line: String| run(&mut words(&format!("ip {line}")));
    ip("netns add hub".into())?;
    ip("-n hub link add name hub0 type bridge".into())?;
    ip("-n hub link set hub0 up".into())?;
    for node in Node::all(shape.nodes) {
        let name = node.name();
        ip(format!("netns add {name}"))?;
        ip(format!("-n hub link add {name} type veth peer name eth0 netns {name}"))?;
        ip(format!("-n hub link set {name} master hub0 up"))?;
        ip(format!("-n {name} addr add {}/24 dev eth0", node.address()))?;
        ip(format!("-n {name} link set eth0 up"))?;
        ip(format!("-n {name} link set lo up"))?;
        // A kubelet finds no address without a default route.
        ip(format!("-n {name} route add default via {}", node.address()))?;
        run(&mut words(&format!("ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1")))?;
    }
    for node in Node::all(shape.nodes) {
        for other in Node::all(shape.nodes).filter(|other| *other != node) {
            ip(format!("-n {} route add {} via {}", node.name(), other.pods(), other.address()))?;
        }
    }
    Ok(())
}

/// Runs `work` in a thread whose network is that of a node.
pub(crate) fn within<T: Send>(node: Node, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let space = File::open(node.network())?;
    let inside = move || {
        // This changes the network of this thread alone, and it ends with the work.
        nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(done) => done,
        Err(_) => Err(io::Error::other("the thread in the node's network panicked")),
    })
}
