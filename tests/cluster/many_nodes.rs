//! Volumes of one application on several nodes: one restore point, restored to other nodes.

use std::fs;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::loopback::{free_port, http_get};
use milkrun_tests::noise;

/// Two nodes with a volume each, and on each node a target for the other's volume.
pub(crate) fn two_nodes(c: &Cluster) {
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: , node-b: }}
applications:
  shop:
    rpo: 1h
    volumes:
      data: {{ size: 24MiB, at: {{ node-a: {} }} }}
      wal: {{ size: 8MiB, at: {{ node-b: {} }} }}
    targets:
      - {{ node: node-b, path: {} }}
      - {{ node: node-a, path: {} }}
",
        at("data.img"),
        at("wal.img"),
        at("data.back"),
        at("wal.back")
    ));
    fs::write(at("data.img"), [noise(20 << 20, 1), vec![0; 4 << 20]].concat()).unwrap();
    fs::write(at("wal.img"), noise(8 << 20, 2)).unwrap();
}

#[test]
fn metrics_and_logs_show_what_a_coordinator_and_an_agent_do() {
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let (at_coordinator, at_agent) = (free_port(), free_port());
    let coordinator =
        c.coordinator_with("coordinator", &["--log", "json", "--metrics", &format!("127.0.0.1:{at_coordinator}")]);
    coordinator.wait_for_log("serving");
    let _b = c.agent("node-b");
    c.agent_args.extend(["--log".into(), "json".into(), "--metrics".into(), format!("127.0.0.1:{at_agent}")]);
    let agent = c.agent("node-a");
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    for port in [at_coordinator, at_agent] {
        assert!(http_get(port, "/healthz").0.contains("200"));
        assert!(http_get(port, "/readyz").0.contains("200"));
    }
    let value = |port: u16, name: &str| {
        let metrics = http_get(port, "/metrics").1;
        let line = metrics.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in:\n{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value(at_agent, "milkrun_agent_read_bytes_total") as u64, 24 << 20);
    assert_eq!(value(at_agent, "milkrun_agent_new_bytes_total") as u64, 20 << 20);
    assert_eq!(value(at_agent, "milkrun_agent_budget_in_use_bytes") as u64, 0);
    assert_eq!(value(at_agent, "milkrun_agent_connected") as u64, 1);
    assert!(value(at_coordinator, "milkrun_grants_total") >= 2.0);
    assert!(value(at_coordinator, "milkrun_journal_writes_total") >= 3.0);
    assert_eq!(value(at_coordinator, "milkrun_agents") as u64, 2);
    assert!(
        value(at_coordinator, "milkrun_last_success_timestamp_seconds{application=\"shop\",repository=\"\"}") > 1.7e9
    );
    assert_eq!(value(at_coordinator, "milkrun_runs_total{kind=\"backup\",outcome=\"done\"}") as u64, 1);
    // Each line is a JSON document, and names its run.
    for log in [coordinator.log(), agent.log()] {
        assert!(log.lines().all(|l| l.starts_with('{') && l.ends_with('}')), "{log}");
    }
    assert!(coordinator.log().lines().any(|l| l.contains("committed") && l.contains("\"run\":")));
}

#[test]
fn two_nodes_make_one_restore_point_and_restore_each_others_volume() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let coordinator = c.coordinator();
    let (_a, _b) = (c.agent("node-a"), c.agent("node-b"));
    c.wait_for_agents(&["node-a", "node-b"]);
    fs::write(c.folder().join("m.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\n").unwrap();
    let manifests = c.folder().join("m.yaml").display().to_string();

    let first = c.run(&["backup", "shop", "--manifests", &manifests, "--json"]).ok().json();
    let volumes = first["volumes"].as_array().unwrap();
    assert_eq!(volumes.iter().map(|v| v["name"].as_str().unwrap()).collect::<Vec<_>>(), ["data", "wal"]);
    assert_eq!(volumes[0]["new_bytes"].as_u64().unwrap(), 20 << 20, "{}", coordinator.log());
    // Nothing changed: only metadata is stored.
    let second = c.run(&["backup", "shop", "--json"]).ok().json();
    assert!(second["volumes"].as_array().unwrap().iter().all(|v| v["new_bytes"] == 0), "{second}");
    assert_eq!(second["manifests"], 0);

    // The repository can be used without the coordinator, with the secret alone.
    let points = c.repository().run(["points", "--json"]).ok().json();
    assert_eq!(points["points"].as_array().unwrap().len(), 2);
    c.repository().run(["verify", "--data"]).ok();

    let at = |name: &str| c.folder().join(name).display().to_string();
    let (data, wal) = (format!("data=node-b:{}", at("data.back")), format!("wal=node-a:{}", at("wal.back")));
    let out = at("out");
    let point = first["point"].as_str().unwrap();
    let restored = c.run(&["restore", point, "--volume", &data, "--volume", &wal, "--manifests", &out, "--json"]).ok();
    assert_eq!(restored.json()["volumes"].as_array().unwrap().len(), 2);
    for name in ["data", "wal"] {
        assert_eq!(fs::read(at(&format!("{name}.img"))).unwrap(), fs::read(at(&format!("{name}.back"))).unwrap());
    }
    assert!(fs::read_dir(&out).unwrap().count() == 1);

    let runs = c.runs();
    assert_eq!(runs.len(), 3);
    assert!(runs.iter().all(|r| r["state"] == "done"), "{runs:?}");
    assert_eq!(runs[0]["volumes"][0]["node"], "node-a");
    for volume in runs.iter().flat_map(|r| r["volumes"].as_array().unwrap()) {
        let size = fs::metadata(at(&format!("{}.img", volume["name"].as_str().unwrap()))).unwrap().len();
        let far = (volume["done_bytes"].as_u64(), volume["total_bytes"].as_u64());
        assert_eq!(far, (Some(size), Some(size)), "{runs:?}");
    }
    let watched = c.run(&["watch", runs[0]["run"].as_str().unwrap(), "--json"]).ok().json();
    assert_eq!(watched["point"], first["point"]);
}
