//! Restore points for callers who may see them. They are sent in pieces, since a repository may have many.

use milkrun_identity::{Action, Peer};
use milkrun_proto::control::v1 as control;
use milkrun_repository::point::Selector;
use tonic::{Response, Status};

use super::orders::{application, bad};
use super::{Service, may};
use crate::points::{self, Filter, Verification};
use crate::rpc::answers::{Answers, messages};
use crate::rpc::status;

/// Points, findings or names of objects in one message: well below the size that a message may have. A bucket may be full of what
/// is no point, and a finding names every point that it damages.
const POINTS_PIECE: usize = 256;
const OBJECTS_PIECE: usize = 2048;

impl Service {
    pub(super) async fn points(
        &self,
        peer: &Peer,
        r: control::ListPointsRequest,
    ) -> Result<Response<Answers<control::ListPointsReply>>, Status> {
        if !peer.may_some(Action::View) {
            may(peer, Action::View, None)?;
        }
        let coordinator = self.0.one(&r.repository).map_err(|e| status::no_repository(&e))?;
        let filter = match r.application.as_str() {
            "" => Filter::All { cluster: r.cluster, namespace: r.namespace },
            name => Filter::Application(application(name, &r.cluster, &r.namespace, &coordinator.cluster)?),
        };
        if let Filter::Application(app) = &filter {
            may(peer, Action::View, coordinator.role_name(app))?;
        }
        let listed = points::list(&coordinator, &filter, peer).await.map_err(|f| status::failure(&f))?;
        let control::ListPointsReply { points, refused, notes } = listed;
        let first = control::ListPointsReply { notes, ..Default::default() };
        let points = pieces(points, POINTS_PIECE).into_iter();
        let points = points.map(|points| control::ListPointsReply { points, ..Default::default() });
        let refused = pieces(refused, POINTS_PIECE).into_iter();
        let refused = refused.map(|refused| control::ListPointsReply { refused, ..Default::default() });
        Ok(Response::new(messages(first, points.chain(refused))))
    }

    pub(super) async fn show(
        &self,
        peer: &Peer,
        r: control::ShowPointRequest,
    ) -> Result<Response<Answers<control::ShowPointReply>>, Status> {
        if !peer.may_some(Action::View) {
            may(peer, Action::View, None)?;
        }
        let coordinator = self.0.one(&r.repository).map_err(|e| status::no_repository(&e))?;
        let selector = selector(&r.selector, &r.cluster, &r.namespace, &coordinator)?;
        let shown = points::show(&coordinator, &selector, &r.selector, peer).await;
        let (detail, objects) = shown.map_err(|e| status::points(&e))?;
        let first = control::ShowPointReply { detail: Some(detail), objects: Vec::new() };
        let rest =
            pieces(objects, OBJECTS_PIECE).into_iter().map(|objects| control::ShowPointReply { detail: None, objects });
        Ok(Response::new(messages(first, rest)))
    }

    pub(super) async fn prove(
        &self,
        peer: &Peer,
        r: control::VerifyRequest,
    ) -> Result<Response<Answers<control::VerifyReply>>, Status> {
        if !peer.may_some(Action::View) {
            may(peer, Action::View, None)?;
        }
        if r.set_aside {
            // Setting packs aside changes what all later backups may refer to.
            may(peer, Action::Backup, None)?;
        }
        let coordinator = self.0.one(&r.repository).map_err(|e| status::no_repository(&e))?;
        let which = r.which.into_iter().map(|text| {
            let selector = selector(&text, &r.cluster, &r.namespace, &coordinator)?;
            Ok::<_, Status>((selector, text))
        });
        let wanted = Verification {
            which: which.collect::<Result<_, _>>()?,
            data_percent: u8::try_from(r.data_percent.min(100)).unwrap_or(100),
            set_aside: r.set_aside,
        };
        let mut first = points::verify(&coordinator, wanted, peer).await.map_err(|e| status::points(&e))?;
        let findings = pieces(std::mem::take(&mut first.findings), POINTS_PIECE).into_iter();
        let rest = findings.map(|findings| control::VerifyReply { findings, ..Default::default() });
        Ok(Response::new(messages(first, rest)))
    }
}

/// What is sent in several messages, at most `most` in each.
fn pieces<T: Clone>(all: Vec<T>, most: usize) -> Vec<Vec<T>> {
    all.chunks(most).map(<[T]>::to_vec).collect()
}

fn selector(text: &str, cluster: &str, namespace: &str, coordinator: &crate::Coordinator) -> Result<Selector, Status> {
    let cluster = match cluster {
        "" => coordinator.cluster.clone(),
        id => id.parse().map_err(|e| bad(&e))?,
    };
    let namespace = Some(namespace).filter(|n| !n.is_empty());
    let namespace = namespace.map(str::parse).transpose().map_err(|e| bad(&e))?;
    let selector: Selector = text.parse().map_err(|e| bad(&e))?;
    Ok(selector.within(cluster, namespace))
}
