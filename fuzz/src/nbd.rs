//! Conversations of the network block device protocol, as either side has them: what a target's inputs go on from.

use crate::Input;

/// The context of allocation, and its number with our server's peer.
const CONTEXT: (u32, &[u8]) = (7, b"base:allocation");
/// Bytes of the export.
pub const SIZE: u64 = 256 << 10;
/// Bytes of a conversation: no more than a socket takes while nobody reads.
const BYTES_MAX: usize = 96 << 10;

/// What one side says: the input as it is, behind an opening perhaps, which messages in the right form may follow.
pub fn conversation(
    input: &mut Input<'_>,
    opening: fn(structured: bool) -> Vec<u8>,
    mut message: impl FnMut(&mut Input<'_>) -> Vec<u8>,
) -> Vec<u8> {
    let kind = input.below(4);
    let mut bytes = if kind == 0 { Vec::new() } else { opening(kind != 1) };
    if kind == 3 {
        while !input.is_empty() && bytes.len() < BYTES_MAX / 2 {
            bytes.extend(message(input));
        }
    }
    bytes.extend(input.rest());
    bytes.truncate(BYTES_MAX);
    bytes
}

fn option(option: u32, payload: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &option.to_be_bytes()[..], &(payload.len() as u32).to_be_bytes(), payload].concat()
}

fn answer(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
    let head = [option, kind, payload.len() as u32].map(u32::to_be_bytes).concat();
    [&magic[..], &head, payload].concat()
}

/// A client's handshake up to the export: with chunks and a context, or in the oldest way.
pub fn client_opening(structured: bool) -> Vec<u8> {
    let flags = 3u32.to_be_bytes();
    if !structured {
        return [&flags[..], &option(1, b"e")].concat();
    }
    let (name, one) = (1u32.to_be_bytes(), 1u32.to_be_bytes());
    let len = (CONTEXT.1.len() as u32).to_be_bytes();
    let contexts = option(10, &[&name[..], b"e", &one, &len, CONTEXT.1].concat());
    let go = option(7, &[&name[..], b"e", &[0, 1, 0, 3]].concat());
    [&flags[..], &option(8, &[]), &contexts, &go].concat()
}

/// A server's handshake up to the export, as above.
pub fn server_opening(structured: bool) -> Vec<u8> {
    let size = SIZE.to_be_bytes();
    // Flush, zeroes, discards.
    let flags = 0x65u16.to_be_bytes();
    let greeting = [b"NBDMAGICIHAVEOPT", &[0, 3][..]].concat();
    if !structured {
        let unknown = [answer(8, 0x8000_0001, &[]), answer(7, 0x8000_0001, &[])].concat();
        return [&greeting[..], &unknown, &size, &flags].concat();
    }
    let context = [&CONTEXT.0.to_be_bytes()[..], CONTEXT.1].concat();
    let blocks =
        [&[0, 3][..], &1u32.to_be_bytes(), &4096u32.to_be_bytes(), &(1u32 << 20).to_be_bytes()].concat();
    let told = [
        answer(8, 1, &[]),
        answer(10, 4, &context),
        answer(10, 1, &[]),
        answer(7, 3, &[&[0, 0][..], &size, &flags].concat()),
        answer(7, 3, &blocks),
        answer(7, 1, &[]),
    ];
    [&greeting[..], &told.concat()].concat()
}

/// A request in the right form, of numbers that are often special, and a write's data.
pub fn request(input: &mut Input<'_>) -> Vec<u8> {
    let (command, flags) = (input.below(10), input.below(32));
    let offset = if input.u8() < 0xe0 { u64::from(input.u32()) % SIZE } else { input.value() };
    let len = if input.u8() < 0xe0 { u32::from(input.u16()) } else { input.u32() };
    let cookie = u64::from(input.u8());
    let mut bytes =
        [&0x2560_9513u32.to_be_bytes()[..], &[0, flags, 0, command], &cookie.to_be_bytes()].concat();
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    if command == 1 {
        bytes.extend(input.bytes(len.min(1 << 16) as usize));
    }
    bytes
}

/// A reply or a chunk in the right form. `cookie` is the request's that waits, which is mostly the one meant.
pub fn reply(input: &mut Input<'_>, cookie: u64) -> Vec<u8> {
    let choice = input.u8();
    let cookie = if choice & 0x80 == 0 { cookie } else { input.value() };
    if choice & 3 == 0 {
        let error = u32::from(input.below(40));
        let data = input.u16() % 4200;
        let head = [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat();
        return [&head[..], input.bytes(data.into())].concat();
    }
    let (kind, mut payload): (u16, Vec<u8>) = match input.below(7) {
        0 => (0, Vec::new()),
        1 => {
            let offset = u64::from(input.u16());
            (1, [&offset.to_be_bytes()[..], input.bytes(usize::from(input.clone().u16() % 4200))].concat())
        }
        2 => (2, [&u64::from(input.u16()).to_be_bytes()[..], &u32::from(input.u16()).to_be_bytes()].concat()),
        3 => {
            let mut payload = CONTEXT.0.to_be_bytes().to_vec();
            for _ in 0..input.below(20) {
                payload.extend(u32::from(input.u16()).to_be_bytes());
                payload.extend(u32::from(input.below(5)).to_be_bytes());
            }
            (5, payload)
        }
        4 => {
            let text = input.bytes(usize::from(input.clone().u8()));
            let code = u32::from(input.below(120)).to_be_bytes();
            (0x8001, [&code[..], &(text.len() as u16).to_be_bytes(), text].concat())
        }
        5 => (0x8002, input.bytes(16).to_vec()),
        _ => (input.u16(), input.bytes(usize::from(input.clone().u8())).to_vec()),
    };
    if choice & 0x40 != 0 {
        payload.pop();
    }
    let done = u16::from(choice & 4 != 0).to_be_bytes();
    let len = (payload.len() as u32).to_be_bytes();
    let head = [&0x668e_33efu32.to_be_bytes()[..], &done, &kind.to_be_bytes(), &cookie.to_be_bytes(), &len];
    [&head.concat()[..], &payload].concat()
}
