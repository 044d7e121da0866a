//! Decides which volume goes next, and to which node. It is a pure function of the waiting volumes, the running volumes and the
//! nodes. It returns a plan that can be printed.
//!
//! The order: a volume whose promise is broken or closest to it goes first; otherwise applications take turns. A volume goes to the
//! least loaded of the nodes that reach it, within the limits of each node and of the store. A volume for which there is no room
//! does not hold up the ones behind it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use milkrun_repository::clock::Moment;
use milkrun_repository::id::RunId;

/// A volume that waits for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its run.
    pub run: RunId,
    /// Its name.
    pub volume: String,
    /// Its application.
    pub application: String,
    /// The nodes that reach it; `None`: any.
    pub nodes: Option<Vec<String>>,
    /// When the promise of its application breaks; `None`: it has none.
    pub due: Option<Moment>,
    /// Its place in the queue: a number that grows with each volume that is added.
    pub turn: u64,
}

/// A volume under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its application.
    pub application: String,
    /// Its node.
    pub node: String,
}

/// A node that takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Volumes at once.
    pub volumes_max: usize,
}

/// What the planner sees.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// The volumes that wait.
    pub waiting: Vec<Waiting>,
    /// The volumes that run.
    pub running: Vec<Running>,
    /// Nodes whose agents are connected and take work.
    pub nodes: Vec<Node>,
    /// Volumes at once on all nodes together.
    pub volumes_max: usize,
}

/// One decision of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The run.
    pub run: RunId,
    /// The volume.
    pub volume: String,
    /// The node that it goes to.
    pub node: String,
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of run {} to {}", self.volume, self.run, self.node)
    }
}

/// A volume whose promise is broken, or breaks within this many milliseconds, goes before all others.
const AT_RISK_MS: i64 = 15 * 60 * 1000;

/// Makes a plan. `now` decides only which promises are at risk.
pub fn plan(situation: &Situation, now: Moment) -> Vec<Placed> {
    let mut room: BTreeMap<&str, (usize, usize)> =
        situation.nodes.iter().map(|n| (n.name.as_str(), (0, n.volumes_max))).collect();
    let mut share: HashMap<&str, usize> = HashMap::new();
    for r in &situation.running {
        if let Some((used, _)) = room.get_mut(r.node.as_str()) {
            *used += 1;
        }
        *share.entry(r.application.as_str()).or_default() += 1;
    }
    let mut left = situation.volumes_max.saturating_sub(situation.running.len());
    let mut placed = Vec::new();
    for waiting in order(&situation.waiting, &share, now) {
        if left == 0 {
            break;
        }
        let Some(node) = least_loaded(waiting, &room) else { continue };
        if let Some((used, _)) = room.get_mut(node.as_str()) {
            *used += 1;
        }
        left -= 1;
        placed.push(Placed { run: waiting.run, volume: waiting.volume.clone(), node });
    }
    placed
}

/// All waiting volumes, in the order in which they are placed.
fn order<'a>(waiting: &'a [Waiting], running: &HashMap<&str, usize>, now: Moment) -> Vec<&'a Waiting> {
    let due = |w: &Waiting| w.due.map_or(i64::MAX, Moment::millis);
    let mut sorted: Vec<&Waiting> = waiting.iter().collect();
    sorted.sort_by_key(|w| (due(w), w.turn));
    // The n-th volume of an application counts as if n - 1 others of it were already running: so applications take turns.
    let mut shares: HashMap<&str, usize> = running.clone();
    let mut keyed: Vec<(bool, usize, &Waiting)> = sorted
        .into_iter()
        .map(|w| {
            let at_risk = due(w).saturating_sub(now.millis()) <= AT_RISK_MS;
            let share = shares.entry(w.application.as_str()).or_default();
            *share += 1;
            (at_risk, *share, w)
        })
        .collect();
    keyed.sort_by_key(|&(at_risk, share, w)| if at_risk { (0, 0, due(w), w.turn) } else { (1, share, due(w), w.turn) });
    keyed.into_iter().map(|(.., w)| w).collect()
}

fn least_loaded(waiting: &Waiting, room: &BTreeMap<&str, (usize, usize)>) -> Option<String> {
    let free = |name: &str, &(used, most): &(usize, usize)| (used < most).then(|| (used, name.to_owned()));
    let best = match &waiting.nodes {
        None => room.iter().filter_map(|(name, load)| free(name, load)).min(),
        Some(nodes) => {
            let distinct: HashSet<&str> = nodes.iter().map(String::as_str).collect();
            distinct.into_iter().filter_map(|name| free(name, room.get(name)?)).min()
        }
    };
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(app: &str, volume: &str, nodes: &[&str], due: Option<i64>, turn: u64) -> Waiting {
        Waiting {
            run: RunId::from_bytes([turn as u8; 8]),
            volume: volume.into(),
            application: app.into(),
            nodes: Some(nodes.iter().map(|&n| n.into()).collect()),
            due: due.map(Moment::from_millis),
            turn,
        }
    }

    fn node(name: &str, volumes_max: usize) -> Node {
        Node { name: name.into(), volumes_max }
    }

    fn volumes(placed: &[Placed]) -> Vec<String> {
        placed.iter().map(|p| format!("{}@{}", p.volume, p.node)).collect()
    }

    #[test]
    fn a_volume_goes_where_it_is_and_to_the_least_loaded() {
        let situation = Situation {
            waiting: vec![
                waiting("shop", "only-b", &["b"], None, 1),
                waiting("shop", "either", &["a", "b"], None, 2),
                waiting("shop", "gone", &["c"], None, 3),
            ],
            running: vec![Running { application: "x".into(), node: "a".into() }],
            nodes: vec![node("a", 4), node("b", 4)],
            volumes_max: 10,
        };
        // When "either" is placed, both nodes have one volume: the name decides.
        assert_eq!(volumes(&plan(&situation, Moment::from_millis(0))), ["only-b@b", "either@a"]);
    }

    #[test]
    fn broken_promises_go_first_and_applications_take_turns() {
        let big = (0..4).map(|i| waiting("big", &format!("big{i}"), &["a"], None, i));
        let small = waiting("small", "small", &["a"], None, 10);
        let late = waiting("late", "late", &["a"], Some(1000), 11);
        let soon = waiting("soon", "soon", &["a"], Some(3_600_000), 12);
        let situation = Situation {
            waiting: big.chain([small, late, soon]).collect(),
            nodes: vec![node("a", 5)],
            volumes_max: 100,
            ..Default::default()
        };
        let order = volumes(&plan(&situation, Moment::from_millis(0)));
        assert_eq!(order, ["late@a", "soon@a", "big0@a", "small@a", "big1@a"]);
    }

    proptest! {
        #[test]
        fn bounds_are_kept_and_no_room_is_left_unused(
            wants in proptest::collection::vec((0usize..5, proptest::collection::hash_set(0usize..6, 1..4), proptest::option::of(0i64..10_000_000)), 0..60),
            limits in proptest::collection::vec(1usize..5, 1..6),
            busy in proptest::collection::vec(0usize..6, 0..10),
            volumes_max in 0usize..40,
        ) {
            let name = |n: usize| format!("n{n}");
            let waiting: Vec<Waiting> = wants.iter().enumerate().map(|(i, (app, nodes, due))| Waiting {
                run: RunId::from_bytes([1; 8]),
                volume: i.to_string(),
                application: app.to_string(),
                nodes: Some(nodes.iter().map(|&n| name(n)).collect()),
                due: due.map(Moment::from_millis),
                turn: i as u64,
            }).collect();
            let situation = Situation {
                waiting: waiting.clone(),
                running: busy.iter().map(|&n| Running { application: "0".into(), node: name(n) }).collect(),
                nodes: limits.iter().enumerate().map(|(i, &m)| node(&name(i), m)).collect(),
                volumes_max,
            };
            let placed = plan(&situation, Moment::from_millis(0));
            prop_assert!(placed.len() + situation.running.len() <= volumes_max.max(situation.running.len()));
            let mut load: HashMap<String, usize> = HashMap::new();
            for r in &situation.running { *load.entry(r.node.clone()).or_default() += 1; }
            let before = load.clone();
            let mut seen = HashSet::new();
            for p in &placed {
                prop_assert!(seen.insert(p.volume.clone()), "placed twice");
                let w = waiting.iter().find(|w| w.volume == p.volume).unwrap();
                prop_assert!(w.nodes.as_ref().unwrap().contains(&p.node), "placed where it is not");
                *load.entry(p.node.clone()).or_default() += 1;
            }
            for n in &situation.nodes {
                let now = load.get(&n.name).copied().unwrap_or(0);
                prop_assert!(now <= n.volumes_max.max(before.get(&n.name).copied().unwrap_or(0)));
            }
            // A volume that still waits has no room on any node, or the store has none.
            if placed.len() + situation.running.len() < volumes_max {
                for w in waiting.iter().filter(|w| !seen.contains(&w.volume)) {
                    for n in situation.nodes.iter().filter(|n| w.nodes.as_ref().unwrap().contains(&n.name)) {
                        prop_assert!(load.get(&n.name).copied().unwrap_or(0) >= n.volumes_max, "{} could go to {}", w.volume, n.name);
                    }
                }
            }
            // The same situation gives the same plan.
            prop_assert_eq!(placed, plan(&situation, Moment::from_millis(0)));
        }
    }
}
