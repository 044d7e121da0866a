//! Answers that come one after the other, made in a task of their own. Their end is told, and not guessed from silence: of whoever made
//! them and died, the rest of a plan would look like a hole, and the rest of a sample like agreement.

use std::pin::Pin;

use futures::{Stream, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Takes the answers.
pub(super) struct Sink<T>(mpsc::Sender<Result<Option<T>, Status>>);

impl<T> Sink<T> {
    /// Gives the next one, once there is room.
    ///
    /// # Errors
    /// If nobody listens any more.
    pub(super) async fn send(&self, next: T) -> Result<(), Status> {
        self.0.send(Ok(Some(next))).await.map_err(|_| Status::cancelled("nobody listens any more"))
    }
}

/// What `work` sends, of which so many may wait, and at its end why it failed, if it did.
pub(super) fn answers<T, F>(waiting: usize, work: impl FnOnce(Sink<T>) -> F + Send + 'static) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send,
{
    let (sender, receiver) = mpsc::channel(waiting);
    let worker = tokio::spawn(async move {
        let ended = work(Sink(sender.clone())).await.map(|()| None);
        // Who does not listen need not know.
        let _ = sender.send(ended).await;
    });
    Box::pin(stream::unfold(Some((receiver, worker)), |open| async move {
        let (mut receiver, worker) = open?;
        match receiver.recv().await {
            Some(Ok(Some(next))) => Some((Ok(next), Some((receiver, worker)))),
            Some(Ok(None)) => None,
            Some(Err(status)) => Some((Err(status), None)),
            None => Some((Err(why_it_broke_off(worker).await), None)),
        }
    }))
}

async fn why_it_broke_off(worker: JoinHandle<()>) -> Status {
    match worker.await {
        Err(e) if e.is_panic() => Status::internal("the coordinator failed before its answer was complete"),
        _ => Status::unavailable("the coordinator stopped before its answer was complete"),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tonic::Code;

    use super::*;

    async fn heard(answers: Answers<u8>) -> Vec<Result<u8, Code>> {
        answers.map(|next| next.map_err(|e| e.code())).collect().await
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_told_from_one_that_ends() {
        let whole = answers(1, |sink| async move {
            sink.send(1).await?;
            sink.send(2).await
        });
        assert_eq!(heard(whole).await, [Ok(1), Ok(2)]);
        let failed = answers(1, |sink| async move {
            sink.send(1).await?;
            Err(Status::data_loss("damage"))
        });
        assert_eq!(heard(failed).await, [Ok(1), Err(Code::DataLoss)]);
        let died = answers(1, |sink| async move {
            sink.send(1).await?;
            std::panic::resume_unwind(Box::new("died"))
        });
        assert_eq!(heard(died).await, [Ok(1), Err(Code::Internal)]);
    }

    #[tokio::test]
    async fn whoever_is_not_heard_stops() {
        let (stopped, seen) = tokio::sync::oneshot::channel();
        let endless = answers(1, |sink| async move {
            let why = loop {
                if let Err(e) = sink.send(0).await {
                    break e;
                }
            };
            let _ = stopped.send(why.code());
            Err(why)
        });
        drop(endless);
        assert_eq!(seen.await, Ok(Code::Cancelled));
    }
}
