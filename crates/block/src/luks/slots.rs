//! Key slots: spreading a key over stripes, and making, adding and erasing slots.

use std::time::{Duration, Instant};

use zerocopy::{FromZeros, IntoBytes};
use zeroize::Zeroizing;

use super::cipher::{Algorithm, Iv, Mode, parse_mode};
use super::hash::Hash;
use super::{ACTIVE, Header, INACTIVE, Key, MAGIC, Raw, SECTOR, SLOTS, STRIPES, Slot};
use crate::{Error, Options, Result, Secrets, Storage, StorageExt};

/// Key material begins at multiples of this, as other programs have it.
const SLOT_ALIGN: u64 = 4096;
/// Time that a passphrase takes, where nothing else is asked for.
const ITER_TIME_MS: u64 = 2000;
/// For how long rounds are measured, at most.
const MEASURE_MAX: Duration = Duration::from_millis(20);
/// The fewest rounds.
const ROUNDS_MIN: u32 = 1000;

fn random(bytes: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let got = rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::io("get random bytes from", "the kernel", error.into()))?;
        done += got;
    }
    Ok(())
}

/// Spreads every bit of a block over all of it.
fn diffuse(block: &mut [u8], hash: Hash) {
    let len = hash.digest(&[]).len();
    for (index, part) in block.chunks_mut(len).enumerate() {
        let digest = hash.digest(&[&(index as u32).to_be_bytes(), part]);
        let take = part.len();
        part.copy_from_slice(&digest[..take]);
    }
}

fn mix(into: &mut [u8], stripe: &[u8]) {
    into.iter_mut().zip(stripe).for_each(|(byte, other)| *byte ^= other);
}

/// The key out of its stripes.
pub(super) fn merge(material: &[u8], key_len: usize, hash: Hash) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; key_len]);
    let stripes = material.len() / key_len;
    for (index, stripe) in material.chunks_exact(key_len).enumerate() {
        mix(&mut key, stripe);
        if index + 1 < stripes {
            diffuse(&mut key, hash);
        }
    }
    key
}

/// Stripes that give the key, and zeroes up to whole sectors.
fn split(key: &[u8], stripes: usize, hash: Hash) -> Result<Zeroizing<Vec<u8>>> {
    let len = key.len() * stripes;
    let mut material = Zeroizing::new(vec![0; len.next_multiple_of(SECTOR as usize)]);
    let last = len - key.len();
    random(&mut material[..last])?;
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    for stripe in material[..last].chunks_exact(key.len()) {
        mix(&mut sum, stripe);
        diffuse(&mut sum, hash);
    }
    mix(&mut sum, key);
    material[last..len].copy_from_slice(&sum);
    Ok(material)
}

/// Rounds of PBKDF2 that take about `time` on this computer.
fn rounds_for(hash: Hash, time: Duration, out_len: usize) -> u32 {
    let mut rounds = 1u32 << 12;
    loop {
        let started = Instant::now();
        let mut out = vec![0; out_len];
        hash.pbkdf2(b"passphrase", &[7; 32], rounds, &mut out);
        let taken = started.elapsed();
        if taken >= MEASURE_MAX.min(time) || rounds >= 1 << 26 {
            let wanted = f64::from(rounds) * time.as_secs_f64() / taken.as_secs_f64().max(1e-6);
            return (wanted.min(f64::from(super::ITERATIONS_MAX)) as u32).max(ROUNDS_MIN);
        }
        rounds *= 2;
    }
}

/// What `encrypt.*` asks for.
struct Wish {
    algorithm: Algorithm,
    mode: Mode,
    iv: Iv,
    hash: Hash,
    time: Duration,
    secret: String,
}

impl Wish {
    fn parse(mut options: Options) -> Result<Self> {
        let algorithm = Algorithm::by_name(options.take("cipher-alg").as_deref().unwrap_or("aes-256"))?;
        let mode = options.take("cipher-mode").unwrap_or_else(|| "xts".to_owned());
        let iv = options.take("ivgen-alg").unwrap_or_else(|| "plain64".to_owned());
        let iv_hash = options.take("ivgen-hash-alg");
        let words = match (iv.as_str(), iv_hash) {
            ("essiv", hash) => format!("{mode}-essiv:{}", hash.as_deref().unwrap_or("sha256")),
            (_, None) => format!("{mode}-{iv}"),
            (_, Some(_)) => return Err(Error::option("ivgen-hash-alg is only for essiv")),
        };
        let (mode, iv) = parse_mode(&words)?;
        let hash = Hash::parse(options.take("hash-alg").as_deref().unwrap_or("sha256"))?;
        let time =
            match options.take("iter-time") {
                None => ITER_TIME_MS,
                Some(text) => text.parse().ok().filter(|&ms| ms <= 600_000).ok_or_else(|| {
                    Error::option("Parameter 'iter-time' expects milliseconds, up to 600000")
                })?,
            };
        let secret = options.take("key-secret");
        let secret = secret.ok_or_else(|| Error::option("Parameter 'key-secret' is required for cipher"))?;
        options.finish()?;
        Ok(Self { algorithm, mode, iv, hash, time: Duration::from_millis(time), secret })
    }

    fn mode_text(&self) -> String {
        match self.iv.hash() {
            Some(hash) => format!("{}-essiv:{}", self.mode.name(), hash.name()),
            None => format!("{}-{}", self.mode.name(), self.iv.name()),
        }
    }
}

fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let len = text.len().min(N - 1);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

fn new_uuid() -> Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// A new header with one key slot, all that lies before the data. `options` are those of `encrypt.`, without `format`.
/// `detached`: data begins at the start of another file.
pub(crate) fn format_header(options: Options, secrets: &Secrets, detached: bool) -> Result<Vec<u8>> {
    let wish = Wish::parse(options)?;
    let passphrase = secrets.passphrase(&wish.secret)?;
    let key_len = wish.algorithm.key_len() * if wish.mode == Mode::Xts { 2 } else { 1 };
    let mut key = Key::empty(key_len);
    random(&mut key.0)?;
    // What does not go together is told before anything takes time.
    super::cipher::new(wish.algorithm, wish.mode, wish.iv, &key.0)?;
    let mut raw = Raw::new_zeroed();
    raw.magic = MAGIC;
    raw.version = 1.into();
    raw.cipher_name = field(wish.algorithm.luks_name());
    raw.cipher_mode = field(&wish.mode_text());
    raw.hash = field(wish.hash.name());
    raw.key_bytes = (key_len as u32).into();
    raw.uuid = field(&new_uuid()?);
    random(&mut raw.digest_salt)?;
    // The digest is only compared, so it may be cheaper than a passphrase; an eighth of the time is usual.
    let rounds = rounds_for(wish.hash, wish.time / 8, 20);
    raw.digest_iterations = rounds.into();
    wish.hash.pbkdf2(&key.0, &raw.digest_salt, rounds, &mut raw.digest);
    let slot_len = (key_len as u64 * u64::from(STRIPES)).next_multiple_of(SLOT_ALIGN);
    for (index, slot) in raw.slots.iter_mut().enumerate() {
        *slot = Slot {
            active: INACTIVE.into(),
            iterations: 0.into(),
            salt: [0; 32],
            material_sector: (((SLOT_ALIGN + index as u64 * slot_len) / SECTOR) as u32).into(),
            stripes: STRIPES.into(),
        };
    }
    let payload = SLOT_ALIGN + SLOTS as u64 * slot_len;
    raw.payload_sector = if detached { 0 } else { (payload / SECTOR) as u32 }.into();
    let mut header = Header { raw, algorithm: wish.algorithm, mode: wish.mode, iv: wish.iv, hash: wish.hash };
    let mut bytes = vec![0; payload as usize];
    let material = header.fill_slot(0, &key, passphrase, wish.time)?;
    let start = (u64::from(header.raw.slots[0].material_sector.get()) * SECTOR) as usize;
    bytes[start..start + material.len()].copy_from_slice(&material);
    bytes[..size_of::<Raw>()].copy_from_slice(header.raw.as_bytes());
    Ok(bytes)
}

impl Header {
    /// Makes a slot active for a passphrase; its encrypted key material.
    fn fill_slot(&mut self, index: usize, key: &Key, passphrase: &[u8], time: Duration) -> Result<Vec<u8>> {
        let rounds = rounds_for(self.hash, time, self.key_len());
        let slot = &mut self.raw.slots[index];
        random(&mut slot.salt)?;
        slot.iterations = rounds.into();
        slot.stripes = STRIPES.into();
        slot.active = ACTIVE.into();
        let salt = slot.salt;
        let mut slot_key = Key::empty(self.key_len());
        self.hash.pbkdf2(passphrase, &salt, rounds, &mut slot_key.0);
        let mut material = split(&key.0, STRIPES as usize, self.hash)?;
        self.cipher(&slot_key)?.encrypt(0, &mut material);
        // Encrypted, it is no secret any more.
        Ok(std::mem::take(&mut *material))
    }

    fn active(&self) -> usize {
        self.raw.slots.iter().filter(|slot| slot.active.get() == ACTIVE).count()
    }

    fn write(&self, storage: &dyn Storage, offset: u64) -> Result<()> {
        // 592 bytes cross a sector: the slot's material is in place before, so that a slot is either there or not.
        storage.flush()?;
        storage.write_at(offset, self.raw.as_bytes())?;
        storage.flush()
    }

    /// Adds a passphrase, into `slot` or the first that is free.
    fn add(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        old: &[u8],
        new: &[u8],
        slot: Option<usize>,
        time: Duration,
    ) -> Result<()> {
        let key = self.unlock(storage, offset, old)?;
        let free = |index: &usize| self.raw.slots[*index].active.get() != ACTIVE;
        let index = match slot {
            Some(index) if free(&index) => index,
            Some(index) => {
                return Err(Error::Refused(format!(
                    "Refusing to overwrite active keyslot {index} - please erase it first"
                )));
            }
            None => (0..SLOTS)
                .find(free)
                .ok_or_else(|| Error::Refused("Can't add a keyslot - all keyslots are in use".to_owned()))?,
        };
        let material = self.fill_slot(index, &key, new, time)?;
        storage
            .write_at(offset + u64::from(self.raw.slots[index].material_sector.get()) * SECTOR, &material)?;
        self.write(storage, offset)
    }

    /// Erases slots: marked as such first, then overwritten.
    fn erase(&mut self, storage: &dyn Storage, offset: u64, slots: &[usize]) -> Result<()> {
        for &index in slots {
            self.raw.slots[index].active = INACTIVE.into();
            self.raw.slots[index].iterations = 0.into();
            self.raw.slots[index].salt = [0; 32];
        }
        self.write(storage, offset)?;
        for &index in slots {
            let len = u64::from(self.raw.slots[index].stripes.get()) * self.key_len() as u64;
            let mut noise = vec![0; len as usize];
            random(&mut noise)?;
            storage
                .write_at(offset + u64::from(self.raw.slots[index].material_sector.get()) * SECTOR, &noise)?;
        }
        storage.flush()
    }

    /// Adds or erases key slots as `encrypt.*` of `amend` says. `unlocking` opens the image for a new slot.
    pub(crate) fn amend(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        mut options: Options,
        secrets: &Secrets,
        unlocking: Option<&[u8]>,
    ) -> Result<()> {
        let state = options.take("state").ok_or_else(|| Error::option("Parameter 'state' is missing"))?;
        let slot = options.take("keyslot").map(|text| {
            text.parse::<usize>().ok().filter(|&slot| slot < SLOTS).ok_or_else(|| {
                Error::option(format!("Invalid keyslot {text} specified, must be between 0 and 7"))
            })
        });
        let slot = slot.transpose()?;
        let old = options.take("old-secret");
        let new = options.take("new-secret");
        let force = options.take_bool("force")?.unwrap_or(false);
        let time = options.take("iter-time").and_then(|text| text.parse().ok()).unwrap_or(ITER_TIME_MS);
        options.finish()?;
        match state.as_str() {
            "active" => {
                let new =
                    new.ok_or_else(|| Error::option("'new-secret' is required to activate a keyslot"))?;
                let unlocking = unlocking.ok_or_else(|| Error::NeedsSecret("image".to_owned()))?;
                let new = secrets.passphrase(&new)?;
                self.add(storage, offset, unlocking, new, slot, Duration::from_millis(time))
            }
            "inactive" => {
                let slots = self.chosen(storage, offset, slot, old.as_deref(), secrets)?;
                let left = self.active()
                    - slots.iter().filter(|&&slot| self.raw.slots[slot].active.get() == ACTIVE).count();
                if left == 0 && !force {
                    return Err(Error::Refused(match slot {
                        Some(slot) => format!(
                            "Attempt to erase the only active keyslot {slot} which will erase all the data in the image \
                             irreversibly - refusing operation"
                        ),
                        None => "All the active keyslots match the (old) password that was given and erasing them will erase \
                                 all the data in the image irreversibly - refusing operation"
                            .to_owned(),
                    }));
                }
                self.erase(storage, offset, &slots)
            }
            other => Err(Error::option(format!("Parameter 'state' does not accept value '{other}'"))),
        }
    }

    fn chosen(
        &self,
        storage: &dyn Storage,
        offset: u64,
        slot: Option<usize>,
        old: Option<&str>,
        secrets: &Secrets,
    ) -> Result<Vec<usize>> {
        let mut slots: Vec<usize> = slot.map_or((0..SLOTS).collect(), |slot| vec![slot]);
        if let Some(old) = old {
            let secret = secrets.passphrase(old)?;
            let mut fitting = Vec::new();
            for slot in slots {
                if self.try_slot(storage, offset, slot, secret)?.is_some() {
                    fitting.push(slot);
                }
            }
            slots = fitting;
        } else if let Some(slot) = slot {
            if self.raw.slots[slot].active.get() != ACTIVE {
                return Err(Error::Refused(format!("Given keyslot {slot} is already erased (inactive) ")));
            }
        } else {
            return Err(Error::option(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
            ));
        }
        match (slots.is_empty(), slot) {
            (false, _) => Ok(slots),
            (true, Some(slot)) => Err(Error::Refused(format!(
                "Given keyslot {slot} doesn't contain the given (old) password / no keyslot matches it"
            ))),
            (true, None) => {
                Err(Error::Refused("No keyslots match given (old) password for erase operation".to_owned()))
            }
        }
    }
}
