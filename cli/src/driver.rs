//! The connection to a coordinator: the one in this process ([`embedded`](crate::embedded)), or a remote one.

use milkrun_identity::channel::{CoordinatorUrl, DialError, dial};
use milkrun_identity::tls::{Credentials, TlsError};
use milkrun_proto::MESSAGE_BYTES_MAX;
use milkrun_proto::control::v1::control_client::ControlClient;
use tonic::transport::Channel;

use crate::args::Global;
use crate::output::{CliError, Exit};

/// Drives a coordinator.
pub(crate) struct Driver {
    /// The client for its calls.
    pub(crate) control: ControlClient<Channel>,
    /// It is another process: runs go on when this command ends.
    pub(crate) remote: bool,
}

impl Driver {
    /// Uses a channel that is connected already.
    pub(crate) fn over(channel: Channel, remote: bool) -> Self {
        let control = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { control, remote }
    }

    /// Connects to the coordinator at this URL, with the certificate that `--tls` names.
    pub(crate) async fn connect(url: &CoordinatorUrl, global: &Global) -> Result<Self, CliError> {
        let folder = global.tls.as_ref().ok_or_else(|| {
            CliError::usage("say who you are: --tls DIR (or MILKRUN_TLS), a folder that `milkrun certs user` made")
        })?;
        let channel = dial(&Credentials::new(folder), url).await.map_err(|e| {
            let error = CliError::from_error(&e);
            if let DialError::Tls(TlsError::File { .. } | TlsError::Pem { .. } | TlsError::Unusable { .. }) = e {
                return error;
            }
            let advice = "Nothing is known about the runs there. Check the URL, the network, and the certificate.";
            CliError { exit: Exit::Unknown, ..error }.with(advice)
        })?;
        Ok(Self::over(channel, true))
    }

    /// Connects to the coordinator that the options name, for a command that needs a remote coordinator.
    pub(crate) async fn required(global: &Global) -> Result<Self, CliError> {
        let missing = || CliError::usage("which coordinator? --coordinator URL (or MILKRUN_COORDINATOR)");
        Self::connect(global.coordinator.as_ref().ok_or_else(missing)?, global).await
    }
}
