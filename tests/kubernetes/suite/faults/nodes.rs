//! Nodes and an API server that go away in the middle.

use std::time::Duration;

use super::{start_small, wait_for_message, wait_for_success};
use crate::installed::{add_repository, back_up, with_store};
use crate::playground::Playground;

/// Lets agents run nowhere, or everywhere again.
fn agents(cluster: &Playground, run: bool) {
    let selector = if run { "null" } else { "{\"none\":\"none\"}" };
    let patch = format!("{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{selector}}}}}}}}}");
    let words = ["-n", "milkrun", "patch", "daemonset", "milkrun-agent", "--type=merge", "-p", &patch];
    let said = cluster.try_kubectl(&words);
    assert!(said.ok, "{}", said.out);
    if !run {
        let pods = "-n milkrun get pods -l app.kubernetes.io/name=milkrun-agent -o name";
        cluster.wait_for("the agents to go", pods, str::is_empty);
    }
}

/// Starts a backup that waits for an agent, its holder running. Returns the holder's node.
fn waiting_backup(cluster: &Playground, name: &str) -> String {
    agents(cluster, false);
    back_up(cluster, "shop", name);
    wait_for_message(cluster, "backup", "shop", name, "an agent on node");
    cluster.kubectl("-n milkrun-work get pods -o jsonpath={.items[0].spec.nodeName}")
}

#[test]
fn nodes_and_the_api_server_may_go_away_in_the_middle() {
    let test = "nodes_and_the_api_server_may_go_away_in_the_middle";
    let Some((cluster, store)) = with_store(test, 2) else { return };
    start_small(&cluster, "shop", "data");
    // A pod that nobody would make again stops a drain, and it is not ours.
    cluster.kubectl("-n shop delete pod user --now");
    cluster.wait_for("the volume to be detached", "get volumeattachments -o name", str::is_empty);
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    let node = waiting_backup(&cluster, "drained");
    cluster.kubectl(&format!("drain {node} --ignore-daemonsets --delete-emptydir-data --timeout=120s"));
    agents(&cluster, true);
    cluster.kubectl(&format!("uncordon {node}"));
    wait_for_success(&cluster, "backup", "shop", "drained");
    cluster.wait_for_inventory(&before);

    let kubelet = |node: &str| node.replace("node", "kubelet-");
    let node = waiting_backup(&cluster, "paused");
    assert!(cluster.cluster("pause", &[&kubelet(&node)]).ok);
    agents(&cluster, true);
    std::thread::sleep(Duration::from_secs(10));
    assert!(cluster.cluster("resume", &[&kubelet(&node)]).ok);
    wait_for_success(&cluster, "backup", "shop", "paused");
    cluster.wait_for_inventory(&before);

    let node = waiting_backup(&cluster, "restarted");
    assert!(cluster.cluster("kill", &[&kubelet(&node)]).ok);
    agents(&cluster, true);
    std::thread::sleep(Duration::from_secs(5));
    assert!(cluster.cluster("start", &[&kubelet(&node)]).ok);
    wait_for_success(&cluster, "backup", "shop", "restarted");
    cluster.wait_for_inventory(&before);

    // The Lease ends meanwhile, and all watches break.
    waiting_backup(&cluster, "no-api-server");
    assert!(cluster.cluster("kill", &["kube-apiserver"]).ok);
    std::thread::sleep(Duration::from_secs(60));
    assert!(cluster.cluster("start", &["kube-apiserver"]).ok);
    cluster.wait_for("the API server", "get --raw /readyz", |said| said == "ok");
    agents(&cluster, true);
    wait_for_success(&cluster, "backup", "shop", "no-api-server");
    cluster.wait_for_inventory(&before);

    // The node's object goes; its kubelet makes it again when it starts.
    let node = waiting_backup(&cluster, "deleted-node");
    cluster.kubectl(&format!("delete node {node}"));
    assert!(cluster.cluster("kill", &[&kubelet(&node)]).ok);
    assert!(cluster.cluster("start", &[&kubelet(&node)]).ok);
    cluster.wait_for("the node", &format!("get node {node} -o name"), |_| true);
    agents(&cluster, true);
    cluster.wait_for_run("backup", "shop", "deleted-node");
    cluster.wait_for_inventory(&before);
}
