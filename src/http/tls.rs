//! TLS for a node without a proxy: a certificate chain and its key, read again when their files change.
//!
//! Invariants:
//! - a key is never in an error or a log line;
//! - files that cannot be used, or do not fit each other, leave the last certificate in force and are tried again: a
//!   renewal replaces one file before the other.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use crate::auth::watched::{Stamp, look};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no {what} in PEM", path.display())]
    Pem { path: PathBuf, what: &'static str },
    #[error("the certificate and the key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// The certificate that is shown to clients.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    shown: Mutex<Shown>,
}

struct Shown {
    looked: Instant,
    /// The files that were read last; `None` for one whose metadata could not be read.
    stamps: [Option<Stamp>; 2],
    acceptor: TlsAcceptor,
    /// Whether the last reading failed.
    failed: bool,
}

impl Tls {
    /// Reads the files for the first time. Here an unusable file is an error.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamps = stamps(cert, key);
        let acceptor = acceptor(cert, key)?;
        let shown = Shown { looked: Instant::now(), stamps, acceptor, failed: false };
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), shown: Mutex::new(shown) })
    }

    /// Reads the files again, whether they have changed or not.
    pub fn reload(&self) -> Result<(), TlsError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        self.read(&mut shown)
    }

    /// Returns what speaks TLS with the certificate in force. Looks at the files at most once in [`LOOK_EVERY`].
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.looked.elapsed() >= LOOK_EVERY {
            shown.looked = Instant::now();
            if shown.failed || stamps(&self.cert, &self.key) != shown.stamps {
                let failed_before = shown.failed;
                match self.read(&mut shown) {
                    Ok(()) => tracing::info!("the TLS certificate was read again"),
                    Err(err) if !failed_before => {
                        let err = crate::error::Chain(&err).to_string();
                        tracing::error!(
                            err,
                            "the TLS certificate cannot be read again; keeping the last one"
                        );
                    }
                    Err(_) => {}
                }
            }
        }
        shown.acceptor.clone()
    }

    fn read(&self, shown: &mut Shown) -> Result<(), TlsError> {
        shown.stamps = stamps(&self.cert, &self.key);
        let read = acceptor(&self.cert, &self.key);
        shown.failed = read.is_err();
        shown.acceptor = read?;
        Ok(())
    }
}

fn stamps(cert: &Path, key: &Path) -> [Option<Stamp>; 2] {
    [cert, key].map(|path| look(path).ok().flatten())
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
    let pem = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
    let chain = CertificateDer::pem_slice_iter(&read(cert)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| pem(cert, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| pem(key, "private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(TlsError::Pair)?.with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
