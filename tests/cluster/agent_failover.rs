//! Failover of agents that die, hang, or are drained: another node resumes their volumes at the last checkpoint.

use std::fs;
use std::process::{Child, Stdio};

use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;
use milkrun_tests::process::wait_for;
use nix::sys::signal::Signal;

pub(crate) const SIZE: usize = 192 << 20;

/// How much is uploaded per second until a test says that it has stopped what it wanted to stop.
pub(crate) const SLOWLY: Option<&str> = Some("4MiB");

/// A volume that both nodes reach, and uploads that are slow enough to be stopped in their middle.
pub(crate) fn shared_volume() -> Cluster {
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: , node-b: }}
applications:
  shop:
    volumes:
      data: {{ size: 192MiB, at: {{ node-a: {0}, node-b: {0} }} }}
    targets: [ {{ node: node-a, path: {1} }}, {{ node: node-b, path: {1} }} ]
",
        at("data.img"),
        at("data.back")
    ));
    fs::write(at("data.img"), noise(SIZE, 7)).unwrap();
    c.agent_args.extend(["--memory".into(), "64MiB".into()]);
    c.limit_upload(SLOWLY);
    c
}

/// Starts a backup in the background and waits until one node has done so many bytes.
pub(crate) fn begin(c: &Cluster, way: u64) -> (Child, String) {
    let mut command = c.command("root", &["view", "backup", "restore", "operate"], &["backup", "shop", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let node = wait_for("some progress", || {
        let volume = c.runs().first()?["volumes"].as_array()?.first()?.clone();
        let far = volume["done_bytes"].as_u64()? >= way;
        far.then(|| volume["node"].as_str().unwrap().to_owned())
    });
    (child, node)
}

/// Checks that the backup succeeds on the other node, without reading everything again, and that it can be restored.
fn ends_well(c: &Cluster, child: Child, first: &str) {
    c.limit_upload(None);
    let ran = milkrun_tests::binary::ran(child.wait_with_output()).ok();
    let volume = &ran.json()["volumes"][0];
    let run = &c.runs()[0];
    assert_eq!((run["volumes"][0]["attempt"].as_u64(), &run["state"]), (Some(2), &"done".into()), "{run}");
    assert_ne!(run["volumes"][0]["node"], first);
    let again = volume["read_bytes"].as_u64().unwrap();
    assert!(again < SIZE as u64 - (16 << 20), "the second attempt read {again} bytes: it went on from nowhere");
    c.repository().run(["verify", "--data"]).ok();
    let back = c.folder().join("data.back");
    let target = format!("data={}", back.display());
    c.repository().run(["restore", "shop", "--volume", &target]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(&back).unwrap());
}

#[test]
fn a_killed_agent_s_volume_goes_on_at_another_node() {
    let c = shared_volume();
    let coordinator = c.coordinator();
    let mut agents = [("node-a", c.agent("node-a")), ("node-b", c.agent("node-b"))];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (child, node) = begin(&c, 32 << 20);
    agents.iter_mut().find(|(n, _)| *n == node).unwrap().1.signal(Signal::SIGKILL);
    ends_well(&c, child, &node);
    assert!(coordinator.log().contains("an agent is gone"), "{}", coordinator.log());
}

#[test]
fn a_hanging_agent_is_given_up_and_its_later_calls_are_refused() {
    let c = shared_volume();
    let coordinator = c.coordinator();
    let agents = [("node-a", c.agent("node-a")), ("node-b", c.agent("node-b"))];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (child, node) = begin(&c, 32 << 20);
    let hanging = &agents.iter().find(|(n, _)| *n == node).unwrap().1;
    hanging.signal(Signal::SIGSTOP);
    coordinator.wait_for_log("an agent is gone");
    hanging.signal(Signal::SIGCONT);
    ends_well(&c, child, &node);
    // The agent comes back, and takes work again.
    c.wait_for_agents(&[&node]);
}

#[test]
fn a_drained_node_gives_its_volume_away_and_an_agent_that_is_told_to_stop_does_too() {
    let c = shared_volume();
    let coordinator = c.coordinator();
    let mut agents = [("node-a", c.agent("node-a")), ("node-b", c.agent("node-b"))];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (child, node) = begin(&c, 32 << 20);
    c.run(&["drain", &node]).ok();
    ends_well(&c, child, &node);
    let drained = c.run(&["agents", "--json"]).ok().json();
    assert!(drained["agents"].as_array().unwrap().iter().any(|a| a["node"] == node.as_str() && a["draining"] == true));

    // The remaining agent is told to stop while it works: it ends at once and cleanly, and its volume waits for the
    // other.
    c.limit_upload(SLOWLY);
    fs::write(c.folder().join("data.img"), noise(SIZE, 8)).unwrap();
    let mut command = c.command("root", &[], &["backup", "shop", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the other node at work", || {
        let volume = c.runs().last()?["volumes"].as_array()?.first()?.clone();
        (volume["done_bytes"].as_u64()? >= 32 << 20 && volume["node"] != node.as_str()).then_some(())
    });
    let other = &mut agents.iter_mut().find(|(n, _)| *n != node).unwrap().1;
    other.signal(Signal::SIGTERM);
    assert_eq!(other.wait(), Some(0), "{}", other.log());
    c.limit_upload(None);
    c.run(&["drain", &node, "--back"]).ok();
    milkrun_tests::binary::ran(child.wait_with_output()).ok();
    assert!(coordinator.log().contains("a volume goes on"));
    c.repository().run(["verify", "--data"]).ok();
}

#[test]
fn a_restore_whose_agent_is_killed_goes_on_when_it_is_back() {
    let mut c = shared_volume();
    c.limit_upload(None);
    let _coordinator = c.coordinator();
    let _a = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    c.run(&["backup", "shop"]).ok();
    // Everything is written, and nothing is durable yet.
    c.agent_env.push(("MILKRUN_HANG_AT".into(), "before fsync of the target".into()));
    let mut hanging = c.agent("node-b");
    c.agent_env.clear();
    c.wait_for_agents(&["node-b"]);
    let back = c.folder().join("data.back");
    let target = format!("data=node-b:{}", back.display());
    let mut command = c.command("root", &[], &["restore", "shop", "--volume", &target, "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the target to be written", || {
        let run = c.runs().into_iter().find(|r| r["kind"] == "restore")?;
        (run["volumes"][0]["done_bytes"].as_u64()? == SIZE as u64).then_some(())
    });
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    assert!(!back.exists(), "half of a volume has its name");
    let _b = c.agent("node-b");
    milkrun_tests::binary::ran(child.wait_with_output()).ok();
    let run = c.runs().pop().unwrap();
    assert_eq!(run["volumes"][0]["attempt"].as_u64(), Some(2), "{run}");
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(&back).unwrap());
}
