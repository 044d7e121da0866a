//! `placement`: the scheduler with 1,000 nodes and 10,000 volumes, in a simulated night: how long a plan takes, and how
//! long volumes wait. Time is simulated; only planning is real.
//!
//! ```text
//! cargo run --release -p milkrun-benches --bin placement            1,000 nodes, 10,000 volumes
//! cargo run --release -p milkrun-benches --bin placement -- 100 1000
//! ```
//! A volume lies on one node; each tenth volume lies on three. Sizes are spread over three orders of magnitude. A node
//! reads four volumes at once and moves 200 MB/s in all, the store 25 GB/s. A tenth of the applications is at risk of
//! breaking its promise.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use milkrun_coordinator::scheduler::{Node, Running, Situation, Waiting, plan};
use milkrun_repository::clock::Moment;
use milkrun_repository::id::RunId;

const NODE_RATE: f64 = 200e6;
const STORE_RATE: f64 = 25e9;
const PER_NODE: usize = 4;

/// A small random number generator: each run has the same night.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

struct Volume {
    application: String,
    nodes: Vec<String>,
    bytes: f64,
    due: Option<Moment>,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn night(nodes: usize, volumes: usize) -> Vec<Volume> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let applications = (volumes / 5).max(1) as u64;
    let mut out = Vec::with_capacity(volumes);
    for _ in 0..volumes {
        let app = dice.roll(applications);
        let places = if dice.roll(10) == 0 { 3 } else { 1 };
        let nodes = (0..places).map(|_| format!("n{}", dice.roll(nodes as u64))).collect();
        let exponent = 9.0 + dice.roll(3000) as f64 / 1000.0;
        let due = app.is_multiple_of(10).then(|| Moment::from_millis(60_000));
        out.push(Volume { application: format!("app{app}"), nodes, bytes: 10f64.powf(exponent), due });
    }
    out
}

/// When a volume ends: (time, number of the volume). The soonest is the greatest, for the heap.
struct End(f64, usize);

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for End {}

impl Ord for End {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1))
    }
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let at = ((sorted.len() as f64 - 1.0) * share) as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut number = |otherwise: usize| args.next().map_or(Ok(otherwise), |a| a.parse());
    let (node_count, volume_count) = (number(1000)?, number(10_000)?);
    let volumes = night(node_count, volume_count);
    let nodes: Vec<Node> = (0..node_count).map(|n| Node { name: format!("n{n}"), volumes_max: PER_NODE }).collect();
    let run = RunId::from_bytes([1; 8]);
    let mut situation = Situation {
        waiting: volumes
            .iter()
            .enumerate()
            .map(|(i, v)| Waiting {
                run,
                volume: i.to_string(),
                application: v.application.clone(),
                nodes: Some(v.nodes.clone()),
                due: v.due,
                turn: i as u64,
            })
            .collect(),
        running: Vec::new(),
        nodes,
        volumes_max: 2000,
    };
    let (mut now, mut plans, mut waits) = (0.0f64, Vec::<Duration>::new(), Vec::<(bool, f64)>::new());
    let mut ends = BinaryHeap::new();
    let mut at: BTreeMap<usize, Running> = BTreeMap::new();
    let mut moved = 0.0;
    loop {
        let began = Instant::now();
        let placed = plan(&situation, Moment::from_millis(0));
        plans.push(began.elapsed());
        let mut gone: HashMap<String, ()> = HashMap::new();
        for p in placed {
            let i: usize = p.volume.parse()?;
            let v = &volumes[i];
            waits.push((v.due.is_some(), now));
            let running = Running { application: v.application.clone(), node: p.node };
            situation.running.push(running.clone());
            at.insert(i, running);
            gone.insert(p.volume, ());
            // The volume's share of the node's rate or of the store's, whichever is smaller. This is a rough model: a
            // share does not change while the volume is read.
            let busy = at.len() as f64;
            let rate = (NODE_RATE / PER_NODE as f64).min(STORE_RATE / busy.max(1.0));
            ends.push(End(now + v.bytes / rate, i));
            moved += v.bytes;
        }
        situation.waiting.retain(|w| !gone.contains_key(&w.volume));
        let Some(End(when, done)) = ends.pop() else { break };
        now = when;
        if let Some(r) = at.remove(&done)
            && let Some(i) = situation.running.iter().position(|x| *x == r)
        {
            situation.running.swap_remove(i);
        }
    }
    plans.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{node_count} nodes, {volume_count} volumes, {:.1} TB; {PER_NODE} at once per node, 2000 in all",
        moved / 1e12
    )?;
    writeln!(
        out,
        "plans {}: median {:.2} ms, 99 % {:.2} ms, longest {:.2} ms",
        plans.len(),
        ms(plans[plans.len() / 2]),
        ms(plans[plans.len() * 99 / 100]),
        ms(plans[plans.len() - 1])
    )?;
    writeln!(out, "the night takes {:.1} h", now / 3600.0)?;
    for (what, promised) in [("at risk of breaking their promise", true), ("others", false)] {
        let mut of: Vec<f64> = waits.iter().filter(|(p, _)| *p == promised).map(|(_, w)| *w).collect();
        of.sort_by(f64::total_cmp);
        writeln!(
            out,
            "volumes {what}: {}, wait median {:.0} s, 99 % {:.0} s, longest {:.0} s",
            of.len(),
            percentile(&of, 0.5),
            percentile(&of, 0.99),
            percentile(&of, 1.0)
        )?;
    }
    Ok(())
}
