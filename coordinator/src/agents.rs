//! Who is connected, and the way down to them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_proto::agent::v1::{ToAgent, to_agent::Message};
use milkrun_repository::clock::Moment;
use tokio::sync::mpsc;

/// How long an agent may take to read what it is told before it counts as gone.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// The connected agents, by node.
#[derive(Clone, Default)]
pub struct Agents {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    agents: BTreeMap<String, Agent>,
    /// Nodes that somebody took out of work, connected or not.
    drained: HashSet<String>,
    sessions: u64,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its release.
    pub version: String,
    /// The protocol that it speaks.
    pub protocol: u32,
    /// Volumes that it takes at once; `None`: as many as come.
    pub volumes_max: Option<usize>,
    /// It is about to stop, by its own word.
    pub leaving: bool,
    /// Since when it is connected.
    pub since: Moment,
    link: Link,
    session: u64,
}

/// The way down to one agent.
#[derive(Clone, Debug)]
pub struct Link {
    down: mpsc::Sender<Result<ToAgent, tonic::Status>>,
}

/// What an agent says when it registers.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Its node.
    pub node: String,
    /// Its release.
    pub version: String,
    /// The protocol that it speaks.
    pub protocol: u32,
    /// Volumes that it takes at once.
    pub volumes_max: Option<usize>,
}

impl Link {
    /// Over this channel.
    pub fn new(down: mpsc::Sender<Result<ToAgent, tonic::Status>>) -> Self {
        Self { down }
    }

    /// Sends a message. Returns whether the agent is still there.
    pub async fn send(&self, message: Message) -> bool {
        let send = self.down.send(Ok(ToAgent { message: Some(message) }));
        // One that does not read what it is told must not hold up who tells.
        matches!(tokio::time::timeout(SEND_LIMIT, send).await, Ok(Ok(())))
    }

    /// Sends a message that may be lost when many wait.
    pub fn hint(&self, message: Message) {
        // Somebody who does not read will not miss it.
        let _ = self.down.try_send(Ok(ToAgent { message: Some(message) }));
    }
}

impl Agents {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent connected; returns the number of its session. An older session of the same node is over: its agent was
    /// started again, or lost its connection and nobody noticed yet.
    pub fn add(&self, r: Registration, link: Link) -> u64 {
        let mut table = self.table();
        table.sessions += 1;
        let session = table.sessions;
        let Registration { node, version, protocol, volumes_max } = r;
        let since = Moment::now();
        table.agents.insert(node, Agent { version, protocol, volumes_max, leaving: false, since, link, session });
        session
    }

    /// A session is over. Returns whether it was the node's present one.
    pub fn remove(&self, node: &str, session: u64) -> bool {
        let mut table = self.table();
        let present = table.agents.get(node).is_some_and(|a| a.session == session);
        if present {
            table.agents.remove(node);
        }
        present
    }

    /// Whether a session is the node's present one.
    pub fn is_present(&self, node: &str, session: u64) -> bool {
        self.table().agents.get(node).is_some_and(|a| a.session == session)
    }

    /// The way down to a node's agent.
    pub fn link(&self, node: &str) -> Option<Link> {
        self.table().agents.get(node).map(|a| a.link.clone())
    }

    /// An agent is about to stop.
    pub fn leaving(&self, node: &str) {
        if let Some(agent) = self.table().agents.get_mut(node) {
            agent.leaving = true;
        }
    }

    /// Takes a node out of work, or back.
    pub fn drain(&self, node: &str, out: bool) {
        let mut table = self.table();
        if out {
            table.drained.insert(node.to_owned());
        } else {
            table.drained.remove(node);
        }
    }

    /// Whether somebody took a node out of work.
    pub fn is_drained(&self, node: &str) -> bool {
        self.table().drained.contains(node)
    }

    /// Nodes that take work, and how many volumes their agents take.
    pub fn ready(&self) -> Vec<(String, Option<usize>)> {
        let table = self.table();
        let ready = table.agents.iter().filter(|(node, a)| !a.leaving && !table.drained.contains(*node));
        ready.map(|(node, a)| (node.clone(), a.volumes_max)).collect()
    }

    /// All that are connected.
    pub fn list(&self) -> BTreeMap<String, Agent> {
        self.table().agents.clone()
    }
}
