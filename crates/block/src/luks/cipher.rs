//! Ciphers over sectors: XTS (IEEE 1619) and chains of blocks, with the ways to number sectors that LUKS names.

use std::fmt;
use std::sync::Arc;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use zeroize::Zeroizing;

use super::SECTOR;
use super::hash::Hash;
use super::modes::{Chained, Chaining, Keyed};
use crate::{Error, Result, SectorCipher};

pub(super) type Block = Array<u8, U16>;
const BLOCK: usize = 16;
const SECTOR_LEN: usize = SECTOR as usize;

/// A block cipher with its key length, in QEMU's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Aes128,
    Aes192,
    Aes256,
    Serpent128,
    Serpent192,
    Serpent256,
    Twofish128,
    Twofish192,
    Twofish256,
    Cast5,
}

const ALGORITHMS: [(Algorithm, &str, &str, usize); 10] = [
    (Algorithm::Aes128, "aes-128", "aes", 16),
    (Algorithm::Aes192, "aes-192", "aes", 24),
    (Algorithm::Aes256, "aes-256", "aes", 32),
    (Algorithm::Serpent128, "serpent-128", "serpent", 16),
    (Algorithm::Serpent192, "serpent-192", "serpent", 24),
    (Algorithm::Serpent256, "serpent-256", "serpent", 32),
    (Algorithm::Twofish128, "twofish-128", "twofish", 16),
    (Algorithm::Twofish192, "twofish-192", "twofish", 24),
    (Algorithm::Twofish256, "twofish-256", "twofish", 32),
    (Algorithm::Cast5, "cast5-128", "cast5", 16),
];

impl Algorithm {
    fn row(self) -> (Algorithm, &'static str, &'static str, usize) {
        ALGORITHMS.into_iter().find(|row| row.0 == self).unwrap_or(ALGORITHMS[0])
    }

    /// From LUKS's name and the length of the key.
    pub(super) fn parse(luks: &str, key_bytes: u32, mode: Mode) -> Result<Self> {
        let len = key_bytes as usize / if mode == Mode::Xts { 2 } else { 1 };
        let found = ALGORITHMS.into_iter().find(|row| row.2 == luks && row.3 == len);
        found.map(|row| row.0).ok_or_else(|| {
            Error::Unsupported(format!(
                "LUKS cipher '{luks}' with a key of {key_bytes} bytes; known are aes, serpent, twofish and cast5"
            ))
        })
    }

    /// From QEMU's name.
    pub(super) fn by_name(name: &str) -> Result<Self> {
        let found = ALGORITHMS.into_iter().find(|row| row.1 == name);
        found
            .map(|row| row.0)
            .ok_or_else(|| Error::option(format!("Parameter 'cipher-alg' does not accept value '{name}'")))
    }

    pub(super) fn name(self) -> &'static str {
        self.row().1
    }

    pub(super) fn luks_name(self) -> &'static str {
        self.row().2
    }

    pub(super) fn key_len(self) -> usize {
        self.row().3
    }
}

/// How blocks of a sector are chained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Xts,
    Cbc,
    Ctr,
    Ecb,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xts => "xts",
            Self::Cbc => "cbc",
            Self::Ctr => "ctr",
            Self::Ecb => "ecb",
        }
    }

    /// How blocks are chained; `None` for XTS, which is no chain.
    fn chaining(self) -> Option<Chaining> {
        match self {
            Self::Xts => None,
            Self::Cbc => Some(Chaining::Cbc),
            Self::Ctr => Some(Chaining::Ctr),
            Self::Ecb => Some(Chaining::Ecb),
        }
    }
}

/// How a sector's number becomes an initialization vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Iv {
    Plain,
    Plain64,
    Essiv(Hash),
}

impl Iv {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv(_) => "essiv",
        }
    }

    pub(super) fn hash(self) -> Option<Hash> {
        if let Self::Essiv(hash) = self { Some(hash) } else { None }
    }
}

/// LUKS's words for mode and vector: `xts-plain64`, `cbc-essiv:sha256`.
pub(super) fn parse_mode(text: &str) -> Result<(Mode, Iv)> {
    let unknown = || Error::Unsupported(format!("LUKS cipher mode '{text}'"));
    let (mode, iv) = text.split_once('-').ok_or_else(unknown)?;
    let mode = match mode {
        "xts" => Mode::Xts,
        "cbc" => Mode::Cbc,
        "ctr" => Mode::Ctr,
        "ecb" => Mode::Ecb,
        _ => return Err(unknown()),
    };
    let iv = match iv.split_once(':') {
        None if iv == "plain" => Iv::Plain,
        None if iv == "plain64" => Iv::Plain64,
        Some(("essiv", hash)) => Iv::Essiv(Hash::parse(hash)?),
        _ => return Err(unknown()),
    };
    Ok((mode, iv))
}

trait BlockCipher:
    BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static
{
}
impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static>
    BlockCipher for C
{
}

/// Encrypts numbers of sectors.
pub(super) trait VectorCipher: Send + Sync {
    fn vector(&self, block: &mut Block);
}

impl<C: BlockCipher> VectorCipher for C {
    fn vector(&self, block: &mut Block) {
        self.encrypt_block(block);
    }
}

/// What makes vectors of the numbers of sectors: an [`Iv`] with its key.
pub(super) enum Vectors {
    Plain,
    Plain64,
    Essiv(Box<dyn VectorCipher>),
}

impl Vectors {
    fn new(algorithm: Algorithm, iv: Iv, key: &[u8]) -> Result<Self> {
        Ok(match iv {
            Iv::Plain => Self::Plain,
            Iv::Plain64 => Self::Plain64,
            Iv::Essiv(hash) => Self::Essiv(essiv(algorithm, &hash.digest(&[key]))?),
        })
    }

    /// The vector of a sector. A cipher with shorter blocks takes the beginning.
    pub(super) fn of(&self, sector: u64) -> Block {
        let number = if matches!(self, Self::Plain) { u64::from(sector as u32) } else { sector };
        let mut block = Array(u128::from(number).to_le_bytes());
        if let Self::Essiv(cipher) = self {
            cipher.vector(&mut block);
        }
        block
    }
}

/// XTS: one key for the data, one for the numbers of sectors.
struct Xts<C> {
    data: C,
    tweak: C,
    vectors: Vectors,
}

impl<C> fmt::Debug for Xts<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Xts")
    }
}

/// Sectors that go through the cipher together: processors do up to 64 blocks at once, and a sector has 32.
const BATCH: usize = 8;
const SECTOR_BLOCKS: usize = SECTOR_LEN / BLOCK;

impl<C: BlockCipher> Keyed for Xts<C> {
    fn run(&self, first: u64, data: &mut [u8], encrypt: bool) {
        let mut sector = first;
        let mut tweaks = [0u128; SECTOR_BLOCKS * BATCH];
        for sectors in data.chunks_mut(SECTOR_LEN * BATCH) {
            let count = sectors.len().div_ceil(SECTOR_LEN);
            let mut starts = [Block::default(); BATCH];
            for start in &mut starts[..count] {
                *start = self.vectors.of(sector);
                sector = sector.wrapping_add(1);
            }
            self.tweak.encrypt_blocks(&mut starts[..count]);
            for (places, start) in tweaks.chunks_exact_mut(SECTOR_BLOCKS).zip(&starts[..count]) {
                let mut tweak = u128::from_le_bytes(start.0);
                for place in places {
                    *place = tweak;
                    // Multiplication by x in GF(2^128).
                    tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
                }
            }
            mask(sectors, &tweaks);
            let (blocks, _) = Block::slice_as_chunks_mut(sectors);
            match encrypt {
                true => self.data.encrypt_blocks(blocks),
                false => self.data.decrypt_blocks(blocks),
            }
            mask(sectors, &tweaks);
        }
    }
}

fn mask(bytes: &mut [u8], tweaks: &[u128]) {
    for (block, tweak) in bytes.as_chunks_mut::<BLOCK>().0.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

/// CAST-128, whose blocks are too short for XTS.
fn cast5(mode: Mode, iv: Iv, key: &[u8]) -> Result<Arc<dyn SectorCipher>> {
    let vectors = Vectors::new(Algorithm::Cast5, iv, key)?;
    let chaining =
        mode.chaining().ok_or_else(|| Error::Unsupported("Unsupported cipher mode xts".to_owned()))?;
    Ok(Arc::new(Chained { cipher: keyed::<cast5::Cast5>(key)?, chaining, vectors }))
}

fn keyed<C: KeyInit>(key: &[u8]) -> Result<C> {
    C::new_from_slice(key).map_err(|_| Error::corrupt("a key of the wrong length"))
}

/// The cipher that turns sector numbers into vectors: of the data's algorithm, keyed with a hash of its key.
fn essiv(algorithm: Algorithm, salt: &[u8]) -> Result<Box<dyn VectorCipher>> {
    Ok(match (algorithm.luks_name(), salt.len()) {
        ("aes", 16) => Box::new(keyed::<aes::Aes128>(salt)?),
        ("aes", 32) => Box::new(keyed::<aes::Aes256>(salt)?),
        ("serpent", 16 | 32) => Box::new(keyed::<serpent::Serpent>(salt)?),
        ("twofish", 16 | 32) => Box::new(keyed::<twofish::Twofish>(salt)?),
        ("cast5", _) => {
            return Err(Error::Unsupported(format!("Cipher {} not supported with essiv", algorithm.name())));
        }
        (name, len) => {
            let name = match name {
                "aes" => "AES",
                "serpent" => "Serpent",
                _ => "Twofish",
            };
            return Err(Error::Unsupported(format!("No {name} cipher with key size {len} available")));
        }
    })
}

fn with<C: BlockCipher + KeyInit>(
    algorithm: Algorithm,
    mode: Mode,
    iv: Iv,
    key: &[u8],
) -> Result<Arc<dyn SectorCipher>> {
    let vectors = Vectors::new(algorithm, iv, key)?;
    Ok(match mode.chaining() {
        None => {
            let (data, tweak) = key.split_at(key.len() / 2);
            Arc::new(Xts { data: keyed::<C>(data)?, tweak: keyed::<C>(tweak)?, vectors })
        }
        Some(chaining) => Arc::new(Chained { cipher: keyed::<C>(key)?, chaining, vectors }),
    })
}

/// A cipher of the kind, with a key.
pub(super) fn new(algorithm: Algorithm, mode: Mode, iv: Iv, key: &[u8]) -> Result<Arc<dyn SectorCipher>> {
    match algorithm {
        Algorithm::Aes128 => with::<aes::Aes128>(algorithm, mode, iv, key),
        Algorithm::Aes192 => with::<aes::Aes192>(algorithm, mode, iv, key),
        Algorithm::Aes256 => with::<aes::Aes256>(algorithm, mode, iv, key),
        Algorithm::Serpent128 | Algorithm::Serpent192 | Algorithm::Serpent256 => {
            with::<serpent::Serpent>(algorithm, mode, iv, key)
        }
        Algorithm::Twofish128 | Algorithm::Twofish192 | Algorithm::Twofish256 => {
            with::<twofish::Twofish>(algorithm, mode, iv, key)
        }
        Algorithm::Cast5 => cast5(mode, iv, key),
    }
}

/// The legacy scheme of qcow2: AES-128 in CBC, keyed with the first 16 bytes of the password, sectors numbered plainly.
pub(crate) fn legacy_cipher(password: &[u8]) -> Result<Arc<dyn SectorCipher>> {
    let mut key = Zeroizing::new([0; 16]);
    let len = password.len().min(16);
    key[..len].copy_from_slice(&password[..len]);
    with::<aes::Aes128>(Algorithm::Aes128, Mode::Cbc, Iv::Plain64, &*key)
}
