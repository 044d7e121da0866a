//! Asks the coordinator which chunks are known. Questions that come up while a call is in flight are sent together in
//! the next call: an incremental has one or two new chunks in each region, and a call costs the same for one id as for
//! a thousand.

use std::sync::Arc;

use milkrun_repository::id::ChunkId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{BackupError, IN_FLIGHT, VolumeJob};
use crate::rpc::Answer;

/// About this many ids go into one call.
const IDS_PER_CALL: usize = 4096;

struct Question {
    ids: Vec<ChunkId>,
    answer: oneshot::Sender<Result<Vec<Answer>, BackupError>>,
}

/// Takes questions.
#[derive(Clone)]
pub struct Lookups {
    sender: mpsc::Sender<Question>,
}

/// The task that calls the coordinator. Dropping this stops it.
pub type LookupTask = AbortOnDropHandle<()>;

impl Lookups {
    /// Starts lookups for one volume. With `share`, a chunk that another node is storing is [`Answer::Remote`]; else it
    /// is [`Answer::Yours`] too.
    pub fn start(job: &Arc<VolumeJob>, share: bool) -> (Self, LookupTask) {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        (Self { sender }, LookupTask::new(tokio::spawn(ask(job.clone(), receiver, share))))
    }

    /// Which of these chunks are known.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn ask(&self, ids: Vec<ChunkId>) -> Result<Vec<Answer>, BackupError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || BackupError::Stopped { why: "asking which chunks are known ended".into(), passing: false };
        self.sender.send(Question { ids, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

async fn ask(job: Arc<VolumeJob>, mut receiver: mpsc::Receiver<Question>, share: bool) {
    while let Some(first) = receiver.recv().await {
        let mut ids = first.ids.clone();
        let mut questions = vec![first];
        while ids.len() < IDS_PER_CALL {
            let Ok(next) = receiver.try_recv() else { break };
            ids.extend_from_slice(&next.ids);
            questions.push(next);
        }
        let asked = job.coordinator.lookup(&ids, share).await.map_err(BackupError::from);
        match asked {
            Ok(mut answers) => {
                for question in questions {
                    let rest = answers.split_off(question.ids.len());
                    let _ = question.answer.send(Ok(std::mem::replace(&mut answers, rest)));
                }
            }
            Err(e) => {
                // The first question gets the error itself, the others get one that says why they stop.
                let others = e.stops_others();
                let mut first = Some(e);
                for question in questions {
                    let e = first.take().unwrap_or_else(|| others.stops_others());
                    let _ = question.answer.send(Err(e));
                }
            }
        }
    }
}
