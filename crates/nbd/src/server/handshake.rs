//! The server's side of the handshake.
//!
//! A client may send so many options of so many bytes, and has to be done by the connection's deadline. What it negotiated
//! before TLS is forgotten after it.
//!
//! Authority: `doc/proto.md`, "Handshake phase", "Fixed newstyle negotiation", "Option types" and "Metadata querying".

use std::io;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{Export, Server};
use crate::channel::Channel;
use crate::wire::{
    self, BASE_ALLOCATION, BlockSizeInfo, DIRTY_BITMAP, ExportInfo, Greeting, Handshake, OptionHead,
    OptionReplyHead, PAYLOAD_MAX, STRING_MAX, Transmission, info, option, reply,
};
use crate::{Error, Result};

/// Options of one client.
const OPTIONS_MAX: usize = 256;
/// Bytes of one option: a name of the greatest length, and queries or requests behind it.
const OPTION_MAX: u32 = 64 << 10;
/// What is read of an option above that, so that the client sees why it is refused.
const SKIPPED_MAX: u32 = 4 << 20;
/// Requests that are best for the disks here.
const PREFERRED: u32 = 4096;

/// What a client may ask of a disk by its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Where data is.
    Allocation,
    /// What is dirty in the export's bitmap of this place.
    Bitmap(usize),
}

impl Context {
    /// All of an export.
    fn all(export: &Export) -> impl Iterator<Item = Context> {
        std::iter::once(Context::Allocation).chain((0..export.bitmaps.len()).map(Context::Bitmap))
    }

    /// Its number on the wire.
    pub fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            // An export's bitmaps are few.
            Self::Bitmap(place) => 2 + place as u32,
        }
    }

    fn name(self, export: &Export) -> String {
        match self {
            Self::Allocation => BASE_ALLOCATION.to_owned(),
            Self::Bitmap(place) => {
                format!("{DIRTY_BITMAP}{}", export.bitmaps.get(place).map_or("", String::as_str))
            }
        }
    }

    /// Whether a query means it. A list may ask for all of a kind.
    fn is_meant(self, export: &Export, query: &str, sets: bool) -> bool {
        let kinds: &[&str] = match self {
            Self::Allocation => &["base:"],
            Self::Bitmap(_) => &["qemu:", DIRTY_BITMAP],
        };
        query == self.name(export) || !sets && kinds.contains(&query)
    }
}

/// What client and server have agreed upon.
#[derive(Debug)]
pub struct Agreed<'a> {
    pub channel: Channel,
    pub export: &'a Export,
    pub structured: bool,
    /// What the client wants to be told of the disk's runs.
    pub contexts: Vec<Context>,
}

/// What a client has negotiated so far.
#[derive(Debug, Default)]
struct Progress {
    no_zeroes: bool,
    structured: bool,
    /// The contexts that it asked for, and of which export.
    contexts_of: Option<(String, Vec<Context>)>,
}

/// Whether the handshake goes on.
enum Next<'a> {
    Option,
    Transmission(&'a Export),
    End,
}

struct Negotiation<'a> {
    server: &'a Server,
    channel: Channel,
    progress: Progress,
}

/// Runs it; `None` where the client has left in order.
pub fn negotiate(server: &Server, channel: Channel) -> Result<Option<Agreed<'_>>> {
    let flags = Handshake::FIXED_NEWSTYLE | Handshake::NO_ZEROES;
    let greeting = Greeting {
        magic: U64::new(wire::NBD_MAGIC),
        option_magic: U64::new(wire::OPTION_MAGIC),
        flags: U16::new(flags.bits()),
    };
    channel.send(&[greeting.as_bytes()])?;
    let mut client = [0; 4];
    match channel.fill(&mut client) {
        // Somebody has looked whether a server is there.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    let client = u32::from_be_bytes(client);
    if client & !u32::from(flags.bits()) != 0 {
        return Err(Error::protocol(format!("the client's flags are {client:#x}")));
    }
    let no_zeroes = client & u32::from(Handshake::NO_ZEROES.bits()) != 0;
    let progress = Progress { no_zeroes, ..Progress::default() };
    let mut negotiation = Negotiation { server, channel, progress };
    for _ in 0..OPTIONS_MAX {
        match negotiation.option()? {
            Next::Option => {}
            Next::End => return Ok(None),
            Next::Transmission(export) => {
                let Negotiation { channel, progress, .. } = negotiation;
                let chosen = progress.contexts_of.filter(|(name, _)| *name == export.name);
                let contexts = chosen.map_or(Vec::new(), |(_, contexts)| contexts);
                return Ok(Some(Agreed { channel, export, structured: progress.structured, contexts }));
            }
        }
    }
    Err(Error::protocol("too many options"))
}

/// Takes a string with its length in front of it off an option's payload.
fn string<'p>(payload: &mut &'p [u8]) -> Option<&'p str> {
    let (len, rest) = U32::read_from_prefix(payload).ok()?;
    let len = usize::try_from(len.get()).ok().filter(|len| *len <= STRING_MAX)?;
    let (text, rest) = rest.split_at_checked(len)?;
    *payload = rest;
    std::str::from_utf8(text).ok()
}

impl<'a> Negotiation<'a> {
    fn option(&mut self) -> Result<Next<'a>> {
        let mut head = [0; size_of::<OptionHead>()];
        match self.channel.fill(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Next::End),
            done => done?,
        }
        let head = OptionHead::read_from_bytes(&head).map_err(|_| Error::protocol("a short option"))?;
        if head.magic.get() != wire::OPTION_MAGIC {
            return Err(Error::protocol("an option without its magic number"));
        }
        let (option, len) = (head.option.get(), head.len.get());
        let wants_tls = self.server.tls.is_some() && !self.channel.is_tls();
        if len > OPTION_MAX {
            self.skip(len)?;
            return self.refuse(option, reply::ERR_TOO_BIG, "this option is too long");
        }
        let mut payload = vec![0; len as usize];
        self.channel.fill(&mut payload)?;
        match option {
            option::ABORT => {
                // The client may not wait for the answer.
                let _ = self.reply(option, reply::ACK, &[]);
                Ok(Next::End)
            }
            option::STARTTLS => self.start_tls(&payload),
            option::EXPORT_NAME if wants_tls => Err(Error::protocol("a client that does not do TLS")),
            _ if wants_tls => self.refuse(option, reply::ERR_TLS_REQD, "TLS is needed here"),
            option::EXPORT_NAME => self.by_name(&payload),
            option::LIST => self.list(&payload),
            option::INFO | option::GO => self.info(option, &payload),
            option::STRUCTURED_REPLY if payload.is_empty() => {
                self.progress.structured = true;
                self.reply(option, reply::ACK, &[])
            }
            option::STRUCTURED_REPLY => self.invalid(option),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, &payload),
            _ => self.refuse(option, reply::ERR_UNSUP, "this option is not known here"),
        }
    }

    fn skip(&self, len: u32) -> Result<()> {
        if len > SKIPPED_MAX {
            return Err(Error::protocol(format!("an option of {len} bytes")));
        }
        let mut left = len as usize;
        let mut bytes = [0; 4096];
        while left > 0 {
            let part = left.min(bytes.len());
            self.channel.fill(&mut bytes[..part])?;
            left -= part;
        }
        Ok(())
    }

    fn send(&self, option: u32, kind: u32, parts: &[&[u8]]) -> Result<()> {
        let payload = parts.concat();
        let head = OptionReplyHead {
            magic: U64::new(wire::OPTION_REPLY_MAGIC),
            option: U32::new(option),
            kind: U32::new(kind),
            // What is said here is bounded by names and descriptions.
            len: U32::new(payload.len() as u32),
        };
        Ok(self.channel.send(&[head.as_bytes(), &payload])?)
    }

    fn reply(&self, option: u32, kind: u32, parts: &[&[u8]]) -> Result<Next<'a>> {
        self.send(option, kind, parts)?;
        Ok(Next::Option)
    }

    fn refuse(&self, option: u32, kind: u32, message: &str) -> Result<Next<'a>> {
        self.reply(option, kind, &[message.as_bytes()])
    }

    fn invalid(&self, option: u32) -> Result<Next<'a>> {
        self.refuse(option, reply::ERR_INVALID, "this option is not what it should be")
    }

    fn start_tls(&mut self, payload: &[u8]) -> Result<Next<'a>> {
        let option = option::STARTTLS;
        if !payload.is_empty() || self.channel.is_tls() {
            return self.invalid(option);
        }
        let Some(tls) = &self.server.tls else {
            return self.refuse(option, reply::ERR_POLICY, "this server does not do TLS");
        };
        self.send(option, reply::ACK, &[])?;
        self.channel = self.channel.clone().into_tls_server(tls)?;
        self.progress = Progress { no_zeroes: self.progress.no_zeroes, ..Progress::default() };
        Ok(Next::Option)
    }

    fn flags(&self, export: &Export) -> Transmission {
        let mut flags = Transmission::HAS_FLAGS
            | Transmission::SEND_FLUSH
            | Transmission::SEND_FUA
            | Transmission::SEND_CACHE
            // All connections are served from one disk, so a flush is every other's too.
            | Transmission::CAN_MULTI_CONN;
        flags |= match export.read_only {
            true => Transmission::READ_ONLY,
            false => Transmission::SEND_TRIM | Transmission::SEND_WRITE_ZEROES,
        };
        flags.set(Transmission::SEND_DF, self.progress.structured);
        flags
    }

    fn by_name(&self, payload: &[u8]) -> Result<Next<'a>> {
        let export = std::str::from_utf8(payload).ok().and_then(|name| self.server.find(name));
        // There is no other way to say no.
        let export =
            export.ok_or_else(|| Error::protocol("a client that wants an export which is not there"))?;
        let (size, flags) = (U64::new(export.disk.size()), U16::new(self.flags(export).bits()));
        let zeroes: &[u8] = if self.progress.no_zeroes { &[] } else { &[0; 124] };
        self.channel.send(&[&[size.as_bytes(), flags.as_bytes(), zeroes].concat()])?;
        Ok(Next::Transmission(export))
    }

    fn list(&self, payload: &[u8]) -> Result<Next<'a>> {
        if !payload.is_empty() {
            return self.invalid(option::LIST);
        }
        for export in &self.server.exports {
            let len = U32::new(export.name.len() as u32);
            let parts = [len.as_bytes(), export.name.as_bytes(), export.description.as_bytes()];
            self.send(option::LIST, reply::SERVER, &parts)?;
        }
        self.reply(option::LIST, reply::ACK, &[])
    }

    fn info(&mut self, option: u32, mut payload: &[u8]) -> Result<Next<'a>> {
        let Some(name) = string(&mut payload) else { return self.invalid(option) };
        let Ok((count, kinds)) = U16::read_from_prefix(payload) else { return self.invalid(option) };
        if kinds.len() != 2 * usize::from(count.get()) {
            return self.invalid(option);
        }
        let server = self.server;
        let Some(export) = server.find(name) else {
            return self.refuse(
                option,
                reply::ERR_UNKNOWN,
                &format!("export '{}' is not here", wire::shown(name.as_bytes())),
            );
        };
        let told = ExportInfo {
            kind: U16::new(info::EXPORT),
            size: U64::new(export.disk.size()),
            flags: U16::new(self.flags(export).bits()),
        };
        self.send(option, reply::INFO, &[told.as_bytes()])?;
        let asked =
            |kind: u16| kinds.as_chunks::<2>().0.iter().any(|&bytes| u16::from_be_bytes(bytes) == kind);
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if asked(kind) && !text.is_empty() {
                self.send(option, reply::INFO, &[U16::new(kind).as_bytes(), text.as_bytes()])?;
            }
        }
        let sizes = BlockSizeInfo {
            kind: U16::new(info::BLOCK_SIZE),
            min: U32::new(1),
            preferred: U32::new(PREFERRED),
            max: U32::new(PAYLOAD_MAX),
        };
        self.send(option, reply::INFO, &[sizes.as_bytes()])?;
        self.send(option, reply::ACK, &[])?;
        Ok(if option == option::GO { Next::Transmission(export) } else { Next::Option })
    }

    fn contexts(&mut self, option: u32, mut payload: &[u8]) -> Result<Next<'a>> {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            self.progress.contexts_of = None;
            if !self.progress.structured {
                return self.refuse(
                    option,
                    reply::ERR_INVALID,
                    "structured replies have to be negotiated first",
                );
            }
        }
        let Some(name) = string(&mut payload) else { return self.invalid(option) };
        let Ok((count, mut rest)) = U32::read_from_prefix(payload) else { return self.invalid(option) };
        let mut queries = Vec::new();
        for _ in 0..count.get() {
            // Each takes bytes of the payload, which is bounded.
            let Some(query) = string(&mut rest) else { return self.invalid(option) };
            queries.push(query);
        }
        if !rest.is_empty() {
            return self.invalid(option);
        }
        let server = self.server;
        let Some(export) = server.find(name) else {
            return self.refuse(option, reply::ERR_UNKNOWN, "this export is not here");
        };
        // A list without queries is of all.
        let of_all = !sets && queries.is_empty();
        let found: Vec<Context> = Context::all(export)
            .filter(|context| of_all || queries.iter().any(|query| context.is_meant(export, query, sets)))
            .collect();
        for context in &found {
            // A list has no numbers to select by.
            let id = U32::new(if sets { context.id() } else { 0 });
            let name = context.name(export);
            self.send(option, reply::META_CONTEXT, &[id.as_bytes(), name.as_bytes()])?;
        }
        if sets {
            self.progress.contexts_of = Some((export.name.clone(), found));
        }
        self.reply(option, reply::ACK, &[])
    }
}
