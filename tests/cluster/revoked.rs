//! Certificates that expire, are revoked, or whose node left the inventory: their sessions end within seconds.

use std::fs;
use std::time::{Duration, Instant};

use milkrun_tests::cluster::Cluster;
use milkrun_tests::process::{Process, wait_for};

use crate::many_nodes::two_nodes;

/// A session ends within this time: the coordinator checks every second or two.
const SECONDS: Duration = Duration::from_secs(15);

fn is_connected(c: &Cluster, node: &str) -> bool {
    let agents = c.run(&["agents", "--json"]).ok().json();
    agents["agents"].as_array().unwrap().iter().any(|a| a["node"] == node && a["connected"] == true)
}

fn ends(c: &Cluster, coordinator: &Process, agent: &Process, node: &str, why: &str) {
    let began = Instant::now();
    wait_for("the session's end", || (!is_connected(c, node)).then_some(()));
    assert!(began.elapsed() < SECONDS, "{:?}", began.elapsed());
    coordinator.wait_for_log(why);
    agent.wait_for_log(why);
}

#[test]
fn a_session_ends_with_its_certificate_and_its_node() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let coordinator = c.coordinator();

    // The agent's certificate expires. With a new one in its place the agent comes back by itself.
    let tls = c.certs(&["agent", "node-a", "--for", "8s"]);
    let agent = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    wait_for("the certificate's end", || agent.log().contains("the certificate").then_some(()));
    ends(&c, &coordinator, &agent, "node-a", "ended at");
    // The log says why the next attempts fail.
    agent.wait_for_log("put a new one in its place");
    fs::rename(&tls, c.folder().join("ended")).unwrap();
    c.certs(&["agent", "node-a"]);
    c.wait_for_agents(&["node-a"]);

    // The certificate is revoked by its folder, and a new one can have its name.
    let stolen = c.folder().join("stolen");
    fs::create_dir(&stolen).unwrap();
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        fs::copy(tls.join(file), stolen.join(file)).unwrap();
    }
    drop(agent);
    let agent = c.agent_as("node-a", &stolen);
    c.wait_for_agents(&["node-a"]);
    let said = c.certs(&["revoke", tls.to_str().unwrap()]);
    assert!(said.to_str().unwrap().contains("is revoked"), "{said:?}");
    ends(&c, &coordinator, &agent, "node-a", "was revoked");
    agent.wait_for_log("CertificateRevoked");
    drop(agent);
    // Other agents go on, and so does the one with the new certificate.
    let _b = c.agent("node-b");
    let agent = c.agent("node-a");
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();

    // Application and node are removed from the inventory.
    let inventory = fs::read_to_string(c.folder().join("inventory.yaml")).unwrap();
    c.inventory("nodes: { node-b: }\napplications: {}\n");
    ends(&c, &coordinator, &agent, "node-a", "the inventory has no node node-a");
    assert!(is_connected(&c, "node-b"));
    c.inventory(&inventory);
    c.wait_for_agents(&["node-a", "node-b"]);
}

#[test]
fn a_second_agent_of_a_node_is_refused_and_seen() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let coordinator = c.coordinator();
    let first = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    let tls = c.folder().join("certs/agent-node-a");
    fs::rename(c.folder().join("node-a.log"), c.folder().join("first.log")).unwrap();
    let second = c.agent_as("node-a", &tls);
    let why = "another agent of node node-a is connected";
    second.wait_for_log(why);
    coordinator.wait_for_log(why);
    let agents = c.run(&["agents", "--json"]).ok().json();
    let a = agents["agents"].as_array().unwrap().iter().find(|a| a["node"] == "node-a").unwrap().clone();
    assert!(a["connected"] == true && a["rival"]["from"].as_str().unwrap().contains("127.0.0.1"), "{a}");
    assert!(c.run(&["agents"]).ok().err.contains("has a second agent"));
    let log = fs::read_to_string(c.folder().join("first.log")).unwrap();
    assert!(!log.contains("no session"), "the first one was thrown out: {log}");
    // When the first one stops, the other takes its place.
    drop(first);
    wait_for("the second agent", || second.log().contains("the coordinator takes this agent").then_some(()));
}
