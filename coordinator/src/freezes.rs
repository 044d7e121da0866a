//! Freezing file systems on their nodes. Agents freeze and thaw; here their answers are waited for. Nothing is kept: whoever asks names
//! what is frozen, and agents thaw by themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use tokio::sync::oneshot;
use wire::freeze_state::State;
use wire::to_agent::Message;

use crate::agents::Agents;
use crate::one_line::one_line;

/// How long it may take to write what waits to be written.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// How long an answer may take after the time that freezing itself may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The most characters of an agent's reason.
const REASON_MAX: usize = 4096;

/// A mounted file system on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The node.
    pub node: String,
    /// Where it is mounted there.
    pub path: String,
}

/// How a freeze ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thawed {
    /// Why it was not frozen until now; `None`: it was.
    pub early: Option<String>,
    /// How long writers waited, as far as that is known.
    pub held: Duration,
}

/// Why a file system is not frozen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// Its node has no agent.
    #[error("there is no agent on node {0}")]
    NoAgent(String),
    /// The agent freezes nothing.
    #[error(
        "the agent of node {node} (release {release}) freezes nothing: it is older, or was started without --freeze-notes"
    )]
    Unable {
        /// Its node.
        node: String,
        /// Its release.
        release: String,
    },
    /// What waits could not be written, so nothing was frozen.
    #[error(transparent)]
    NotBegun(Box<FreezeError>),
    /// The agent does not answer.
    #[error("the agent of node {node} gives no answer for {path}: it is gone, or the device hangs")]
    Silent {
        /// Its node.
        node: String,
        /// Where it is mounted.
        path: String,
    },
    /// The agent refuses.
    #[error("node {node}: {reason}")]
    Refused {
        /// Its node.
        node: String,
        /// What it says.
        reason: String,
    },
}

/// Freezes and thaws file systems.
#[derive(Clone)]
pub struct Freezes {
    agents: Agents,
    questions: Arc<Mutex<Questions>>,
}

/// Questions to agents that wait for their answers.
#[derive(Default)]
struct Questions {
    last: u64,
    waiting: HashMap<u64, (String, oneshot::Sender<wire::FreezeState>)>,
}

/// A question that waits. It is forgotten when this is dropped.
struct Question {
    number: u64,
    questions: Arc<Mutex<Questions>>,
}

fn lock(questions: &Mutex<Questions>) -> MutexGuard<'_, Questions> {
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.questions).waiting.remove(&self.number);
    }
}

impl Freezes {
    /// With these agents.
    pub fn new(agents: Agents) -> Self {
        Self { agents, questions: Arc::default() }
    }

    /// An agent answers.
    pub fn answered(&self, node: &str, state: wire::FreezeState) {
        let mut questions = lock(&self.questions);
        if questions.waiting.get(&state.question).is_some_and(|(asked, _)| asked == node)
            && let Some((_, sender)) = questions.waiting.remove(&state.question)
        {
            // Whoever asked may have given up.
            let _ = sender.send(state);
        }
    }

    /// Freezes all of these, or none.
    ///
    /// # Errors
    /// [`FreezeError`] of the first that is not frozen. Those that are frozen are thawed.
    pub async fn freeze(&self, run: &[u8], mounts: &[Mount], limit: Duration) -> Result<(), FreezeError> {
        // Nobody waits yet.
        let synced = mounts.iter().map(|mount| self.freeze_one(run, mount, None));
        futures::future::try_join_all(synced).await.map_err(|e| FreezeError::NotBegun(Box::new(e)))?;
        let frozen = mounts.iter().map(|mount| self.freeze_one(run, mount, Some(limit)));
        let Err(e) = futures::future::try_join_all(frozen).await else { return Ok(()) };
        // An agent that gives no answer thaws by itself.
        let _ = self.thaw(run, mounts).await;
        Err(e)
    }

    /// Freezes one of them. `limit`: `None` only writes what waits to be written.
    async fn freeze_one(&self, run: &[u8], mount: &Mount, limit: Option<Duration>) -> Result<(), FreezeError> {
        let limit_ms = u32::try_from(limit.unwrap_or_default().as_millis()).unwrap_or(u32::MAX);
        let (run, path, only_sync) = (run.to_vec().into(), mount.path.clone(), limit.is_none());
        let asked = |question| Message::Freeze(wire::FreezeFileSystem { question, run, path, limit_ms, only_sync });
        let state = self.ask(mount, asked, limit.unwrap_or(SYNC_LIMIT) + ANSWER_LIMIT).await?;
        if state.state() == if only_sync { State::Synced } else { State::Frozen } {
            return Ok(());
        }
        Err(FreezeError::Refused { node: mount.node.clone(), reason: one_line(&state.reason, REASON_MAX) })
    }

    /// Thaws all of these. Says of each how it ended.
    ///
    /// # Errors
    /// [`FreezeError`] of the first whose agent gives no answer; it can be asked again. The others are thawed.
    pub async fn thaw(&self, run: &[u8], mounts: &[Mount]) -> Result<Vec<Thawed>, FreezeError> {
        let all = futures::future::join_all(mounts.iter().map(|mount| self.thaw_one(run, mount))).await;
        all.into_iter().collect()
    }

    async fn thaw_one(&self, run: &[u8], mount: &Mount) -> Result<Thawed, FreezeError> {
        let (run, path) = (run.to_vec().into(), mount.path.clone());
        let asked = |question| Message::Thaw(wire::ThawFileSystem { question, run, path });
        let state = self.ask(mount, asked, ANSWER_LIMIT).await?;
        let early = match state.state() {
            State::Thawed => None,
            State::Early => Some("its time was over, or somebody else thawed it".to_owned()),
            _ => Some(format!("the agent of node {} has started again, and thawed it", mount.node)),
        };
        Ok(Thawed { early, held: Duration::from_millis(state.held_ms.into()) })
    }

    async fn ask(
        &self,
        mount: &Mount,
        message: impl FnOnce(u64) -> Message,
        limit: Duration,
    ) -> Result<wire::FreezeState, FreezeError> {
        let node = &mount.node;
        let gone = || FreezeError::NoAgent(node.clone());
        let link = self.agents.freezing_link(node).ok_or_else(gone)?;
        let link = link.map_err(|release| FreezeError::Unable { node: node.clone(), release })?;
        let (sender, answer) = oneshot::channel();
        let question = {
            let mut questions = lock(&self.questions);
            questions.last += 1;
            let number = questions.last;
            questions.waiting.insert(number, (node.clone(), sender));
            Question { number, questions: self.questions.clone() }
        };
        if !link.send(message(question.number)).await {
            return Err(gone());
        }
        let silent = || FreezeError::Silent { node: node.clone(), path: mount.path.clone() };
        tokio::select! {
            answer = tokio::time::timeout(limit, answer) => answer.ok().and_then(Result::ok).ok_or_else(silent),
            () = link.over() => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::agents::{Link, Registration};

    /// An agent that answers each question with the next of these states.
    fn agent(agents: &Agents, freezes: &Freezes, node: &'static str, states: Vec<State>) {
        let (down, mut asked) = mpsc::channel(8);
        let registration = Registration {
            node: node.into(),
            version: String::new(),
            protocol: 3,
            volumes_max: None,
            freezes: true,
            instance: Vec::new(),
            whence: String::new(),
        };
        assert!(agents.add(registration, Link::new(down)).is_ok());
        let freezes = freezes.clone();
        tokio::spawn(async move {
            for state in states {
                let message: Option<Result<wire::ToAgent, tonic::Status>> = asked.recv().await;
                let question = match message.unwrap().unwrap().message.unwrap() {
                    Message::Freeze(f) => f.question,
                    Message::Thaw(t) => t.question,
                    other => panic!("{other:?}"),
                };
                let reason = "it is busy\nreally".into();
                let answer = wire::FreezeState { question, state: state.into(), reason, held_ms: 7 };
                // Another node's agent can't answer for it.
                freezes.answered("elsewhere", answer.clone());
                freezes.answered(node, answer);
            }
            std::future::pending::<()>().await;
        });
    }

    fn mount(node: &str) -> Mount {
        Mount { node: node.into(), path: "/m".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_frozen_or_none() {
        let agents = Agents::default();
        let freezes = Freezes::new(agents.clone());
        agent(
            &agents,
            &freezes,
            "a",
            vec![State::Synced, State::Frozen, State::Thawed, State::Synced, State::Frozen, State::Thawed],
        );
        agent(
            &agents,
            &freezes,
            "b",
            vec![State::Synced, State::Frozen, State::Early, State::Synced, State::NotFrozen, State::NotFrozen],
        );
        let (both, limit) = ([mount("a"), mount("b")], Duration::from_secs(5));
        assert_eq!(freezes.freeze(b"r", &both, limit).await, Ok(()));
        let thawed = freezes.thaw(b"r", &both).await.unwrap();
        assert_eq!(thawed[0], Thawed { early: None, held: Duration::from_millis(7) });
        assert!(thawed[1].early.is_some());
        // One refuses: the other is thawed.
        let refused = FreezeError::Refused { node: "b".into(), reason: "it is busy really".into() };
        assert_eq!(freezes.freeze(b"s", &both, limit).await, Err(refused));
        assert!(lock(&freezes.questions).waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_not_there_or_says_nothing_is_named() {
        let agents = Agents::default();
        let freezes = Freezes::new(agents.clone());
        let limit = Duration::from_secs(5);
        let absent = || FreezeError::NoAgent("a".into());
        let frozen = freezes.freeze(b"r", &[mount("a")], limit).await;
        assert_eq!(frozen, Err(FreezeError::NotBegun(Box::new(absent()))), "it can be asked again");
        assert_eq!(freezes.thaw(b"r", &[mount("a")]).await, Err(absent()));
        agent(&agents, &freezes, "a", Vec::new());
        let silent = freezes.thaw(b"r", &[mount("a")]).await;
        assert!(matches!(silent, Err(FreezeError::Silent { .. })), "{silent:?}");
        assert!(lock(&freezes.questions).waiting.is_empty());
    }
}
