//! What the operator is started with.

/// What the operator is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// milkrun's own namespace. Objects in it may concern other namespaces.
    pub namespace: String,
    /// Where holders, claims and twins of snapshots are made.
    pub work_namespace: String,
    /// The image of holder pods: ours.
    pub image: String,
    /// The cluster's id: the UID of the namespace `kube-system`.
    pub cluster: String,
    /// The kubelet's folder on each node.
    pub kubelet: String,
    /// How many volumes of snapshots are exposed at once, for all runs together: each takes a slot of a node.
    pub exposed_max: usize,
    /// Names this process: random.
    pub process: String,
}
