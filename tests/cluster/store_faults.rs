//! Faults of stores and targets, with several nodes at work: bursts of errors, and full disks.

use std::fs;
use std::time::Duration;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::device::{Mount, must};
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::troublemaker::{Trouble, Troublemaker};
use milkrun_tests::{is_root, noise, skip};

use crate::network_partitions::make_bucket;

const SIZE: usize = 64 << 20;

fn two_volumes(c: &Cluster, targets: &str) {
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: , node-b: }}
applications:
  shop:
    volumes:
      first: {{ at: {{ node-a: {} }} }}
      second: {{ at: {{ node-b: {} }} }}
    targets: [ {targets} ]
",
        at("first.img"),
        at("second.img")
    ));
    for (seed, name) in [(1, "first.img"), (2, "second.img")] {
        fs::write(at(name), noise(SIZE, seed)).unwrap();
    }
}

/// Of every 64 requests, nearly all of the first fourteen fail, in various ways.
#[test]
fn bursts_of_store_errors_lose_nothing() {
    let Some(server) = Seaweed::start("bursts of trouble at the store") else { return };
    make_bucket(&server);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let between = runtime.block_on(Troublemaker::start(&server.endpoint()));
    let folder = tempfile::tempdir().unwrap();
    let repository = server.milkrun("cluster", "bursts", folder.path());
    repository.run(["init", "--lock", "compliance", "--lock-for", "1h"]).ok();
    let mut env: Vec<_> = server.env().map(|(k, v)| (k.to_owned(), v)).to_vec();
    env.retain(|(k, _)| k != "AWS_ENDPOINT_URL");
    env.push(("AWS_ENDPOINT_URL".into(), format!("http://{}", between.address())));
    let c = Cluster::in_bucket(repository, env, None);
    let back = |name: &str| c.folder().join(name);
    let target = |node: &str, name: &str| format!("{{ node: {node}, path: {} }}", back(name).display());
    // Each volume is restored on the other node.
    two_volumes(&c, &format!("{}, {}", target("node-b", "first.back"), target("node-a", "second.back")));
    let _coordinator = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);

    let ways = [
        Trouble::Answer(503, "SlowDown"),
        Trouble::Answer(500, "InternalError"),
        Trouble::Reset,
        Trouble::DoneThenReset,
    ];
    between.script(move |n, _| {
        // A call is tried eight times. When nothing else is asked of the store, all of them may fall into one burst.
        let in_burst = n % 64 < 14 && n % 64 != 7;
        // The fault depends only on the number of the request.
        let chance = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (in_burst && chance % 8 != 0).then(|| ways[usize::try_from(chance / 8 % 4).unwrap()].clone())
    });
    let done = c.run(&["backup", "shop", "--json"]).ok().json();
    assert_eq!(done["volumes"].as_array().unwrap().len(), 2, "{done}");
    let again = c.run(&["backup", "shop", "--json"]).ok().json();
    let new = |v: &serde_json::Value| v["new_bytes"].as_u64().unwrap();
    assert!(again["volumes"].as_array().unwrap().iter().all(|v| new(v) == 0), "{again}");
    let (first, second) = (back("first.back").display().to_string(), back("second.back").display().to_string());
    let volumes = [format!("first=node-b:{first}"), format!("second=node-a:{second}")];
    c.run(&["restore", "shop", "--volume", &volumes[0], "--volume", &volumes[1]]).ok();
    let (requests, troubles) = (between.requests(), between.behave());
    assert!(troubles * 10 > requests, "there was hardly any trouble: {troubles} in {requests} requests");
    for (image, back) in [("first.img", first), ("second.img", second)] {
        assert!(fs::read(c.folder().join(image)).unwrap() == fs::read(back).unwrap(), "{image}");
    }
    c.repository().run(["verify", "--data"]).ok();
    let points = c.repository().run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len();
    assert_eq!(points, 2);
    // The test's two worker threads must not outlive it for long.
    runtime.shutdown_timeout(Duration::from_secs(1));
}

#[test]
fn a_full_disk_fails_the_run_and_nothing_else() {
    if !is_root() {
        skip("full disks", "mounting needs root");
        return;
    }
    let c = Cluster::in_directory();
    let small = |name: &str| Mount::new("tmpfs", &c.folder().join(name), &["-t", "tmpfs", "-o", "size=48m"]);
    let grow = |m: &Mount| must("mount", &["-o", "remount,size=1g", &m.path().display().to_string()]);
    let (store, disk) = (small("repository"), small("disk"));
    let back = disk.path().join("first.back");
    c.repository().run(["init"]).ok();
    two_volumes(&c, &format!("{{ node: node-b, path: {} }}", back.display()));
    let coordinator = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let full = c.run(&["backup", "shop"]);
    assert!(full.code == Some(1) && full.err.contains("no space left"), "{full:?}\n{}", coordinator.log());
    assert_eq!(c.repository().run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 0);
    grow(&store);
    c.run(&["backup", "shop"]).ok();
    c.repository().run(["verify", "--data"]).ok();
    let volume = format!("first=node-b:{}", back.display());
    let full = c.run(&["restore", "shop", "--volume", &volume]);
    assert!(full.code == Some(1) && full.err.contains("at byte") && full.err.contains("No space left"), "{full:?}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "something was left on the full disk");
    grow(&disk);
    c.run(&["restore", "shop", "--volume", &volume]).ok();
    assert!(fs::read(c.folder().join("first.img")).unwrap() == fs::read(&back).unwrap());
}

/// The inventory's limit for all nodes together is kept. A change of the inventory takes effect when it is saved.
#[test]
fn the_inventory_limits_the_upload_rate() {
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    c.agent_args.extend(["--memory".into(), "64MiB".into()]);
    two_volumes(&c, "");
    let path = c.folder().join("inventory.yaml");
    let inventory = fs::read_to_string(&path).unwrap();
    let _coordinator = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    c.inventory(&format!("store: {{ bytes_in_flight: 20MiB, bandwidth: [ {{ rate: 8MiB }} ] }}\n{inventory}"));
    let seconds = |done: &serde_json::Value| done["seconds"].as_f64().unwrap();
    let slow = c.run(&["backup", "shop", "--json"]).ok().json();
    // The first pack is uploaded at once: 128 MiB in packs of 8 MiB take at least 15 seconds.
    assert!(seconds(&slow) >= 14.0, "{slow}");
    c.inventory(&inventory);
    for (seed, name) in [(11, "first.img"), (12, "second.img")] {
        fs::write(c.folder().join(name), noise(SIZE, seed)).unwrap();
    }
    let fast = c.run(&["backup", "shop", "--json"]).ok().json();
    assert!(seconds(&fast) < seconds(&slow) / 2.0, "{fast}");
    c.repository().run(["verify", "--data"]).ok();
}
