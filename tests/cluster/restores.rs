//! Interrupted restores resume at the durable offset of their targets, under the same coordinator or the next one.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use milkrun_tests::cluster::{Cluster, is_over};
use milkrun_tests::device::{Loop, must};
use milkrun_tests::process::{Process, wait_for};
use milkrun_tests::{is_root, noise, skip};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Longer than two windows of a plan. Every second region has data.
const SIZE: u64 = 1536 << 20;
const REGION: u64 = 16 << 20;
const DATA: usize = 3 << 20;

/// A volume that was backed up, and a node for its restore, whose agent is not started yet.
fn backed_up() -> (Cluster, Process, Process) {
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: , node-b: }}
applications:
  shop:
    volumes:
      data: {{ size: 1536MiB, at: {{ node-a: {} }} }}
    targets: [ {{ node: node-b, path: {} }} ]
",
        at("data.img"),
        at("data.back")
    ));
    let image = fs::File::create(at("data.img")).unwrap();
    image.set_len(SIZE).unwrap();
    for n in (0..SIZE / REGION).step_by(2) {
        image.write_all_at(&noise(DATA, n), n * REGION + 4096).unwrap();
    }
    c.agent_args.extend(["--sync-every".into(), "64MiB".into(), "--memory".into(), "64MiB".into()]);
    let coordinator = c.coordinator();
    let agent = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    c.run(&["backup", "shop"]).ok();
    (c, coordinator, agent)
}

fn target(c: &Cluster) -> PathBuf {
    c.folder().join("data.back")
}

/// Starts node-b's agent, which hangs once where it syncs the whole target, and a restore. Waits until everything is
/// written.
fn begin(c: &mut Cluster, coordinator: &Process) -> (Process, Child, String) {
    let path = target(c);
    let begun = begin_at(c, coordinator, &path);
    assert!(!path.exists(), "half of a volume has its name");
    begun
}

fn begin_at(c: &mut Cluster, coordinator: &Process, path: &Path) -> (Process, Child, String) {
    c.agent_env.push(("MILKRUN_HANG_ONCE_AT".into(), "before fsync of the target".into()));
    let agent = c.agent("node-b");
    c.agent_env.clear();
    c.wait_for_agents(&["node-b"]);
    let volume = format!("data=node-b:{}", path.display());
    let mut command = c.command("root", &[], &["restore", "shop", "--volume", &volume, "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = wait_for("the target to be written", || {
        let run = c.runs().pop()?;
        (run["kind"] == "restore" && run["state"] == "running" && run["volumes"][0]["done_bytes"].as_u64()? == SIZE)
            .then_some(run)
    });
    // Only after this: otherwise the next agent would hang there instead.
    agent.wait_for_log("hangs before fsync of the target");
    // A part of the target is durable, and the journal says so.
    wait_for("what is durable", || {
        let log = coordinator.log();
        let durable = log.lines().filter(|l| l.contains(&id(&run)) && l.contains("durable so far"));
        durable
            .filter_map(|l| l.split("offset=").nth(1)?.trim().parse::<u64>().ok())
            .any(|at| at >= 512 << 20)
            .then_some(())
    });
    (agent, child, id(&run))
}

fn id(run: &Value) -> String {
    run["run"].as_str().unwrap().to_owned()
}

fn came_back(c: &Cluster) {
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(target(c)).unwrap());
    let left: Vec<_> = fs::read_dir(c.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("partial")), "{left:?}");
}

/// Checks that the new attempt resumed, and that the work of the earlier one is counted.
fn went_on(log: &str, volume: &Value) {
    let line = log.lines().find(|l| l.contains("a target goes on")).unwrap_or_else(|| panic!("it began anew:\n{log}"));
    let at = line.split("resume_at=").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(at.parse::<u64>().unwrap() >= 512 << 20, "{line}");
    let bytes = |what: &str| volume[what].as_u64().unwrap();
    assert_eq!(bytes("written_bytes") + bytes("hole_bytes"), SIZE, "{volume}");
    assert!(bytes("fetched_bytes") >= SIZE / REGION / 2 * DATA as u64, "{volume}");
}

#[test]
fn a_killed_agent_s_target_goes_on_where_it_was_durable() {
    let (mut c, coordinator, _a) = backed_up();
    let (mut hanging, child, _) = begin(&mut c, &coordinator);
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    let _b = c.agent("node-b");
    let done = milkrun_tests::binary::ran(child.wait_with_output()).ok().json();
    went_on(&coordinator.log(), &done["volumes"][0]);
    came_back(&c);
    // Once more, with the unfinished file removed in between: everything is written anew.
    fs::remove_file(target(&c)).unwrap();
    drop(_b);
    let (mut hanging, child, _) = begin(&mut c, &coordinator);
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    let kept = fs::read_dir(c.folder()).unwrap().map(|e| e.unwrap().path());
    let kept: Vec<_> = kept.filter(|p| p.display().to_string().contains("data.back.milkrun-partial-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    fs::rename(&kept[0], c.folder().join("elsewhere")).unwrap();
    let _b = c.agent("node-b");
    milkrun_tests::binary::ran(child.wait_with_output()).ok();
    came_back(&c);
}

#[test]
fn a_killed_coordinator_s_restore_goes_on_under_the_next_one() {
    let (mut c, mut coordinator, _a) = backed_up();
    let (_b, mut child, run) = begin(&mut c, &coordinator);
    // The target is taken: no other restore may use it meanwhile.
    let volume = format!("data=node-b:{}", target(&c).display());
    let second = c.run(&["restore", "shop", "--volume", &volume]);
    assert!(second.code == Some(1) && second.err.contains("is the target of restore"), "{second:?}");
    coordinator.signal(Signal::SIGKILL);
    coordinator.wait();
    assert_ne!(child.wait().unwrap().code(), Some(0), "the restore was not done");
    let next = c.coordinator_with("next", &[]);
    next.wait_for_log("a run that another coordinator left goes on");
    // The agent is the same process, and kept the unfinished file.
    let ended = wait_for("the restore's end", || {
        let runs = c.run(&["runs", "--json"]);
        let document = (runs.code == Some(0)).then(|| runs.json())?;
        let found = document["runs"].as_array()?.iter().find(|r| r["run"] == run.as_str())?.clone();
        is_over(&found).then_some(found)
    });
    assert_eq!(ended["state"], "done", "{ended}\n{}", next.log());
    assert!(next.log().contains("a target goes on"), "{}", next.log());
    came_back(&c);
    let left = fs::read_dir(c.folder().join("repository/leases")).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|n| n != "leader").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A device is written in place. It is recognised, and another device that took its name is not mistaken for it.
#[test]
fn a_restore_resumes_on_the_same_device_and_not_on_another_in_its_place() {
    if !is_root() {
        skip("an interrupted restore to a device", "loop devices need root");
        return;
    }
    let (mut c, coordinator, _a) = backed_up();
    let device = Loop::fresh(c.folder(), "disk", SIZE);
    let inventory = fs::read_to_string(c.folder().join("inventory.yaml")).unwrap();
    c.inventory(&inventory.replace(&target(&c).display().to_string(), &device.path()));
    let place = PathBuf::from(device.path());
    let same = |c: &Cluster| must("cmp", &[&c.folder().join("data.img").display().to_string(), &device.path()]);
    let (mut hanging, child, _) = begin_at(&mut c, &coordinator, &place);
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    let b = c.agent("node-b");
    let done = milkrun_tests::binary::ran(child.wait_with_output()).ok().json();
    went_on(&coordinator.log(), &done["volumes"][0]);
    assert_eq!(same(&c), "");

    // The device is emptied, and the test repeated. This time another disk takes its place while the agent is away.
    drop(b);
    must("blkdiscard", &["-z", &device.path()]);
    let (mut hanging, child, _) = begin_at(&mut c, &coordinator, &place);
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    must("losetup", &["--detach", &device.path()]);
    let precious = noise(64 << 20, 99);
    fs::write(c.folder().join("precious"), &precious).unwrap();
    fs::File::options().write(true).open(c.folder().join("precious")).unwrap().set_len(SIZE).unwrap();
    must("losetup", &[&device.path(), &c.folder().join("precious").display().to_string()]);
    let _b = c.agent("node-b");
    let refused = milkrun_tests::binary::ran(child.wait_with_output());
    assert!(refused.code == Some(1) && refused.err.contains("is not empty"), "{refused:?}");
    let kept = fs::read(c.folder().join("precious")).unwrap();
    assert!(kept[..precious.len()] == precious[..] && kept[precious.len()..].iter().all(|&b| b == 0));
}

/// Somebody with write access to the bucket keeps a restore's lease and journal, and puts them back after its end. This
/// has no effect, and the target's newer content stays.
#[test]
fn a_restore_that_is_over_can_not_be_put_back() {
    let (mut c, mut coordinator, _a) = backed_up();
    let (mut hanging, mut child, run) = begin(&mut c, &coordinator);
    coordinator.signal(Signal::SIGKILL);
    coordinator.wait();
    child.wait().unwrap();
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    let repository = c.folder().join("repository");
    let of_run = [PathBuf::from("leases").join(&run), PathBuf::from("journal").join(&run)];
    let saved = c.folder().join("saved");
    fs::create_dir(&saved).unwrap();
    let copy = |from: &Path, to: &Path| must("cp", &["-a", &from.display().to_string(), &to.display().to_string()]);
    for (i, of_run) in of_run.iter().enumerate() {
        copy(&repository.join(of_run), &saved.join(i.to_string()));
    }
    let put_back = || {
        for (i, of_run) in of_run.iter().enumerate() {
            // Left-overs in the folder.
            let _ = fs::remove_dir_all(repository.join(of_run));
            copy(&saved.join(i.to_string()), &repository.join(of_run));
        }
    };
    // It does not help either to take keys at which the end of the run could be recorded, or the next keys of its
    // journal.
    let ends = repository.join("ended");
    fs::create_dir_all(&ends).unwrap();
    fs::write(ends.join(&run), "rubbish").unwrap();
    for n in 0..100 {
        fs::write(ends.join(format!("{run}-{n:016x}")), "rubbish").unwrap();
        fs::write(repository.join(format!("journal/{run}/{:016x}-{:08x}", 2, n + 1)), "rubbish").unwrap();
    }
    let mut next = c.coordinator_with("next", &[]);
    let b = c.agent("node-b");
    wait_for("the restore's end", || {
        let runs = c.run(&["runs", "--json"]);
        let document = (runs.code == Some(0)).then(|| runs.json())?;
        let found = document["runs"].as_array()?.iter().find(|r| r["run"] == run.as_str())?.clone();
        is_over(&found).then_some(())
    });
    came_back(&c);
    // The application writes to the target again.
    let live = noise(1 << 20, 77);
    fs::File::options().write(true).open(target(&c)).unwrap().write_all_at(&live, 4096).unwrap();
    next.signal(Signal::SIGTERM);
    next.wait();
    put_back();
    let mut third = c.coordinator_with("third", &[]);
    third.wait_for_log("nobody goes on with it");
    third.wait_for_log("an agent is connected");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(!third.log().contains("a run that another coordinator left goes on"), "{}", third.log());
    let stays = |c: &Cluster| {
        let mut kept = vec![0; live.len()];
        fs::File::open(target(c)).unwrap().read_exact_at(&mut kept, 4096).unwrap();
        assert!(kept == live, "old bytes are in the target");
    };
    stays(&c);
    assert!(of_run.iter().all(|o| !repository.join(o).is_file()), "they stay");

    // Nothing is locked here, so even the record of the end can be deleted. The agent remembers that the restore was
    // finished.
    third.signal(Signal::SIGTERM);
    third.wait();
    fs::remove_dir_all(&ends).unwrap();
    put_back();
    let fourth = c.coordinator_with("fourth", &[]);
    fourth.wait_for_log("a run that another coordinator left goes on");
    b.wait_for_log("it is left as it is");
    stays(&c);
}

/// A restore whose end can't be recorded is not reported as done: the next coordinator would go on with it.
#[test]
fn a_restore_whose_end_can_t_be_written_says_so() {
    let (c, coordinator, _a) = backed_up();
    let _b = c.agent("node-b");
    c.wait_for_agents(&["node-a", "node-b"]);
    let ends = c.folder().join("repository/ended");
    let aside = c.folder().join("ended");
    fs::rename(&ends, &aside).unwrap();
    fs::write(&ends, "a file in the way").unwrap();
    let volume = format!("data=node-b:{}", target(&c).display());
    c.run(&["restore", "shop", "--volume", &volume]).fails(1, "the end of the restore could not be written down");
    came_back(&c);
    fs::remove_file(&ends).unwrap();
    fs::rename(&aside, &ends).unwrap();
    coordinator.wait_for_log("the end of the restore is written");
}
