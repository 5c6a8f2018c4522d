//! The Internet checksum (RFC 1071).
//!
//! Sums 32-bit words into 64 bits, in the host's order of bytes, which the compiler turns into vector instructions; a sum in the other
//! order is the same sum with its bytes swapped (RFC 1071, section 2).

/// A sum over parts, in order. A part of odd length may be followed by another.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Goes on with these bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let mut sum = 0u64;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        let mut sum = fold(sum);
        if self.odd {
            sum = sum.swap_bytes();
        }
        self.total += u64::from(sum);
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// The sum as it stands in the field of a header that is left to be finished: not inverted.
    pub(crate) fn partial(self) -> [u8; 2] {
        fold(self.total).to_ne_bytes()
    }

    /// The checksum.
    pub(crate) fn finish(self) -> [u8; 2] {
        (!fold(self.total)).to_ne_bytes()
    }

    /// Whether the bytes, with their checksum among them, are as they were sent.
    pub(crate) fn is_valid(self) -> bool {
        fold(self.total) == 0xffff
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
#[path = "checksum_test.rs"]
mod checksum_test;
