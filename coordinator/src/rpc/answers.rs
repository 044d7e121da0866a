//! Streams of answers. The end of what a task sends is sent explicitly ([`answers`]). Otherwise the death of the task would look like
//! the end of its stream: the rest of a plan would look like a hole, and the rest of a sample like agreement.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use milkrun_proto::agent::v1::Assignment;

/// How many streams of one kind a volume may have open: an agent has one, and lost ones linger for a while.
const STREAMS_OF_VOLUME: usize = 4;

/// How many events may wait for a client that reads slowly.
const EVENTS_WAITING: usize = 64;

/// The streams that are open.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<HashMap<StreamOf, usize>>>);

/// The run, the volume, and the kind of stream.
type StreamOf = (Vec<u8>, String, &'static str);

/// The place of a stream among those of its volume. It is free again once this is dropped.
pub(super) struct OpenStream {
    streams: Streams,
    of: StreamOf,
}

impl Streams {
    fn table(&self) -> MutexGuard<'_, HashMap<StreamOf, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream of this kind under an assignment that is in force.
    ///
    /// # Errors
    /// When the volume has too many streams open.
    pub(super) fn open(&self, a: &Assignment, kind: &'static str) -> Result<OpenStream, Status> {
        let of = (a.run.to_vec(), a.volume.clone(), kind);
        let mut table = self.table();
        let open = table.entry(of.clone()).or_default();
        if *open >= STREAMS_OF_VOLUME {
            metrics::counter!("milkrun_refused_total", "what" => "streams").increment(1);
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_OF_VOLUME} {kind} streams of the volume are open"
            )));
        }
        *open += 1;
        drop(table);
        Ok(OpenStream { streams: self.clone(), of })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut table = self.streams.table();
        if let Some(open) = table.get_mut(&self.of) {
            *open -= 1;
            if *open == 0 {
                table.remove(&self.of);
            }
        }
    }
}

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends the answers of a stream.
pub(super) struct Sink<T>(mpsc::Sender<Result<Option<T>, Status>>);

impl<T> Sink<T> {
    /// Sends the next answer, once there is room.
    ///
    /// # Errors
    /// If the receiver is gone.
    pub(super) async fn send(&self, next: T) -> Result<(), Status> {
        self.0.send(Ok(Some(next))).await.map_err(|_| Status::cancelled("nobody listens any more"))
    }
}

/// The stream of the answers that `work` sends; up to `waiting` of them may be unread. If `work` fails, the stream ends with its
/// error.
pub(super) fn answers<T, F>(waiting: usize, work: impl FnOnce(Sink<T>) -> F + Send + 'static) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send,
{
    let (sender, receiver) = mpsc::channel(waiting);
    let worker = tokio::spawn(async move {
        let ended = work(Sink(sender.clone())).await.map(|()| None);
        // If the receiver is gone, it need not know.
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

/// The stream of an answer that is known already, in several messages.
pub(super) fn messages<T: Send + 'static>(first: T, rest: impl Iterator<Item = T> + Send + 'static) -> Answers<T> {
    Box::pin(stream::iter(std::iter::once(first).chain(rest).map(Ok)))
}

/// The stream of a run's events, which a task of its own sends. It has no explicit end: the last event says that it is the last.
pub(super) fn events<T, F>(send: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (events, outgoing) = mpsc::channel(EVENTS_WAITING);
    tokio::spawn(send(events));
    Box::pin(ReceiverStream::new(outgoing))
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

    #[test]
    fn a_volume_has_so_many_streams_and_no_more() {
        let streams = Streams::default();
        let a = |volume: &str| Assignment { volume: volume.into(), ..Default::default() };
        let mut open: Vec<OpenStream> =
            (0..STREAMS_OF_VOLUME).map(|_| streams.open(&a("data"), "parent").unwrap()).collect();
        assert_eq!(streams.open(&a("data"), "parent").err().map(|e| e.code()), Some(Code::ResourceExhausted));
        assert!(streams.open(&a("wal"), "parent").is_ok() && streams.open(&a("data"), "sample").is_ok());
        open.pop();
        assert!(streams.open(&a("data"), "parent").is_ok());
        drop(open);
        assert!(streams.table().is_empty());
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
