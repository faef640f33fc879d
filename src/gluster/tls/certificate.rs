//! What one certificate says of itself: its name, its time, its version. Pure.

use std::time::Duration;

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::CN;

/// Read from a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its common name, by which `auth.ssl-allow` knows who shows it; empty if it has none.
    pub common_name: String,
    /// Since 1970, from when it is valid.
    pub from: Duration,
    /// Since 1970, until when.
    pub until: Duration,
    /// Is it of X.509's first version, which has no extensions?
    pub is_v1: bool,
}

impl Facts {
    /// Reads them; `None`: these bytes are no certificate.
    pub fn of(der: &[u8]) -> Option<Self> {
        let read = Certificate::from_der(der).ok()?.tbs_certificate;
        let names = read.subject.0.iter().flat_map(|name| name.0.iter());
        let common = names.into_iter().find(|part| part.oid == CN);
        let text = common.and_then(|part| {
            let value = &part.value;
            let utf8 = value.decode_as::<Utf8StringRef<'_>>();
            let text = utf8.map(|text| text.as_str().to_owned());
            let printable = || value.decode_as::<PrintableStringRef<'_>>();
            text.or_else(|_| printable().map(|text| text.as_str().to_owned()))
                .ok()
        });
        Some(Self {
            common_name: text.unwrap_or_default(),
            from: read.validity.not_before.to_unix_duration(),
            until: read.validity.not_after.to_unix_duration(),
            is_v1: read.version == x509_cert::Version::V1,
        })
    }

    /// Why it is not valid at a time since 1970.
    pub fn untimely(&self, now: Duration) -> Option<Untimely> {
        if now > self.until {
            return Some(Untimely::Expired(self.until));
        }
        (now < self.from).then_some(Untimely::NotYet(self.from))
    }
}

/// Outside of a certificate's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untimely {
    /// Since then, counted from 1970.
    Expired(Duration),
    /// Not before then.
    NotYet(Duration),
}

impl std::fmt::Display for Untimely {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (word, time) = match self {
            Self::Expired(until) => ("expired at", until),
            Self::NotYet(from) => ("is not valid before", from),
        };
        let time = std::time::UNIX_EPOCH + *time;
        write!(f, "{word} {}", humantime::format_rfc3339_seconds(time))
    }
}
