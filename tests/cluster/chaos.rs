//! Many faults at once, decided by a seed: agents and coordinators are killed or hang, links are cut, and the store
//! hangs, while four hosts back up loop devices, one of them with a PostgreSQL on it. With each seed, a coordinator
//! once hangs until another one leads, and goes on beside it. In the end there is a point that can be restored bit for
//! bit, or there is none.
//!
//! `MILKRUN_TEST_SEED` runs one seed; a failure names its seed.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use milkrun_tests::cluster::{Cluster, is_over};
use milkrun_tests::device::{Loop, Mount, must};
use milkrun_tests::process::{Process, wait_for};
use milkrun_tests::service::Service;
use milkrun_tests::{noise, postgres, skip};
use nix::sys::signal::Signal;

use crate::network_partitions::{NODES, four_hosts};

/// How many seeds CI runs, and for how long each causes faults.
const SEEDS: [u64; 2] = [1, 2];
const TROUBLE: Duration = Duration::from_secs(32);

/// SplitMix64: a seed always gives the same faults in the same order.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }
}

/// A file system of this kind with some content, on a loop device that nothing writes to any more.
fn device(c: &Cluster, name: &str, fs_type: &str, fill: impl FnOnce(&std::path::Path)) -> Loop {
    let device = Loop::fresh(c.folder(), &format!("{name}.disk"), 320 << 20);
    let force = if fs_type == "xfs" { "-f" } else { "-F" };
    must(&format!("mkfs.{fs_type}"), &["-q", force, &device.path()]);
    let mount = Mount::new(&device.path(), &c.folder().join(format!("{name}.mount")), &[]);
    fill(mount.path());
    drop(mount);
    device
}

struct Actors {
    /// The address at which agents and people reach the leader.
    service: Service,
    /// The coordinator that leads, or that waits to.
    coordinator: Process,
    /// A coordinator that led, and hung until another one took over.
    followed: Vec<Process>,
    agents: Vec<Process>,
    started: u16,
}

/// Each coordinator has an address of its own.
fn address(c: &Cluster, number: u16) -> SocketAddr {
    let mut address: SocketAddr = c.url().trim_start_matches("https://").parse().unwrap();
    address.set_port(20_000 + number);
    address
}

fn start_coordinator(c: &Cluster, number: u16) -> Process {
    c.coordinator_listening(&format!("coordinator-{number}"), &address(c, number).to_string())
}

impl Actors {
    fn start(c: &Cluster) -> Self {
        let at = c.url().trim_start_matches("https://").parse().unwrap();
        let service = Service::start(c.network().unwrap(), "coordinator", at, address(c, 1));
        let coordinator = start_coordinator(c, 1);
        coordinator.wait_for_log("serving");
        let agents = NODES.map(|n| c.agent(n)).into_iter().collect();
        Self { service, coordinator, followed: Vec::new(), agents, started: 1 }
    }

    /// Starts another coordinator instead of the one before.
    fn next_coordinator(&mut self, c: &Cluster) -> Process {
        self.started += 1;
        let next = start_coordinator(c, self.started);
        self.service.point_to(address(c, self.started));
        std::mem::replace(&mut self.coordinator, next)
    }

    /// A coordinator that can't reach the store when it begins to lead ends. It is started again, as in a cluster.
    fn keep_going(&mut self, c: &Cluster) {
        if !self.coordinator.runs() {
            self.next_coordinator(c);
        }
    }

    fn logs(&self) -> String {
        let coordinators = self.followed.iter().chain([&self.coordinator]);
        coordinators.chain(&self.agents).map(|p| format!("---\n{}", p.log())).collect()
    }
}

/// Causes one fault, for a while. Afterwards a process that hangs goes on, one that died is started again, and a link
/// that was cut is healed.
fn trouble(c: &Cluster, actors: &mut Actors, store: &milkrun_tests::seaweed::Seaweed, dice: &mut Dice) -> String {
    let network = c.network().unwrap();
    let node = dice.roll(NODES.len());
    let pause = Duration::from_millis(500 + 250 * dice.roll(16) as u64);
    let (hosts, kind) = ([NODES[node], "coordinator", "store"], dice.roll(8));
    match kind {
        0 | 1 => {
            actors.agents[node].signal(Signal::SIGKILL);
            actors.agents[node].wait();
            std::thread::sleep(pause);
            actors.agents[node] = c.agent(NODES[node]);
            format!("agent {} killed", NODES[node])
        }
        2 => {
            actors.agents[node].signal(Signal::SIGSTOP);
            std::thread::sleep(pause * 2);
            actors.agents[node].signal(Signal::SIGCONT);
            format!("agent {} hung for {:?}", NODES[node], pause * 2)
        }
        3 => {
            actors.coordinator.signal(Signal::SIGKILL);
            actors.coordinator.wait();
            actors.next_coordinator(c);
            "coordinator killed".into()
        }
        4 => {
            actors.coordinator.signal(Signal::SIGSTOP);
            std::thread::sleep(pause);
            actors.coordinator.signal(Signal::SIGCONT);
            format!("coordinator hung for {pause:?}")
        }
        5 | 6 => {
            let from = dice.roll(3);
            let to = (from + 1 + dice.roll(2)) % 3;
            network.cut(hosts[from], hosts[to]);
            std::thread::sleep(pause * 2);
            network.heal(hosts[from], hosts[to]);
            format!("{} did not reach {} for {:?}", hosts[from], hosts[to], pause * 2)
        }
        _ => {
            store.signal(Signal::SIGSTOP);
            std::thread::sleep(pause);
            store.signal(Signal::SIGCONT);
            format!("the store hung for {pause:?}")
        }
    }
}

/// A coordinator hangs until another one leads, and then goes on beside it.
fn two_coordinators(c: &Cluster, actors: &mut Actors) -> String {
    // A coordinator that only waits to lead would go on waiting.
    wait_for("a coordinator that leads", || {
        actors.keep_going(c);
        actors.coordinator.log().contains("serving").then_some(())
    });
    actors.coordinator.signal(Signal::SIGSTOP);
    let old = actors.next_coordinator(c);
    actors.coordinator.wait_for_log("serving");
    old.signal(Signal::SIGCONT);
    actors.followed.push(old);
    "another coordinator led while the one before hung".into()
}

fn points(c: &Cluster) -> Vec<serde_json::Value> {
    c.repository().run(["points", "--json"]).ok().json()["points"].as_array().unwrap().clone()
}

fn order(c: &Cluster) -> Child {
    let mut command = c.command("root", &["view", "backup", "restore", "operate"], &["backup", "shop", "--json"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Whether any run is under way; `None`: no coordinator answers.
fn busy(c: &Cluster) -> Option<bool> {
    let runs = c.run(&["runs", "--json"]);
    let document = (runs.code == Some(0)).then(|| runs.json())?;
    Some(document["runs"].as_array()?.iter().any(|r| !is_over(r)))
}

#[test]
fn whatever_happens_there_is_a_whole_point_or_none() {
    if !postgres::is_here() {
        skip("chaos", "no PostgreSQL 15 here");
        return;
    }
    let Some((store, _cache, mut c)) = four_hosts("chaos") else { return };
    // The database's user must be able to reach its folders.
    must("chmod", &["0711", &c.folder().display().to_string()]);
    let database = device(&c, "database", "ext4", |at| {
        let mut cluster = postgres::Cluster::init(at, &c.folder().join("socket"));
        cluster.start();
        cluster.query("create table t as select g, md5(g::text) from generate_series(1, 200000) g");
        // As in a snapshot, the database is in use.
        cluster.stop("immediate");
    });
    let files = device(&c, "files", "xfs", |at| fs::write(at.join("file"), noise(120 << 20, 5)).unwrap());
    let more = device(&c, "more", "ext4", |at| fs::write(at.join("file"), noise(150 << 20, 6)).unwrap());
    let at = |device: &Loop, nodes: &[&str]| -> String {
        nodes.iter().map(|n| format!("{n}: {}", device.path())).collect::<Vec<_>>().join(", ")
    };
    c.inventory(&format!(
        "nodes: {{ node-1: , node-2: , node-3: , node-4: }}
applications:
  shop:
    volumes:
      database: {{ at: {{ {} }} }}
      files: {{ at: {{ {} }} }}
      more: {{ at: {{ {} }} }}
",
        at(&database, &["node-1", "node-2"]),
        at(&files, &["node-3", "node-4"]),
        at(&more, &NODES),
    ));
    c.agent_args.extend(["--limit-upload".into(), "12MiB".into(), "--memory".into(), "64MiB".into()]);
    let seeds = match std::env::var("MILKRUN_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => SEEDS.to_vec(),
    };
    let mut actors = Actors::start(&c);
    for seed in seeds {
        c.wait_for_agents(&NODES);
        let (mut dice, mut story) = (Dice(seed), Vec::new());
        let before = points(&c).len();
        // New content each time, so that there is something to upload.
        let mount = Mount::new(&more.path(), &c.folder().join("more.mount"), &[]);
        fs::write(mount.path().join("file"), noise(150 << 20, 100 + seed)).unwrap();
        drop(mount);
        let began = Instant::now();
        let mut orders = vec![order(&c)];
        let both_at = dice.roll(4);
        while began.elapsed() < TROUBLE {
            std::thread::sleep(Duration::from_millis(250 * dice.roll(8) as u64));
            let at = began.elapsed().as_secs_f64();
            let what = match story.len() == both_at {
                true => two_coordinators(&c, &mut actors),
                false => trouble(&c, &mut actors, &store, &mut dice),
            };
            story.push(format!("{at:.1} s: {what}"));
        }
        let tell =
            |what: &str, actors: &Actors| format!("seed {seed}: {what}\n{}\n{}", story.join("\n"), actors.logs());
        let limit = Instant::now();
        while busy(&c) != Some(false) {
            actors.keep_going(&c);
            assert!(limit.elapsed() < Duration::from_secs(150), "{}", tell("it does not end", &actors));
            std::thread::sleep(Duration::from_millis(300));
        }
        for order in &mut orders {
            // This process only watches the run.
            let _ = order.kill();
            order.wait().unwrap();
        }
        for mut old in std::mem::take(&mut actors.followed) {
            // It notices that another one leads, and ends.
            assert_eq!(old.wait(), Some(1), "{}", tell(&old.log(), &actors));
        }
        let after = points(&c).len();
        assert!(after == before || after == before + 1, "{}", tell("one order made two points", &actors));
        println!("seed {seed}: {} troubles, {} new points\n{}", story.len(), after - before, story.join("\n"));
        if after == before {
            let again = c.run(&["backup", "shop"]);
            assert_eq!(again.code, Some(0), "{}\n{}", again.err, tell("once all is well again it fails", &actors));
        }
        c.repository().run(["verify", "--data"]).ok();
        for (name, device) in [("database", &database), ("files", &files), ("more", &more)] {
            let back = c.folder().join(format!("{name}.back"));
            let _ = fs::remove_file(&back);
            c.repository().run(["restore", "shop", "--volume", &format!("{name}={}", back.display())]).ok();
            let same = must("cmp", &[&device.path(), &back.display().to_string()]);
            assert_eq!(same, "", "{}", tell(name, &actors));
        }
        for agent in &actors.agents {
            let peak = agent.peak_memory();
            assert!(peak < 250 << 20, "{}", tell(&format!("an agent of 64 MiB used {peak} bytes"), &actors));
        }
    }
    // The restored database starts and has all its rows.
    let back = Loop::attach(&c.folder().join("database.back"));
    let mount = Mount::new(&back.path(), &c.folder().join("database.again"), &[]);
    let mut cluster = postgres::Cluster::existing(mount.path(), &c.folder().join("socket-again"));
    cluster.start();
    assert_eq!(cluster.query("select count(*) from t"), "200000");
    cluster.stop("fast");
}
