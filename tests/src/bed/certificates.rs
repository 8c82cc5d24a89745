//! Certificates for a test: an authority, a server's and a client's, as PEM files
//! in a folder.
//!
//! Knows X.509; nothing of who uses them.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// An authority, and whom it vouches for.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
    authority: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// Makes an authority and writes its certificate, `ca.pem`, to the folder.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn make(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(folder.join("ca.pem"), certificate.pem()).expect("its file");
        Self { folder: folder.to_owned(), authority: Issuer::new(params, key) }
    }

    /// The authority's certificate: `ca.pem`.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Makes a certificate for `name` at 127.0.0.1 and `localhost`, and writes
    /// `<name>.key.pem`, `<name>.pem`, and both together in `<name>.both.pem`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn issue(&self, name: &str) -> Issued {
        let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.authority).expect("a certificate").pem();
        let issued = Issued {
            key: self.folder.join(format!("{name}.key.pem")),
            certificate: self.folder.join(format!("{name}.pem")),
            both: self.folder.join(format!("{name}.both.pem")),
        };
        fs::write(&issued.key, key.serialize_pem()).expect("its key");
        fs::write(&issued.certificate, &certificate).expect("its certificate");
        fs::write(&issued.both, format!("{}{certificate}", key.serialize_pem())).expect("both");
        issued
    }
}

/// Where a certificate lies.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Its private key.
    pub key: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// The key, then the certificate, as Kafka's PEM keystores want them.
    pub both: PathBuf,
}
