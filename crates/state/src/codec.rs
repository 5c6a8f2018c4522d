//! The field codec: values of fixed shape to little-endian bytes and back.

use thiserror::Error;

/// Why saved bytes were refused.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum StateError {
    /// The bytes end before the value does.
    #[error("saved state ends early while reading {0}")]
    Truncated(&'static str),
    /// A value is outside what its field may hold.
    #[error("saved state holds an impossible value for {0}")]
    Invalid(&'static str),
    /// A required field has not been written.
    #[error("saved state lacks the required field {0}")]
    Missing(&'static str),
    /// A field occurs twice, or tags do not ascend.
    #[error("saved state repeats or misorders field {0:#06x}")]
    Misordered(u16),
    /// A required field that this release does not know.
    #[error(
        "saved state has a required field {0:#06x} that this version of Umbra does not know; restore it with the version that saved it or a newer one"
    )]
    UnknownRequired(u16),
    /// Bytes are left over after the last field.
    #[error("saved state has bytes left over after {0}")]
    Trailing(&'static str),
    /// The record is of another kind or version.
    #[error("expected saved state of {want_kind} version {want_version}, found {kind} version {version}")]
    WrongKind {
        /// What the reader is.
        want_kind: &'static str,
        /// The version the reader knows.
        want_version: u16,
        /// What the record says.
        kind: String,
        /// The version the record says.
        version: u16,
    },
}

/// The tag bit that marks a field which an older reader may ignore.
pub const OPTIONAL: u16 = 0x8000;

/// Appends tagged fields.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one field.
    pub fn field<T: Field>(&mut self, tag: u16, value: &T) {
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        value.put(&mut self.bytes);
        let len = (self.bytes.len() - at - 4) as u32;
        self.bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// The bytes written so far.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Tag, payload, rest.
type Peeked<'a> = (u16, &'a [u8], &'a [u8]);

/// Takes tagged fields out of untrusted bytes, in ascending order of tag.
pub struct Reader<'a> {
    rest: &'a [u8],
    last: Option<u16>,
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, last: None }
    }

    /// The next field's tag and payload, and what follows it.
    fn peek(&self) -> Result<Option<Peeked<'a>>, StateError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (head, rest) = self.rest.split_at_checked(6).ok_or(StateError::Truncated("a field header"))?;
        let tag = u16::from_le_bytes([head[0], head[1]]);
        let len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (payload, rest) = rest.split_at_checked(len).ok_or(StateError::Truncated("a field"))?;
        if self.last.is_some_and(|last| order(tag) <= order(last)) {
            return Err(StateError::Misordered(tag));
        }
        Ok(Some((tag, payload, rest)))
    }

    /// The field `tag` if it comes next; unknown optional fields before it are skipped.
    ///
    /// # Errors
    /// An unknown required field before it, or bytes that do not decode.
    pub fn optional<T: Field>(&mut self, tag: u16, name: &'static str) -> Result<Option<T>, StateError> {
        while let Some((found, payload, rest)) = self.peek()? {
            if order(found) > order(tag) {
                break;
            }
            if order(found) < order(tag) {
                if found & OPTIONAL == 0 {
                    return Err(StateError::UnknownRequired(found));
                }
                (self.rest, self.last) = (rest, Some(found));
                continue;
            }
            (self.rest, self.last) = (rest, Some(found));
            let mut payload = payload;
            let value = T::take(&mut payload, name)?;
            return if payload.is_empty() { Ok(Some(value)) } else { Err(StateError::Trailing(name)) };
        }
        Ok(None)
    }

    /// The field `tag`, which must be there.
    ///
    /// # Errors
    /// As [`Reader::optional`], and a missing field.
    pub fn required<T: Field>(&mut self, tag: u16, name: &'static str) -> Result<T, StateError> {
        self.optional(tag, name)?.ok_or(StateError::Missing(name))
    }

    /// Ends reading: what is left must be unknown optional fields.
    ///
    /// # Errors
    /// An unknown required field, or broken bytes.
    pub fn finish(mut self) -> Result<(), StateError> {
        while let Some((found, _, rest)) = self.peek()? {
            if found & OPTIONAL == 0 {
                return Err(StateError::UnknownRequired(found));
            }
            (self.rest, self.last) = (rest, Some(found));
        }
        Ok(())
    }
}

/// Fields ascend by number; the optional bit does not count.
fn order(tag: u16) -> u16 {
    tag & !OPTIONAL
}

/// A value that a saved field can hold.
pub trait Field: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the value from the front of `bytes`.
    ///
    /// # Errors
    /// Bytes that end early or hold an impossible value; `name` is for the message.
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError>;
}

/// The first `n` bytes, which are removed from the slice.
pub(crate) fn split<'a>(bytes: &mut &'a [u8], n: usize, name: &'static str) -> Result<&'a [u8], StateError> {
    let (head, rest) = bytes.split_at_checked(n).ok_or(StateError::Truncated(name))?;
    *bytes = rest;
    Ok(head)
}

macro_rules! integer {
    ($($t:ty),*) => {$(
        impl Field for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
                let raw = split(bytes, size_of::<$t>(), name)?;
                Ok(<$t>::from_le_bytes(raw.try_into().map_err(|_| StateError::Truncated(name))?))
            }
        }
    )*};
}
integer!(u8, u16, u32, u64, u128, i64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        match u8::take(bytes, name)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Invalid(name)),
        }
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|v| v.put(out));
    }
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        let mut items = Vec::with_capacity(N);
        for _ in 0..N {
            items.push(T::take(bytes, name)?);
        }
        items.try_into().map_err(|_| StateError::Invalid(name))
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|v| v.put(out));
    }
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        let count = u32::take(bytes, name)? as usize;
        // Every item takes a byte at least, so a hostile count cannot reserve more than the input is long.
        if count > bytes.len() {
            return Err(StateError::Truncated(name));
        }
        (0..count).map(|_| T::take(bytes, name)).collect()
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(v) = self {
            v.put(out);
        }
    }
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        Ok(if bool::take(bytes, name)? { Some(T::take(bytes, name)?) } else { None })
    }
}

impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        let len = u32::take(bytes, name)? as usize;
        String::from_utf8(split(bytes, len, name)?.to_vec()).map_err(|_| StateError::Invalid(name))
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(bytes: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        Ok((A::take(bytes, name)?, B::take(bytes, name)?))
    }
}
