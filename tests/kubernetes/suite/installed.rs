//! milkrun, installed by its chart, with a repository in a bucket.

use milkrun_tests::seaweed::{ACCESS_KEY, SECRET_KEY, Seaweed};

use crate::playground::{MACHINE, Playground};

/// The password of the tests' repositories.
const PASSWORD: &str = "correct horse battery staple";
const IMAGE: &str = "milkrun.test/milkrun:1";
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
pub(crate) const BUCKET: &str = "backups";

fn port(store: &Seaweed) -> u16 {
    store.endpoint().rsplit(':').next().unwrap().parse().unwrap()
}

/// A cluster with milkrun, and a store with an empty bucket that locks.
pub(crate) fn with_store(test: &str, nodes: u8) -> Option<(Playground, Seaweed)> {
    with_store_and(test, nodes, &[])
}

/// The same, where pods and the API server reach more ports of the machine's loopback.
pub(crate) fn with_store_and(test: &str, nodes: u8, ports: &[u16]) -> Option<(Playground, Seaweed)> {
    let store = Seaweed::start(test)?;
    let cluster = installed(test, nodes, &[ports, &[port(&store)]].concat())?;
    make_bucket(&store);
    Some((cluster, store))
}

/// A cluster with milkrun that reaches a store.
pub(crate) fn with_milkrun(test: &str, nodes: u8, store: &Seaweed) -> Option<Playground> {
    installed(test, nodes, &[port(store)])
}

fn installed(test: &str, nodes: u8, ports: &[u16]) -> Option<Playground> {
    let cluster = Playground::up(test, nodes, ports)?;
    let image = std::env::var("MILKRUN_TEST_IMAGE").unwrap();
    let said = cluster.cluster("load", &[&image]);
    assert!(said.ok, "{}", said.out);
    cluster.helm(&format!(
        "install milkrun {CHART} -n milkrun --create-namespace --set image={IMAGE} --set imagePullPolicy=Never"
    ));
    Some(cluster)
}

/// Changes values of the chart.
pub(crate) fn set_values(cluster: &Playground, values: &str) {
    cluster.helm(&format!("upgrade milkrun {CHART} -n milkrun --reuse-values --set {values}"));
    cluster.kubectl("-n milkrun rollout status deployment/milkrun-operator --timeout=120s");
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn make_bucket(store: &Seaweed) {
    let credentials = aws_sdk_s3::config::Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .credentials_provider(credentials)
        .endpoint_url(store.endpoint())
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .force_path_style(true)
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    client.create_bucket().bucket(BUCKET).object_lock_enabled_for_bucket(true).send().await.unwrap();
}

/// The Secret of a repository.
pub(crate) fn secret(name: &str, password: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: milkrun}}\n\
         stringData: {{password: \"{password}\", accessKeyId: {ACCESS_KEY}, secretAccessKey: {SECRET_KEY}}}\n"
    )
}

/// A `Repository` in the bucket.
pub(crate) fn repository(name: &str, store: &Seaweed, more: &str) -> String {
    format!(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Repository\nmetadata: {{name: {name}, namespace: milkrun}}\n\
         spec: {{url: \"s3://{BUCKET}/{name}\", endpoint: \"http://{MACHINE}:{}\", secretName: {name}{more}}}\n",
        port(store)
    )
}

/// Adds a repository, and waits until it can be used. `create`: whether it is to be made.
pub(crate) fn add_repository(cluster: &Playground, store: &Seaweed, create: bool) {
    cluster.apply(&secret("prod", PASSWORD));
    let more = if create { ", create: true, lock: {mode: Compliance, days: 1}" } else { "" };
    cluster.apply(&repository("prod", store, more));
    let ready = "-n milkrun get repository prod -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait_for("the repository", ready, |said| said == "True");
}

/// A `Backup` of a namespace.
pub(crate) fn back_up(cluster: &Playground, namespace: &str, name: &str) {
    cluster.apply(&format!(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Backup\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{repository: prod}}\n"
    ));
}

/// An application: a pod with three claims that writes to all of them, all the time.
pub(crate) const APPLICATION: &str = include_str!("application.yaml");

/// Starts the application in a namespace, which is made.
pub(crate) fn start_application(cluster: &Playground, namespace: &str) {
    cluster.kubectl(&format!("create namespace {namespace}"));
    // The account of a new namespace comes a moment later.
    cluster.wait_for("the account", &format!("-n {namespace} get serviceaccount default -o name"), |_| true);
    cluster.apply(&APPLICATION.replace("NAMESPACE", namespace));
    cluster.kubectl(&format!("-n {namespace} wait --for=condition=Ready pod/writer --timeout=120s"));
}
