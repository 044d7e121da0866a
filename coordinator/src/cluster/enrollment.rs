//! Certificates for agents and the operator: who they are says the API server, of the token that they show.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use milkrun_identity::enrollment::AUDIENCE;
use milkrun_identity::peer::{Action, Role};
use milkrun_identity::tls::Credentials;
use milkrun_identity::{NodeName, Peer};
use milkrun_proto::identity::v1::enrollment_server::{Enrollment, EnrollmentServer};
use milkrun_proto::identity::v1::{EnrollReply, EnrollRequest};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::authority::Authority;

/// How long a certificate of an agent or of the operator is valid. A session ends with its certificate: it is as long as a
/// large volume may take.
const VALID: Duration = Duration::from_secs(24 * 3600);
/// A request is a token and a key.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Handshakes and calls at once: whoever has no certificate yet may be anybody.
const AT_ONCE: usize = 64;
const CALL_MAX: Duration = Duration::from_secs(20);
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

struct Service {
    authority: Arc<Authority>,
    client: Client,
    namespace: String,
}

/// Why a token identifies nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Stranger {
    #[error("the API server does not know the token: {0}")]
    Unknown(String),
    #[error("the token is not for the audience {AUDIENCE}")]
    Audience,
    #[error("{0} is neither an agent nor the operator of milkrun")]
    Nobody(String),
    #[error("the token names no node: the cluster must be of Kubernetes 1.30 or later, and the token that of a pod")]
    NoNode,
}

/// Who somebody is, by what the API server says of them.
fn peer(user: &UserInfo, namespace: &str) -> Result<Peer, Stranger> {
    let name = user.username.clone().unwrap_or_default();
    let account = name.strip_prefix(&format!("system:serviceaccount:{namespace}:"));
    match account {
        Some("milkrun-agent") => {
            let nodes = user.extra.as_ref().and_then(|extra| extra.get(NODE_NAME));
            let node = nodes.and_then(|nodes| nodes.first()).and_then(|node| node.parse::<NodeName>().ok());
            node.map(Peer::Agent).ok_or(Stranger::NoNode)
        }
        Some("milkrun-operator") => {
            let role = |action| Role { action, application: None };
            let roles = vec![role(Action::Orchestrate), role(Action::Operate)];
            Ok(Peer::User { name: "milkrun-operator".into(), roles })
        }
        _ => Err(Stranger::Nobody(name)),
    }
}

/// What a review says of a token.
fn reviewed(review: TokenReview, namespace: &str) -> Result<Peer, Stranger> {
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        return Err(Stranger::Unknown(status.error.unwrap_or_default()));
    }
    // An API server that knows no audiences would accept a token for anything.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return Err(Stranger::Audience);
    }
    peer(&status.user.unwrap_or_default(), namespace)
}

impl Service {
    async fn review(&self, token: String) -> Result<Peer, Status> {
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![AUDIENCE.into()]) };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let answer = reviews.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|e| Status::unavailable(format!("can't ask the API server: {e}")))?;
        reviewed(answer, &self.namespace).map_err(|e| Status::permission_denied(e.to_string()))
    }
}

#[tonic::async_trait]
impl Enrollment for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        let request = request.into_inner();
        let peer = self.review(request.token).await.inspect_err(|why| {
            tracing::warn!(why = why.message(), "an enrolment is refused");
        })?;
        let issuer = self.authority.issuer();
        let signed = issuer.sign(&peer, &request.public_key, VALID);
        let certificate =
            signed.map_err(|e| Status::invalid_argument(milkrun_repository::point::catalog::chain(&e)))?;
        tracing::info!(%peer, "enrolled");
        Ok(Response::new(EnrollReply { certificate, authority: self.authority.trusted() }))
    }
}

/// Serves enrolment, over TLS without certificates of callers.
pub(crate) async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    client: &Client,
    namespace: &str,
) -> Result<(), tonic::transport::Error> {
    let credentials = authority.credentials();
    let service = Service { authority, client: client.clone(), namespace: namespace.to_owned() };
    let service = EnrollmentServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    let mut server =
        Server::builder().timeout(CALL_MAX).concurrency_limit_per_connection(2).max_connection_age(CALL_MAX);
    server.add_service(service).serve_with_incoming(strangers(listener, credentials)).await
}

/// A connection of somebody whom nobody knows yet.
type Unknown = tokio_rustls::server::TlsStream<TcpStream>;

fn strangers(listener: TcpListener, credentials: Credentials) -> ReceiverStream<std::io::Result<Unknown>> {
    let (sender, accepted) = tokio::sync::mpsc::channel(1);
    let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    tokio::spawn(async move {
        while let Ok(permit) = room.clone().acquire_owned().await {
            let Ok((connection, from)) = listener.accept().await else { continue };
            let (credentials, sender) = (credentials.clone(), sender.clone());
            tokio::spawn(async move {
                let _permit = permit;
                // Whoever can't shake hands is told so by TLS.
                if let Ok(stream) = credentials.accept_stranger(connection, from).await {
                    let _ = sender.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(accepted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::TokenReviewStatus;

    use super::*;

    fn review(username: &str, node: Option<&str>, audience: &str) -> TokenReview {
        let extra: BTreeMap<String, Vec<String>> =
            node.map(|n| (NODE_NAME.to_owned(), vec![n.to_owned()])).into_iter().collect();
        let user = UserInfo { username: Some(username.into()), extra: Some(extra), ..UserInfo::default() };
        let status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.into()]),
            user: Some(user),
            error: None,
        };
        TokenReview { status: Some(status), ..TokenReview::default() }
    }

    #[test]
    fn an_agent_is_that_of_its_tokens_node_and_nobody_else_is_anybody() {
        let agent = "system:serviceaccount:milkrun:milkrun-agent";
        let of = |user: &str, node: Option<&str>, audience: &str| reviewed(review(user, node, audience), "milkrun");
        assert_eq!(of(agent, Some("node1"), AUDIENCE), Ok(Peer::Agent("node1".parse().unwrap())));
        assert_eq!(of(agent, None, AUDIENCE), Err(Stranger::NoNode));
        assert_eq!(of(agent, Some("node1"), "other"), Err(Stranger::Audience));
        for stranger in [
            "system:serviceaccount:default:milkrun-agent",
            "system:serviceaccount:milkrun:default",
            "system:serviceaccount:milkrun:milkrun-agent2",
            "kubernetes-admin",
        ] {
            assert_eq!(of(stranger, Some("node1"), AUDIENCE), Err(Stranger::Nobody(stranger.into())));
        }
        let operator = of("system:serviceaccount:milkrun:milkrun-operator", None, AUDIENCE).unwrap();
        assert!(operator.may(Action::Orchestrate, None));
        let mut refused = review(agent, Some("node1"), AUDIENCE);
        refused.status.as_mut().unwrap().authenticated = Some(false);
        assert_eq!(reviewed(refused, "milkrun"), Err(Stranger::Unknown(String::new())));
    }
}
