//! The fields that identify an object, and the file that it is restored to.

/// The most bytes of a file's name; common file systems allow 255.
const NAME_LIMIT: usize = 254;
/// The most characters of each part of a file name that is not read back.
const PART_LIMIT: usize = 40;
const ENDING: &str = ".json";

/// Kubernetes' own groups without a dot. Any other text without a dot in that position is a namespace.
const SHORT_GROUPS: [&str; 5] = ["apps", "autoscaling", "batch", "extensions", "policy"];

/// Kubernetes' own kinds of more than one word: their lower case does not show where the capitals are.
const COMPOUND_KINDS: [&str; 49] = [
    "APIService",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterTrustBundle",
    "ComponentStatus",
    "ConfigMap",
    "ControllerRevision",
    "CronJob",
    "CSIDriver",
    "CSINode",
    "CSIStorageCapacity",
    "CustomResourceDefinition",
    "DaemonSet",
    "DeviceClass",
    "EndpointSlice",
    "FlowSchema",
    "GatewayClass",
    "GRPCRoute",
    "HorizontalPodAutoscaler",
    "HTTPRoute",
    "IngressClass",
    "IPAddress",
    "LimitRange",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "NetworkPolicy",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PodTemplate",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "ReferenceGrant",
    "ReplicaSet",
    "ReplicationController",
    "ResourceClaim",
    "ResourceClaimTemplate",
    "ResourceQuota",
    "RoleBinding",
    "RuntimeClass",
    "ServiceAccount",
    "ServiceCIDR",
    "StatefulSet",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// The fields that identify an object within a restore point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// `apps`, or nothing for the core group.
    pub group: String,
    /// `Deployment`
    pub kind: String,
    /// Its namespace, or nothing.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl Identity {
    /// The file that it is restored to: readable, and different for each identity.
    ///
    /// A name is `kind_group_namespace_name.json` without the empty parts. It is used as it is only if the identity can be read
    /// back from it. Otherwise a hash of the identity is added, so that no two identities share a name.
    pub fn file_name(&self) -> String {
        let parts = [&self.kind, &self.group, &self.namespace, &self.name];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
        let plain = parts.join("_").to_ascii_lowercase();
        if plain.len() + ENDING.len() <= NAME_LIMIT && read_back(&plain).as_ref() == Some(self) {
            return format!("{plain}{ENDING}");
        }
        let parts: Vec<String> = parts.into_iter().map(readable).collect();
        format!("{}-{}{ENDING}", parts.join("_"), self.hash())
    }

    /// 128 bits over all fields, each with its length before it.
    fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for field in [&self.kind, &self.group, &self.namespace, &self.name] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        hasher.finalize().to_hex().chars().take(32).collect()
    }
}

/// A part of a file name that is not read back.
fn readable(part: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let clean = part.chars().map(|c| if plain(c) { c.to_ascii_lowercase() } else { '_' }).take(PART_LIMIT);
    // A folder's entries that begin with two dots are not read (see `load_paths`).
    let clean: String = clean.collect();
    if clean.starts_with('.') { format!("_{clean}") } else { clean }
}

/// The one identity that a file name without a hash stands for.
fn read_back(plain: &str) -> Option<Identity> {
    let usual = |p: &str| {
        !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    let parts: Vec<&str> = plain.split('_').collect();
    if !parts.iter().all(|p| usual(p)) || ends_with_hash(plain) {
        return None;
    }
    let (kind, group, namespace, name) = match parts[..] {
        [kind, name] => (kind, "", "", name),
        [kind, group, name] if is_group(group) => (kind, group, "", name),
        [kind, namespace, name] => (kind, "", namespace, name),
        [kind, group, namespace, name] => (kind, group, namespace, name),
        _ => return None,
    };
    let kind = usual_kind(kind)?;
    Some(Identity { group: group.into(), kind, namespace: namespace.into(), name: name.into() })
}

/// Whether the middle one of three parts is a group. A namespace has no dot.
fn is_group(part: &str) -> bool {
    part.contains('.') || SHORT_GROUPS.contains(&part)
}

/// A kind in its usual spelling.
fn usual_kind(lower: &str) -> Option<String> {
    if let Some(kind) = COMPOUND_KINDS.iter().find(|k| k.eq_ignore_ascii_case(lower)) {
        return Some((*kind).to_owned());
    }
    let mut letters = lower.chars();
    let first = letters.next().filter(char::is_ascii_lowercase)?;
    letters
        .clone()
        .all(|c| c.is_ascii_alphanumeric())
        .then(|| first.to_ascii_uppercase().to_string() + letters.as_str())
}

/// Whether it could be mistaken for a file name with a hash.
fn ends_with_hash(plain: &str) -> bool {
    plain.rsplit_once('-').is_some_and(|(_, end)| end.len() == 32 && end.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn id(kind: &str, group: &str, namespace: &str, name: &str) -> Identity {
        Identity { group: group.into(), kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn what_is_usual_is_readable() {
        assert_eq!(id("ConfigMap", "", "shop", "shop").file_name(), "configmap_shop_shop.json");
        assert_eq!(id("Deployment", "apps", "n", "web").file_name(), "deployment_apps_n_web.json");
        assert_eq!(id("Deployment", "apps", "", "web").file_name(), "deployment_apps_web.json");
        assert_eq!(id("Namespace", "", "", "shop").file_name(), "namespace_shop.json");
        let group = "rbac.authorization.k8s.io";
        assert_eq!(id("ClusterRole", group, "", "a").file_name(), format!("clusterrole_{group}_a.json"));
    }

    #[test]
    fn what_could_be_taken_for_another_has_a_hash() {
        let long = "x".repeat(300);
        let alike = [
            id("Role", "", "", "shop_admin"),
            id("Role", "", "shop", "admin"),
            id("Role", "shop", "", "admin"),
            id("ROLE", "", "shop", "admin"),
            id("Role", "", "Shop", "admin"),
            id("Role", "", "shop", "a/b"),
            id("Role", "", "shop", "a:b"),
            id("Role", "", "shop", "a_b"),
            id("Role", "", "shop", &long),
            id("Role", "", "shop", &format!("{long}x")),
            id("Role", "", "apps", "admin"),
            id("Role", "apps", "", "admin"),
            id("ConfigMap", "", "a", "b"),
            id("Configmap", "", "a", "b"),
            id("..", "", "", ".."),
        ];
        let names: HashSet<String> = alike.iter().map(|i| i.file_name().to_lowercase()).collect();
        assert_eq!(names.len(), alike.len());
        assert!(names.iter().all(|n| !n.contains('/') && !n.starts_with('.') && n.len() < 255), "{names:?}");
        // An identity's file name with a hash is not the file name of another identity.
        let taken = alike[0].file_name();
        let name = taken.trim_end_matches(".json").split_once('_').unwrap().1;
        assert_ne!(id("Role", "", "", name).file_name(), taken);
    }

    /// Few different letters, so that many fields are alike.
    fn field() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[aA]?[bB._-]{0,2}",
            2 => prop::sample::select(vec!["", "a", "apps", "Apps", "a.b", "a_b", "configmap", "ConfigMap", "Configmap"])
                .prop_map(str::to_owned),
            1 => "\\PC{0,300}",
        ]
    }

    fn identity() -> impl Strategy<Value = Identity> {
        [field(), field(), field(), field()].prop_map(|[k, g, ns, n]| id(&k, &g, &ns, &n))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn different_identities_have_different_names(all in prop::collection::hash_set(identity(), 2..30)) {
            let names: HashSet<String> = all.iter().map(|i| i.file_name().to_lowercase()).collect();
            prop_assert_eq!(names.len(), all.len());
            for name in names {
                prop_assert!(name.len() < 255 && name.is_ascii() && !name.contains('/') && !name.starts_with('.'));
            }
        }
    }
}
