//! The service for restores: it sends plans.

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_server::Download;
use tonic::{Request, Response, Status};

use super::answers::{Answers, Streams, answers};
use super::status;
use super::transport::connection::peer_of;
use crate::Shared;
use crate::restore::PlanForm;

/// How many pages may wait in the channel.
const PAGES_WAITING: usize = 4;

/// The service.
pub struct Service(Shared, Streams);

impl Service {
    /// The service for all repositories of the process.
    pub fn new(shared: Shared) -> Self {
        Self(shared, Streams::default())
    }
}

#[tonic::async_trait]
impl Download for Service {
    type PlanStream = Answers<wire::PlanPage>;

    async fn plan(&self, request: Request<wire::PlanRequest>) -> Result<Response<Self::PlanStream>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let form = PlanForm {
            in_order: request.in_order,
            packed: request.packed,
            grouped: request.in_order && request.grouped,
        };
        let run = self.0.restores.find(request.assignment.as_ref()).map_err(|e| status::refused(&e))?;
        let a = request.assignment.unwrap_or_default();
        let volume = run.check(&a, &peer).map_err(|e| status::refused(&e))?;
        let place = self.1.open(&a, "plan")?;
        let pages = answers(PAGES_WAITING, move |sink| async move {
            let _place = place;
            let mut pages = run.pages(volume, request.from, form);
            while let Some(page) = pages.next().await.map_err(|e| status::restore(&e))? {
                sink.send(page).await?;
            }
            Ok(())
        });
        Ok(Response::new(pages))
    }
}
