//! Hash functions, by the names that LUKS and QEMU have for them.
//!
//! Their states are not wiped: of PBKDF2 with SHA-256 that would take half as long again, which whoever guesses passphrases does
//! not pay. Digests and keys are.

use sha2::Digest;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Sm3,
}

const NAMES: [(Hash, &str); 8] = [
    (Hash::Md5, "md5"),
    (Hash::Sha1, "sha1"),
    (Hash::Sha224, "sha224"),
    (Hash::Sha256, "sha256"),
    (Hash::Sha384, "sha384"),
    (Hash::Sha512, "sha512"),
    (Hash::Ripemd160, "ripemd160"),
    (Hash::Sm3, "sm3"),
];

impl Hash {
    pub(super) fn parse(name: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(_, other)| *other == name);
        found.map(|(hash, _)| *hash).ok_or_else(|| Error::Unsupported(format!("hash algorithm '{name}'")))
    }

    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(hash, _)| *hash == self).map_or("", |(_, name)| name)
    }

    /// The digest of all parts, wiped like what it is made of.
    pub(super) fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn run<D: Digest>(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            Zeroizing::new(hash.finalize().to_vec())
        }
        match self {
            Self::Md5 => run::<md5::Md5>(parts),
            Self::Sha1 => run::<sha1::Sha1>(parts),
            Self::Sha224 => run::<sha2::Sha224>(parts),
            Self::Sha256 => run::<sha2::Sha256>(parts),
            Self::Sha384 => run::<sha2::Sha384>(parts),
            Self::Sha512 => run::<sha2::Sha512>(parts),
            Self::Ripemd160 => run::<ripemd::Ripemd160>(parts),
            Self::Sm3 => run::<sm3::Sm3>(parts),
        }
    }

    /// PBKDF2 (RFC 8018) with HMAC.
    pub(super) fn pbkdf2(self, password: &[u8], salt: &[u8], rounds: u32, out: &mut [u8]) {
        match self {
            Self::Md5 => pbkdf2::pbkdf2_hmac::<md5::Md5>(password, salt, rounds, out),
            Self::Sha1 => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, salt, rounds, out),
            Self::Sha224 => pbkdf2::pbkdf2_hmac::<sha2::Sha224>(password, salt, rounds, out),
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, salt, rounds, out),
            Self::Sha384 => pbkdf2::pbkdf2_hmac::<sha2::Sha384>(password, salt, rounds, out),
            Self::Sha512 => pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, salt, rounds, out),
            Self::Ripemd160 => pbkdf2::pbkdf2_hmac::<ripemd::Ripemd160>(password, salt, rounds, out),
            Self::Sm3 => pbkdf2::pbkdf2_hmac::<sm3::Sm3>(password, salt, rounds, out),
        }
    }
}
