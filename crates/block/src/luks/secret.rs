//! Secrets that are encrypted with another secret, as QEMU's objects `secret` have them: AES-256 in CBC, filled up by PKCS #7.

use aes::Aes256;
use aes::cipher::array::Array;
use aes::cipher::{BlockCipherDecrypt, KeyInit};
use zeroize::Zeroizing;

use crate::{Error, Result};

const BLOCK: usize = 16;

/// The secret in `data`, by the key and the vector that it was encrypted with.
///
/// # Errors
/// [`Error::InvalidOption`]: a key or vector of the wrong length, or data that this key has not made.
pub fn open_secret(key: &[u8], vector: &[u8], data: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let cipher = Aes256::new_from_slice(key)
        .map_err(|_| Error::option(format!("Key should be 32 bytes in length, not {}", key.len())))?;
    let mut last: [u8; BLOCK] = vector
        .try_into()
        .map_err(|_| Error::option(format!("IV should be 16 bytes in length not {}", vector.len())))?;
    let wrong = || Error::option("Incorrect number of padding bytes found on decrypted data");
    if data.is_empty() || !data.len().is_multiple_of(BLOCK) {
        return Err(wrong());
    }
    let mut secret = Zeroizing::new(Vec::with_capacity(data.len()));
    for packed in data.chunks_exact(BLOCK) {
        let packed: [u8; BLOCK] = packed.try_into().map_err(|_| wrong())?;
        let mut block = Array(packed);
        cipher.decrypt_block(&mut block);
        secret.extend(block.iter().zip(last).map(|(byte, other)| byte ^ other));
        last = packed;
    }
    let filling = usize::from(secret.last().copied().unwrap_or(0));
    if filling == 0 || filling > BLOCK {
        return Err(wrong());
    }
    let len = secret.len() - filling;
    secret.truncate(len);
    Ok(secret)
}
