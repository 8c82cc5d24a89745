//! How a Consul agent is reached.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest_of_consulrs as reqwest;

use crate::store::{Cause, Error, Result};

/// How a Consul agent is reached.
#[derive(Clone)]
pub struct ConsulSettings {
    /// URL of the agent, such as `http://127.0.0.1:8500`.
    pub address: String,
    /// ACL token. Default: none.
    pub token: Option<Token>,
    /// PEM file of the authorities that the agent's certificate is checked with,
    /// beside the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our certificate and its key (PKCS #8), where the agent asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// How long a request may take; blocking queries have their waiting time more.
    /// Default: 5 s.
    pub timeout: Duration,
}

/// A secret that is never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes a token.
    ///
    /// # Errors
    /// When it is empty or holds something that no HTTP header can carry.
    pub fn new(token: &str) -> std::result::Result<Self, BadToken> {
        let token = token.trim();
        if token.is_empty() {
            return Err(BadToken("it is empty"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadToken("it holds blanks or other characters that no HTTP header can carry"));
        }
        Ok(Self(token.to_owned()))
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What is wrong with a token; the token itself is not told.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the Consul token cannot be used: {0}")]
pub struct BadToken(&'static str);

impl ConsulSettings {
    /// Settings for an agent without TLS and token.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), token: None, ca_file: None, identity: None, timeout: Duration::from_secs(5) }
    }

    /// The agent's address without a last `/`, checked.
    pub(super) fn base(&self) -> Result<String> {
        let wrong = |message: String| setting("the Consul address", message);
        let url = reqwest::Url::parse(&self.address).map_err(|error| {
            wrong(format!("{:?} is no URL ({error}); write it like http://127.0.0.1:8500", self.address))
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong(format!("{:?} must begin with http:// or https:// and name a host", self.address)));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must not hold a user or password; give a token instead".into()));
        }
        Ok(self.address.trim_end_matches('/').to_owned())
    }

    /// An HTTP client with these settings.
    pub(super) fn http(&self) -> Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .use_native_tls()
            .connect_timeout(self.timeout)
            // Several queries wait at the agent at any time.
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_nodelay(true);
        if let Some(path) = &self.ca_file {
            for pem in certificates(&read(path)?) {
                let certificate = reqwest::Certificate::from_pem(&pem).map_err(|error| bad_pem(path, &error))?;
                builder = builder.add_root_certificate(certificate);
            }
        }
        if let Some((certificate, key)) = &self.identity {
            let identity = reqwest::Identity::from_pkcs8_pem(&read(certificate)?, &read(key)?)
                .map_err(|error| bad_pem(certificate, &error))?;
            builder = builder.identity(identity);
        }
        builder.build().map_err(|error| setting("the HTTP client for Consul", error.to_string()))
    }
}

impl fmt::Debug for ConsulSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulSettings").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Each certificate of a file that may hold several.
fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN";
    let text = String::from_utf8_lossy(pem);
    text.split(BEGIN).skip(1).map(|part| format!("{BEGIN}{part}").into_bytes()).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| setting(&path.display().to_string(), error.to_string()))
}

fn bad_pem(path: &Path, error: &dyn fmt::Display) -> Error {
    setting(&path.display().to_string(), format!("it cannot be read as PEM (keys must be PKCS #8): {error}"))
}

fn setting(target: &str, message: String) -> Error {
    let source: Cause = std::sync::Arc::new(std::io::Error::other(message));
    Error::Backend { operation: "setting up Consul", target: target.to_owned(), retryable: false, source }
}
