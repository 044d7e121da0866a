//! Counts each call: its bytes as they arrive, and the call itself until its answer has ended. A request fails if it does not
//! arrive in time, or if its caller has too much under way. Requests of others do not fail for that.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, Bytes, Service};
use tower::Layer;

use super::connections::{Call, Caller, Charge, Of, count_refused};

/// Puts a [`Gate`] before a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateLayer;

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;
    fn layer(&self, inner: S) -> Gate<S> {
        Gate(inner)
    }
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S>(S);

/// A session stays open, and its messages are limited where they are handled.
const SESSION: &str = "/milkrun.agent.v1.Session/Attach";
/// An order carries manifests.
const ORDER: &str = "/milkrun.control.v1.Control/Backup";

/// The counted parts of a call. They count until neither its request nor its answer is needed any more.
type Counted = Arc<(Call, Mutex<Option<Charge>>)>;

/// The bytes of a call count as long as this lives. It is for a service that keeps them beyond the call.
#[derive(Clone)]
pub(crate) struct Kept(#[expect(dead_code, reason = "dropped, not read")] Counted);

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            // The services refuse a request without a caller.
            return Box::pin(self.0.call(request));
        };
        let call = caller.call();
        let of = match request.uri().path() {
            SESSION => None,
            ORDER => Some(Of::Orders),
            _ => Some(Of::Requests),
        };
        let charge = of.and_then(|of| call.charge(of));
        let time = of.and_then(|of| call.time(of));
        let counted: Counted = Arc::new((call, Mutex::new(charge)));
        let mut request = request.map(|inner| {
            let deadline = time.map(|t| Box::pin(tokio::time::sleep(t)));
            Body::new(Arriving { inner, deadline, counted: counted.clone() })
        });
        request.extensions_mut().insert(Kept(counted.clone()));
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|inner| Body::new(Answering { inner, _counted: counted })))
        })
    }
}

/// A request that is arriving.
struct Arriving {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    counted: Counted,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let late = self.deadline.as_mut().is_some_and(|d| d.as_mut().poll(cx).is_ready());
                if !late {
                    return Poll::Pending;
                }
                count_refused("late requests");
                return Poll::Ready(Some(Err(Status::deadline_exceeded("the request did not arrive in time"))));
            }
        };
        if let Some(Ok(data)) = frame.as_ref().map(|f| f.as_ref().map(|f| f.data_ref()))
            && let Some(data) = data
            && let Some(charge) = &mut *self.counted.1.lock().unwrap_or_else(PoisonError::into_inner)
        {
            charge.add(data.len() as u64)?;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// An answer that is being sent to the caller.
struct Answering {
    inner: Body,
    _counted: Counted,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}
