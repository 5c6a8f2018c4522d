//! The client's side of the handshake: options, in the order that every server understands, and bounds on all that a
//! server answers.
//!
//! Authority: `doc/proto.md`, "Handshake phase", "Fixed newstyle negotiation" and "Option types".

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::channel::Channel;
use crate::tls::TlsClient;
use crate::wire::{
    self, BASE_ALLOCATION, BlockSizeInfo, ExportInfo, Greeting, Handshake, OptionHead, OptionReplyHead,
    PAYLOAD_MAX, STRING_MAX, Transmission, info, option, reply,
};
use crate::{Error, Result};

/// Bytes of one reply to an option: the greatest that there are name an export and describe it.
const REPLY_MAX: u32 = 4 * STRING_MAX as u32;
/// Replies to one option that are read.
const REPLIES_MAX: usize = 4096;
/// The greatest smallest request of a server: its blocks are no greater.
const BLOCK_MAX: u32 = 64 << 10;

/// What the server says of an export, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFacts {
    /// Its size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: Transmission,
    /// Offsets and lengths of requests are multiples of this power of two.
    pub block_min: u32,
    /// The greatest payload of a request.
    pub payload_max: u32,
    /// Replies come in chunks.
    pub structured: bool,
    /// The number of the context of allocation, where the server has it.
    pub allocation: Option<u32>,
}

/// A reply to an option.
struct Reply {
    kind: u32,
    payload: Vec<u8>,
}

/// The handshake up to the export: what is left is transmission.
pub fn negotiate(
    mut channel: Channel,
    tls: Option<(&TlsClient, Option<&str>)>,
    export: &str,
) -> Result<(Channel, ExportFacts)> {
    let no_zeroes = greet(&channel)?;
    if let Some((tls, host)) = tls {
        match ask(&channel, option::STARTTLS, &[])? {
            Reply { kind: reply::ACK, .. } => channel = channel.into_tls_client(tls, host)?,
            other => return Err(refused("the server does not do TLS", &other)),
        }
    }
    let structured = ask(&channel, option::STRUCTURED_REPLY, &[])?;
    let structured = match structured.kind {
        reply::ACK => true,
        reply::ERR_TLS_REQD => return Err(needs_tls(&structured)),
        _ => false,
    };
    let allocation = if structured { set_context(&channel, export)? } else { None };
    let mut facts = match go(&channel, export)? {
        Some(facts) => facts,
        None => by_name(&channel, export, no_zeroes)?,
    };
    (facts.structured, facts.allocation) = (structured, allocation);
    if facts.block_min == 0 {
        // Servers that do not say mean disks of sectors.
        facts.block_min = if facts.size.is_multiple_of(512) { 512 } else { 1 };
    }
    check(&facts)?;
    Ok((channel, facts))
}

/// Says that nothing more is wanted, as far as the server listens.
pub fn abort(channel: &Channel) {
    if send_option(channel, option::ABORT, &[]).is_ok() {
        channel.end(&[]);
    }
}

fn greet(channel: &Channel) -> Result<bool> {
    let mut bytes = [0; size_of::<Greeting>()];
    // A server of another protocol may say less: the first eight bytes tell.
    let (first, rest) = bytes.split_at_mut(8);
    channel.fill(first)?;
    if u64::from_be_bytes(<[u8; 8]>::try_from(&*first).unwrap_or_default()) != wire::NBD_MAGIC {
        return Err(Error::protocol("what answers there is no NBD server"));
    }
    channel.fill(rest)?;
    let greeting = Greeting::read_from_bytes(&bytes).map_err(|_| Error::protocol("a short greeting"))?;
    match greeting.option_magic.get() {
        wire::OPTION_MAGIC => {}
        wire::OLDSTYLE_MAGIC => {
            return Err(Error::protocol("the server speaks only the old protocol without options"));
        }
        other => return Err(Error::protocol(format!("unknown kind of negotiation {other:#x}"))),
    }
    let flags = Handshake::from_bits_truncate(greeting.flags.get());
    if !flags.contains(Handshake::FIXED_NEWSTYLE) {
        return Err(Error::protocol("the server answers no options (it lacks fixed newstyle)"));
    }
    // What it does not offer is not asked for.
    channel.send(&[U32::new(u32::from(flags.bits())).as_bytes()])?;
    Ok(flags.contains(Handshake::NO_ZEROES))
}

fn send_option(channel: &Channel, option: u32, parts: &[&[u8]]) -> Result<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).map_err(|_| Error::address("an option is too long"))?;
    let head =
        OptionHead { magic: U64::new(wire::OPTION_MAGIC), option: U32::new(option), len: U32::new(len) };
    let all: Vec<&[u8]> = std::iter::once(head.as_bytes()).chain(parts.iter().copied()).collect();
    Ok(channel.send(&[&all.concat()])?)
}

fn read_reply(channel: &Channel, option: u32) -> Result<Reply> {
    let mut head = [0; size_of::<OptionReplyHead>()];
    channel.fill(&mut head)?;
    let head = OptionReplyHead::read_from_bytes(&head).map_err(|_| Error::protocol("a short reply"))?;
    if head.magic.get() != wire::OPTION_REPLY_MAGIC {
        return Err(Error::protocol("a reply to an option without its magic number"));
    }
    if head.option.get() != option {
        return Err(Error::protocol(format!("a reply to option {}, not to {option}", head.option.get())));
    }
    let len = head.len.get();
    if len > REPLY_MAX {
        return Err(Error::protocol(format!("a reply of {len} bytes to an option")));
    }
    let mut payload = vec![0; len as usize];
    channel.fill(&mut payload)?;
    Ok(Reply { kind: head.kind.get(), payload })
}

/// Asks for something that has one reply.
fn ask(channel: &Channel, option: u32, parts: &[&[u8]]) -> Result<Reply> {
    send_option(channel, option, parts)?;
    let reply = read_reply(channel, option)?;
    match reply.kind == reply::ACK || reply.kind & reply::ERROR != 0 {
        true => Ok(reply),
        false => Err(Error::protocol(format!("reply {} to option {option}", reply.kind))),
    }
}

fn refused(what: &str, reply: &Reply) -> Error {
    Error::Refused { what: what.to_owned(), message: wire::shown(&reply.payload) }
}

fn needs_tls(reply: &Reply) -> Error {
    refused("the server wants TLS; set tls-creds, or use an address that begins with nbds", reply)
}

fn string_len(text: &str) -> Result<U32> {
    match u32::try_from(text.len()) {
        Ok(len) if text.len() <= STRING_MAX => Ok(U32::new(len)),
        _ => Err(Error::address(format!("export name is longer than {STRING_MAX} bytes"))),
    }
}

/// Selects the context of allocation; its number where the server has it.
fn set_context(channel: &Channel, export: &str) -> Result<Option<u32>> {
    let (name_len, query_len) = (string_len(export)?, string_len(BASE_ALLOCATION)?);
    let parts = [
        name_len.as_bytes(),
        export.as_bytes(),
        U32::new(1).as_bytes(),
        query_len.as_bytes(),
        BASE_ALLOCATION.as_bytes(),
    ]
    .concat();
    send_option(channel, option::SET_META_CONTEXT, &[&parts])?;
    let mut found = None;
    for _ in 0..REPLIES_MAX {
        let reply = read_reply(channel, option::SET_META_CONTEXT)?;
        match reply.kind {
            reply::ACK => return Ok(found),
            reply::META_CONTEXT => {
                let (id, name) = U32::read_from_prefix(&reply.payload)
                    .map_err(|_| Error::protocol("a context without a number"))?;
                if name != BASE_ALLOCATION.as_bytes() || found.is_some() {
                    return Err(Error::protocol("a context that was not asked for"));
                }
                found = Some(id.get());
            }
            // The export may be unknown too: that is told when it is opened.
            kind if kind & reply::ERROR != 0 => return Ok(None),
            kind => return Err(Error::protocol(format!("reply {kind} to a list of contexts"))),
        }
    }
    Err(Error::protocol("no end of contexts"))
}

fn empty_facts() -> ExportFacts {
    ExportFacts {
        size: 0,
        flags: Transmission::empty(),
        // Not told yet.
        block_min: 0,
        payload_max: PAYLOAD_MAX,
        structured: false,
        allocation: None,
    }
}

/// Opens the export; `None` where the server knows only the older way.
fn go(channel: &Channel, export: &str) -> Result<Option<ExportFacts>> {
    let parts = [
        string_len(export)?.as_bytes(),
        export.as_bytes(),
        U16::new(1).as_bytes(),
        U16::new(info::BLOCK_SIZE).as_bytes(),
    ]
    .concat();
    send_option(channel, option::GO, &[&parts])?;
    let mut facts = empty_facts();
    let mut told = false;
    for _ in 0..REPLIES_MAX {
        let reply = read_reply(channel, option::GO)?;
        match reply.kind {
            reply::ACK if told => return Ok(Some(facts)),
            reply::ACK => return Err(Error::protocol("an export without a size")),
            reply::INFO => told |= read_info(&reply.payload, &mut facts)?,
            reply::ERR_UNSUP => return Ok(None),
            reply::ERR_UNKNOWN => return Err(refused("Requested export not available", &reply)),
            reply::ERR_TLS_REQD => return Err(needs_tls(&reply)),
            reply::ERR_POLICY => return Err(refused("the server does not allow it", &reply)),
            reply::ERR_SHUTDOWN => return Err(refused("the server is about to end", &reply)),
            kind if kind & reply::ERROR != 0 => {
                return Err(refused(&format!("the server refuses the export (error {:#x})", kind), &reply));
            }
            kind => return Err(Error::protocol(format!("reply {kind} to opening an export"))),
        }
    }
    Err(Error::protocol("no end of information"))
}

/// Takes one piece of information; whether it was the export's size.
fn read_info(payload: &[u8], facts: &mut ExportFacts) -> Result<bool> {
    let short = |_| Error::protocol("information of a wrong length");
    let (kind, _) = U16::read_from_prefix(payload).map_err(|_| Error::protocol("information of no kind"))?;
    match kind.get() {
        info::EXPORT => {
            let told = ExportInfo::read_from_bytes(payload).map_err(short)?;
            (facts.size, facts.flags) = (told.size.get(), Transmission::from_bits_truncate(told.flags.get()));
            Ok(true)
        }
        info::BLOCK_SIZE => {
            let told = BlockSizeInfo::read_from_bytes(payload)
                .map_err(|_| Error::protocol("block sizes of a wrong length"))?;
            (facts.block_min, facts.payload_max) = (told.min.get(), told.max.get());
            Ok(false)
        }
        // Names, descriptions and what is not known yet.
        _ => Ok(false),
    }
}

/// Opens the export in the older way, which closes the connection where there is no such export.
fn by_name(channel: &Channel, export: &str, no_zeroes: bool) -> Result<ExportFacts> {
    send_option(channel, option::EXPORT_NAME, &[export.as_bytes()])?;
    let mut bytes = [0; 10 + 124];
    let len = if no_zeroes { 10 } else { bytes.len() };
    channel.fill(&mut bytes[..len]).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::Refused { what: "Requested export not available".to_owned(), message: String::new() }
        }
        _ => error.into(),
    })?;
    let (size, rest) = U64::read_from_prefix(&bytes).map_err(|_| Error::protocol("a short export"))?;
    let (flags, _) = U16::read_from_prefix(rest).map_err(|_| Error::protocol("a short export"))?;
    let flags = Transmission::from_bits_truncate(flags.get());
    Ok(ExportFacts { size: size.get(), flags, ..empty_facts() })
}

/// What the rest may count on.
fn check(facts: &ExportFacts) -> Result<()> {
    let ExportFacts { size, flags, block_min, payload_max, .. } = facts;
    if !flags.contains(Transmission::HAS_FLAGS) {
        return Err(Error::protocol("an export without flags"));
    }
    if *size > i64::MAX as u64 {
        return Err(Error::protocol(format!("an export of {size} bytes")));
    }
    if !block_min.is_power_of_two() || *block_min > BLOCK_MAX || payload_max < block_min {
        return Err(Error::protocol(format!("requests of {block_min} to {payload_max} bytes")));
    }
    if !size.is_multiple_of(u64::from(*block_min)) {
        return Err(Error::protocol(format!("an export of {size} bytes in blocks of {block_min}")));
    }
    Ok(())
}
