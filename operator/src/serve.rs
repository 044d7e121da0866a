//! The operator's process: gets a certificate, waits until it leads, and works until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};
use kube_lease_manager::LeaseManagerBuilder;
use milkrun_identity::enrollment::{Enrollment, EnrollmentError};
use milkrun_observe::http;
use milkrun_observe::signals::Stop;
use milkrun_operator::Settings;
use milkrun_operator::controller::{self, Context};
use milkrun_operator::coordinator::Coordinator;
use milkrun_repository::clock::entropy;
use milkrun_repository::point::catalog::chain;
use milkrun_resources::api_server;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::args::{Args, Command, Probe, Run};

const LEASE: &str = "milkrun-operator";
/// After so many seconds without a renewal, another process may work; so many before that, it is renewed.
const LEASE_S: u64 = 15;
const GRACE_S: u64 = 5;

/// Why the operator can't run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("can't find the cluster's API server: run in a pod, or set KUBECONFIG")]
    Client(#[source] kube::Error),
    #[error("can't read the namespace kube-system, whose UID is the cluster's id")]
    Cluster(#[source] kube::Error),
    #[error("can't take the Lease")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
    #[error("another process has the Lease")]
    Superseded,
    #[error(transparent)]
    Signals(#[from] milkrun_observe::signals::SignalError),
    #[error(transparent)]
    Http(#[from] http::HttpError),
}

pub(crate) fn run(args: Args) -> ExitCode {
    match args.command {
        Command::Run(run) => {
            milkrun_observe::logs::begin(run.log);
            in_runtime(serve(*run))
        }
        Command::Hold => in_runtime(hold()),
        Command::Probe { what, paths } => probe(what, &paths),
        Command::Definitions => definitions(),
    }
}

fn in_runtime(work: impl Future<Output = Result<(), ServeError>>) -> ExitCode {
    let result = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(work);
            runtime.shutdown_background();
            result.map_err(|e| chain(&e))
        }
        Err(e) => Err(format!("can't start: {e}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what it is for")]
fn definitions() -> ExitCode {
    for definition in milkrun_resources::definitions() {
        // JSON is YAML too.
        println!("---\n{}", serde_json::to_string_pretty(&definition).unwrap_or_default());
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "it becomes the pod's message")]
fn probe(what: Probe, paths: &[PathBuf]) -> ExitCode {
    for path in paths {
        let done = match what {
            Probe::Write => milkrun_operator::probe::write(path),
            Probe::Check => milkrun_operator::probe::check(path),
        };
        if let Err(e) = done {
            eprintln!("{}", chain(&e));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn hold() -> Result<(), ServeError> {
    Stop::on_signal()?.wanted().await;
    Ok(())
}

fn not_enrolled(e: &EnrollmentError) {
    tracing::warn!(why = chain(e), "no certificate yet; trying again");
}

async fn serve(args: Run) -> Result<(), ServeError> {
    let stop = Stop::on_signal()?;
    let (ready, serves) = watch::channel(false);
    if let Some(address) = args.metrics {
        http::serve(address, serves).await?;
    }
    let client = api_server::connect().await.map_err(ServeError::Client)?;
    let namespace = client.default_namespace().to_owned();
    let enrollment =
        Enrollment { url: args.coordinator.clone(), authority: args.authority, token: args.token, folder: args.tls };
    let credentials = tokio::select! {
        credentials = enrollment.enroll_at_last(not_enrolled) => credentials,
        () = stop.wanted() => return Ok(()),
    };
    let _renewing = AbortOnDropHandle::new(tokio::spawn(async move { enrollment.renew(not_enrolled).await }));
    // One that waits is ready, too: nobody calls it.
    ready.send_replace(true);
    let manager = LeaseManagerBuilder::new(client.clone(), LEASE).with_namespace(&namespace);
    let manager = manager.with_duration(LEASE_S).with_grace(GRACE_S).build().await?;
    let (mut held, task) = manager.watch().await;
    tokio::select! {
        // If the channel ends, so has the task, and the process ends below.
        _ = held.wait_for(|held| *held) => {}
        () = stop.wanted() => return Ok(()),
    }
    let system = Api::<Namespace>::all(client.clone()).get("kube-system").await.map_err(ServeError::Cluster)?;
    let settings = Settings {
        namespace,
        work_namespace: args.work_namespace,
        image: args.image,
        cluster: system.uid().unwrap_or_default(),
        kubelet: args.kubelet.trim_end_matches('/').to_owned(),
        exposed_max: args.exposed_max.into(),
        process: hex::encode(entropy::<8>()),
    };
    tracing::info!(cluster = settings.cluster, "working");
    let context = Arc::new(Context::new(client, Coordinator::new(args.coordinator, credentials), settings));
    let mut lost = held.clone();
    tokio::select! {
        () = controller::run(context) => {}
        _ = lost.wait_for(|held| !*held) => return Err(ServeError::Superseded),
        () = stop.wanted() => {}
    }
    drop((held, lost));
    // If this fails, the next process waits for the Lease to end.
    if let Ok(Ok(manager)) = task.await {
        let _ = manager.release().await;
    }
    Ok(())
}
