//! Records: one saved thing, and the types that can become one.

use crate::codec::{Field, Reader, StateError, Writer};

/// The saved form of one device or processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which one, unique in a machine (`com1`, `vcpu0`).
    pub id: String,
    /// What it is (`serial`).
    pub kind: String,
    /// The version of `bytes`' layout.
    pub version: u16,
    /// Tagged fields.
    pub bytes: Vec<u8>,
}

impl Field for Record {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { id, kind, version, bytes } = self;
        id.put(out);
        kind.put(out);
        version.put(out);
        bytes.put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        Ok(Self {
            id: Field::take(b, name)?,
            kind: Field::take(b, name)?,
            version: Field::take(b, name)?,
            bytes: Field::take(b, name)?,
        })
    }
}

/// A saved-state type: a name and version of its own, and total functions to and from fields.
///
/// Write one with [`saved!`](crate::saved), which destructures exhaustively.
pub trait Saved: Sized {
    /// What is saved (`serial`).
    const KIND: &'static str;
    /// The version of the layout.
    const VERSION: u16;
    /// Writes all fields.
    fn encode(&self, out: &mut Writer);
    /// Reads all fields.
    ///
    /// # Errors
    /// Bytes that are no such state.
    fn decode(input: Reader<'_>) -> Result<Self, StateError>;

    /// The record of this state under the name `id`.
    fn to_record(&self, id: &str) -> Record {
        let mut w = Writer::new();
        self.encode(&mut w);
        Record { id: id.into(), kind: Self::KIND.into(), version: Self::VERSION, bytes: w.finish() }
    }

    /// This state out of a record.
    ///
    /// # Errors
    /// A record of another kind or version, or bytes that do not decode.
    fn from_record(record: &Record) -> Result<Self, StateError> {
        if record.kind != Self::KIND || record.version != Self::VERSION {
            return Err(StateError::WrongKind {
                want_kind: Self::KIND,
                want_version: Self::VERSION,
                kind: record.kind.clone(),
                version: record.version,
            });
        }
        Self::decode(Reader::new(&record.bytes))
    }
}

/// Declares a saved-state type: `saved! { /// doc pub struct SerialV1: "serial", 1 { 1 ier: u8, 2 lcr: u8 } }`.
/// Tags ascend and are never reused; a changed layout is a new type with a new version.
#[macro_export]
macro_rules! saved {
    ($(#[$doc:meta])* $vis:vis struct $name:ident : $kind:literal, $version:literal {
        $($(#[$fdoc:meta])* $tag:literal $field:ident : $ty:ty),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        impl $crate::Saved for $name {
            const KIND: &'static str = $kind;
            const VERSION: u16 = $version;
            fn encode(&self, out: &mut $crate::Writer) {
                let Self { $($field),* } = self;
                $(out.field($tag, $field);)*
            }
            fn decode(mut input: $crate::Reader<'_>) -> Result<Self, $crate::StateError> {
                let state = Self { $($field: input.required($tag, stringify!($field))?,)* };
                input.finish()?;
                Ok(state)
            }
        }
    };
}
