//! Who is connected, and the way down to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use milkrun_proto::agent::v1::{ToAgent, to_agent::Message};
use tokio::sync::{mpsc, watch};

/// The connected agents, by node.
#[derive(Clone)]
pub struct Agents {
    table: Arc<Mutex<HashMap<String, Link>>>,
    changed: watch::Sender<u64>,
}

/// The way down to one agent.
#[derive(Clone, Debug)]
pub struct Link {
    down: mpsc::Sender<Result<ToAgent, tonic::Status>>,
}

impl Default for Agents {
    fn default() -> Self {
        Self { table: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Link {
    /// Over this channel.
    pub fn new(down: mpsc::Sender<Result<ToAgent, tonic::Status>>) -> Self {
        Self { down }
    }

    /// Sends a message. Returns whether the agent is still there.
    pub async fn send(&self, message: Message) -> bool {
        self.down.send(Ok(ToAgent { message: Some(message) })).await.is_ok()
    }
}

impl Agents {
    /// An agent connected.
    pub fn add(&self, node: String, link: Link) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(node, link);
        self.changed.send_modify(|n| *n += 1);
    }

    /// An agent is gone.
    pub fn remove(&self, node: &str) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Any agent; waits for the first.
    pub async fn any(&self) -> Link {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let found = self.table.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned();
            if let Some(link) = found {
                return link;
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }
}
