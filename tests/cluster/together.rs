//! Volumes of one application on several nodes: one restore point, restored to other nodes.

use std::fs;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;

/// Two nodes with a volume each, and a place on each to restore the other's.
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
fn two_nodes_make_one_restore_point_and_bring_it_back_on_each_others_side() {
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
    // Unchanged: nothing is stored but metadata.
    let second = c.run(&["backup", "shop", "--json"]).ok().json();
    assert!(second["volumes"].as_array().unwrap().iter().all(|v| v["new_bytes"] == 0), "{second}");
    assert_eq!(second["manifests"], 0);

    // The repository is whole by itself, with the key alone.
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
    let watched = c.run(&["watch", runs[0]["run"].as_str().unwrap(), "--json"]).ok().json();
    assert_eq!(watched["point"], first["point"]);
}
