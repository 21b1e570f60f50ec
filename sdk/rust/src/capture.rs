//! Token endpoints, under their wire names.
//!
//! They stand in requests and in answers alike. Nothing here judges a URL or a host: the server
//! does. Callers build these.

use serde::{Deserialize, Serialize};

/// An OAuth token endpoint whose tokens stay at the server: the workload gets sealed ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CaptureEndpoint {
    /// The endpoint's URL, `https://` and exact.
    pub url: String,
    /// The only hosts that its tokens may go to; none for the endpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
}

impl CaptureEndpoint {
    /// Makes an endpoint whose tokens may go to its own host.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            hosts: None,
        }
    }

    /// Sets the only hosts that its tokens may go to.
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }
}

impl From<&str> for CaptureEndpoint {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for CaptureEndpoint {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}
