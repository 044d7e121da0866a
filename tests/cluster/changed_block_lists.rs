//! Changed-block lists with several nodes: a list lies on one node, and only the first attempt uses it.

use std::fs;
use std::process::Child;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;
use milkrun_tests::process::wait_for;
use nix::sys::signal::Signal;

use crate::agent_failover;

/// All pages between these changed.
const FROM: usize = 32 << 20;
const TO: usize = 160 << 20;
const PAGE: usize = 4096;
/// These single pages before and behind changed, too: an attempt that resumes has regions in which only single pages
/// changed.
const BEFORE: [usize; 4] = [100, 301, 302, 5000];
const BEHIND: [usize; 3] = [TO / PAGE + 7, 45_000, agent_failover::SIZE / PAGE - 1];

/// A volume that both nodes reach, with a point, and with changes in most of it, which a list names.
fn with_a_list() -> Cluster {
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: , node-b: }}
applications:
  shop:
    volumes:
      data: {{ size: 192MiB, changed_from: {1}, at: {{ node-a: {0}, node-b: {0} }} }}
",
        at("data.img"),
        at("list")
    ));
    let mut content = noise(agent_failover::SIZE, 7);
    fs::write(at("data.img"), &content).unwrap();
    let image = format!("data={}", at("data.img"));
    let made = c.repository().run(["backup", "shop", "--volume", &image, "--json"]).ok().json();
    let point = made["point"].as_str().unwrap();
    let mut list = format!("since {point}\n");
    let page = |n| (n * PAGE, PAGE);
    for (at, len) in BEFORE.into_iter().map(page).chain([(FROM, TO - FROM)]).chain(BEHIND.map(page)) {
        content[at..at + len].copy_from_slice(&noise(len, at as u64));
        list += &format!("{at} {len}\n");
    }
    fs::write(at("data.img"), &content).unwrap();
    fs::write(at("list"), list + "end\n").unwrap();
    c.agent_args.extend(["--memory".into(), "64MiB".into()]);
    c.limit_upload(agent_failover::SLOWLY);
    c
}

/// Starts a backup and waits until one node has made some progress with the list. Then removes the list.
fn begin(c: &Cluster) -> (Child, String) {
    let begun = agent_failover::begin(c, 80 << 20);
    fs::remove_file(c.folder().join("list")).unwrap();
    begun
}

/// Checks that the point says that it rests on a list, and that it is whole.
fn ends_well(c: &Cluster) {
    let shown = c.repository().run(["show", "shop", "--json"]).ok().json();
    assert_eq!(shown["volumes"][0]["lists_in_a_row"], 1, "{shown}");
    c.repository().run(["verify", "--data"]).ok();
    let back = c.folder().join("data.back");
    c.repository().run(["restore", "shop", "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(&back).unwrap());
}

#[test]
fn another_node_reads_the_rest_in_full() {
    let c = with_a_list();
    let coordinator = c.coordinator();
    let mut agents = [("node-a", c.agent("node-a")), ("node-b", c.agent("node-b"))];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (child, node) = begin(&c);
    agents.iter_mut().find(|(n, _)| *n == node).unwrap().1.signal(Signal::SIGKILL);
    c.limit_upload(None);
    milkrun_tests::binary::ran(child.wait_with_output()).ok();
    assert!(coordinator.log().contains("a volume goes on"), "{}", coordinator.log());
    ends_well(&c);
}

#[test]
fn another_coordinator_knows_that_a_list_was_used() {
    let c = with_a_list();
    let mut coordinator = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (mut child, _) = begin(&c);
    coordinator.signal(Signal::SIGKILL);
    coordinator.wait();
    let _ = child.kill();
    let _ = child.wait();
    let next = c.coordinator_with("next", &[]);
    next.wait_for_log("a run that another coordinator left goes on");
    c.limit_upload(None);
    wait_for("the run to end", || (c.runs().first()?["state"] == "done").then_some(()));
    assert!(next.log().contains("a volume goes on"), "{}", next.log());
    ends_well(&c);
}
