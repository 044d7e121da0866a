//! Network partitions: each process has its own host (a network namespace), the store is a real S3 server with Object
//! Lock, and links are cut.

use std::fs;
use std::process::Stdio;

use milkrun_tests::cluster::{Cluster, is_over};
use milkrun_tests::network::Network;
use milkrun_tests::process::wait_for;
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::{is_root, noise, skip};

use crate::agent_failover::SLOWLY;

pub(crate) const NODES: [&str; 4] = ["node-1", "node-2", "node-3", "node-4"];

pub(crate) fn make_bucket(server: &Seaweed) {
    use milkrun_tests::seaweed::{ACCESS_KEY, SECRET_KEY};
    let credentials = aws_sdk_s3::config::Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .credentials_provider(credentials)
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(client.create_bucket().bucket("cluster").object_lock_enabled_for_bucket(true).send()).unwrap();
}

/// Four nodes, a coordinator and a store, each on its own host, and a locked repository.
pub(crate) fn four_hosts(test: &str) -> Option<(Seaweed, tempfile::TempDir, Cluster)> {
    if !is_root() {
        skip(test, "network namespaces need root");
        return None;
    }
    let Some(mut network) = Network::new() else {
        skip(test, "no network namespaces here (iproute2)");
        return None;
    };
    for host in ["coordinator", "store"].iter().chain(&NODES) {
        network.add(host);
    }
    let server = Seaweed::start_on(test, &network, "store")?;
    network.within("coordinator", || make_bucket(&server));
    let folder = tempfile::tempdir().unwrap();
    let repository = server.milkrun("cluster", "p", folder.path());
    let env = server.env().map(|(k, v)| (k.to_owned(), v)).to_vec();
    let repository = repository.under(network.prefix("coordinator"));
    repository.run(["init", "--lock", "compliance", "--lock-for", "1h"]).ok();
    Some((server, folder, Cluster::in_bucket(repository, env, Some(network))))
}

#[test]
pub(crate) fn four_hosts_with_identical_images_store_them_once() {
    let Some((_server, _cache, mut c)) = four_hosts("four hosts with identical images") else { return };
    // The line of one host is too slow to store all before the others have read it.
    c.agent_args.extend(["--limit-upload".into(), "24MiB".into(), "--memory".into(), "64MiB".into()]);
    const SIZE: usize = 128 << 20;
    fs::write(c.folder().join("image"), noise(SIZE, 3)).unwrap();
    let mut volumes = String::new();
    for node in NODES {
        fs::copy(c.folder().join("image"), c.folder().join(node)).unwrap();
        volumes +=
            &format!("      v-{node}: {{ size: 128MiB, at: {{ {node}: {} }} }}\n", c.folder().join(node).display());
    }
    c.inventory(&format!(
        "nodes: {{ node-1: , node-2: , node-3: , node-4: }}\napplications:\n  shop:\n    volumes:\n{volumes}"
    ));
    let _coordinator = c.coordinator();
    let agents = NODES.map(|n| c.agent(n));
    c.wait_for_agents(&NODES);
    let done = c.run(&["backup", "shop", "--json"]).ok().json();
    let new: u64 = done["volumes"].as_array().unwrap().iter().map(|v| v["new_bytes"].as_u64().unwrap()).sum();
    let twice = new.saturating_sub(SIZE as u64);
    assert!(twice * 100 < 2 * SIZE as u64, "{twice} bytes of {SIZE} were stored more than once: {done}");
    let worked = done["volumes"].as_array().unwrap().iter().filter(|v| v["new_bytes"].as_u64() > Some(0)).count();
    assert!(worked >= 2, "one node did all the work: {done}");
    c.repository().run(["verify", "--data"]).ok();
    for agent in &agents {
        assert!(!agent.log().contains("ERROR"), "{}", agent.log());
        let peak = agent.peak_memory();
        assert!(peak < 400 << 20, "an agent used {peak} bytes");
    }
}

#[test]
fn cut_links_lose_nothing() {
    let Some((_server, _cache, mut c)) = four_hosts("cut links between hosts") else { return };
    const SIZE: usize = 224 << 20;
    fs::write(c.folder().join("data"), noise(SIZE, 4)).unwrap();
    let at: Vec<String> = NODES.iter().map(|n| format!("{n}: {}", c.folder().join("data").display())).collect();
    c.inventory(&format!(
        "nodes: {{ node-1: , node-2: , node-3: , node-4: }}\napplications:\n  shop:\n    volumes:\n      data: {{ size: 224MiB, at: {{ {} }} }}\n",
        at.join(", ")
    ));
    c.agent_args.extend(["--memory".into(), "64MiB".into()]);
    c.limit_upload(SLOWLY);
    let coordinator = c.coordinator();
    let _agents = NODES.map(|n| c.agent(n));
    c.wait_for_agents(&NODES);
    let mut command = c.command("root", &["view", "backup", "restore", "operate"], &["backup", "shop", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let volume = || {
        let run = c.runs().first()?.clone();
        assert!(!is_over(&run), "it is over already: {run}");
        run["volumes"].as_array()?.first().cloned()
    };
    let at_work = |more_than: u64| {
        wait_for("progress", || {
            let volume = volume()?;
            let far = volume["done_bytes"].as_u64()? >= more_than && volume["node"] != "";
            far.then(|| volume["node"].as_str().unwrap().to_owned())
        })
    };
    // The agent's messages do not arrive any more: it is given up, and another node resumes its volume.
    let first = at_work(32 << 20);
    let network = c.network().unwrap();
    network.cut(&first, "coordinator");
    let second = wait_for("another node", || {
        let node = volume()?["node"].as_str()?.to_owned();
        (!node.is_empty() && node != first).then_some(node)
    });
    network.heal(&first, "coordinator");
    // The coordinator's messages do not arrive at the second agent any more.
    at_work(64 << 20);
    network.cut("coordinator", &second);
    c.limit_upload(None);
    let ran = milkrun_tests::binary::ran(child.wait_with_output());
    network.heal("coordinator", &second);
    let ran = if ran.code == Some(0) { ran } else { panic!("{}\n{}", ran.err, coordinator.log()) };
    assert_eq!(ran.json()["volumes"][0]["size_bytes"].as_u64(), Some(SIZE as u64));
    c.repository().run(["verify", "--data"]).ok();
    let back = c.folder().join("back");
    c.repository().run(["restore", "shop", "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data")).unwrap() == fs::read(back).unwrap());
}
