//! The connected agents, and the channel to each.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_proto::agent::v1::{ToAgent, to_agent::Message};
use milkrun_repository::clock::Moment;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long an agent may take to read a message before it counts as gone.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// An agent that was silent for two heartbeats may be gone: another agent of its node is accepted in its place.
const SILENT_AFTER: Duration = Duration::from_secs(10);

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
    /// How many volumes it takes at once; `None`: no limit of its own.
    pub volumes_max: Option<usize>,
    /// Whether it freezes file systems.
    pub freezes: bool,
    /// It said that it is about to stop.
    pub leaving: bool,
    /// Since when it is connected.
    pub since: Moment,
    /// A second agent of the same node that was refused while this one was connected.
    pub rival: Option<Rival>,
    link: Link,
    session: u64,
    instance: Vec<u8>,
    heard: Instant,
    /// Fires when the session is over.
    over: CancellationToken,
}

/// A second agent of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Its address.
    pub whence: String,
    /// When it was refused.
    pub at: Moment,
}

/// A session that was begun.
pub struct Begun {
    /// Its number.
    pub session: u64,
    /// Fires when another session of the same agent takes its place.
    pub over: CancellationToken,
    /// Whether it takes the place of an older session.
    pub again: bool,
}

/// A live agent of another process already has the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "another agent of node {node} is connected since {since}: two that read and write the same devices are never right; stop one"
)]
pub struct NodeInUse {
    /// Which node.
    pub node: String,
    /// Since when it is connected.
    pub since: Moment,
}

/// The channel for messages to one agent.
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
    /// Whether it freezes file systems.
    pub freezes: bool,
    /// Identifies its process; empty: it does not say.
    pub instance: Vec<u8>,
    /// Its address, for people.
    pub whence: String,
}

impl Link {
    /// A link over this channel.
    pub fn new(down: mpsc::Sender<Result<ToAgent, tonic::Status>>) -> Self {
        Self { down }
    }

    /// Sends a message. Returns whether the agent is still there.
    pub async fn send(&self, message: Message) -> bool {
        let send = self.down.send(Ok(ToAgent { message: Some(message) }));
        // An agent that does not read must not hold up the sender.
        matches!(tokio::time::timeout(SEND_LIMIT, send).await, Ok(Ok(())))
    }

    /// Returns once the session is over.
    pub async fn over(&self) {
        self.down.closed().await;
    }

    /// Ends the session with a reason.
    pub async fn end(&self, why: tonic::Status) {
        // If the agent does not read, the session ends with its connection.
        let _ = tokio::time::timeout(SEND_LIMIT, self.down.send(Err(why))).await;
    }

    /// Sends a message that may be lost when many wait.
    pub fn hint(&self, message: Message) {
        // An agent that does not read its messages does not need a hint.
        let _ = self.down.try_send(Ok(ToAgent { message: Some(message) }));
    }
}

impl Agents {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent connected. An older session of the same process is over: it lost its connection, and nobody has noticed yet. An
    /// older session of another process is over too if it has been silent: the agent was started again. If the older session is
    /// alive, the new agent is refused.
    ///
    /// # Errors
    /// [`NodeInUse`].
    pub fn add(&self, r: Registration, link: Link) -> Result<Begun, NodeInUse> {
        let mut table = self.table();
        let Registration { node, version, protocol, volumes_max, freezes, instance, whence } = r;
        let before = table.agents.get_mut(&node);
        let again = before.is_some();
        if let Some(before) = before {
            let other = !instance.is_empty() && !before.instance.is_empty() && instance != before.instance;
            if other && before.heard.elapsed() < SILENT_AFTER {
                before.rival = Some(Rival { whence, at: Moment::now() });
                return Err(NodeInUse { node, since: before.since });
            }
            before.over.cancel();
        }
        table.sessions += 1;
        let (session, over, since) = (table.sessions, CancellationToken::new(), Moment::now());
        let agent = Agent {
            version,
            protocol,
            volumes_max,
            freezes,
            leaving: false,
            since,
            rival: None,
            link,
            session,
            instance,
            heard: Instant::now(),
            over: over.clone(),
        };
        table.agents.insert(node, agent);
        Ok(Begun { session, over, again })
    }

    /// An agent sent something.
    pub fn heard(&self, node: &str, session: u64) {
        if let Some(agent) = self.table().agents.get_mut(node).filter(|a| a.session == session) {
            agent.heard = Instant::now();
        }
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

    /// The channel to a node's agent.
    pub fn link(&self, node: &str) -> Option<Link> {
        self.table().agents.get(node).map(|a| a.link.clone())
    }

    /// The channel to a node's agent, if it freezes file systems. `None`: there is no agent.
    pub fn freezing_link(&self, node: &str) -> Option<Result<Link, String>> {
        let table = self.table();
        let agent = table.agents.get(node)?;
        Some(if agent.freezes { Ok(agent.link.clone()) } else { Err(agent.version.clone()) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_two_agents_of_a_node_the_one_that_is_there_stays() {
        let agents = Agents::default();
        let add = |instance: &[u8]| {
            let registration = Registration {
                node: "a".into(),
                version: String::new(),
                protocol: 3,
                volumes_max: None,
                freezes: false,
                instance: instance.to_vec(),
                whence: "10.0.0.9:1".into(),
            };
            agents.add(registration, Link::new(mpsc::channel(1).0))
        };
        let first = add(b"1").unwrap();
        assert!(matches!(add(b"2"), Err(NodeInUse { .. })));
        assert_eq!(agents.list()["a"].rival.as_ref().unwrap().whence, "10.0.0.9:1");
        assert!(!first.over.is_cancelled());
        // It connects again.
        let second = add(b"1").unwrap();
        assert!(second.again && first.over.is_cancelled());
        agents.heard("a", second.session);
        tokio::time::advance(SILENT_AFTER).await;
        // The older session was silent.
        let third = add(b"2").unwrap();
        assert!(second.over.is_cancelled());
        // An agent of an earlier release does not identify its process.
        assert!(add(b"").is_ok() && third.over.is_cancelled());
    }
}
