//! Peers that lie: scripts of bytes as a server for our client, and as a client of our server.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_block::{Storage, StorageExt};

use crate::test_help::{Rng, connected, export, memory_disk};
use crate::wire::{self, command, errno, info, option, reply};
use crate::{NbdStorage, Server};

/// A greeting, and replies to what our client asks.
struct Script(Vec<u8>);

impl Script {
    fn greeting(flags: u16) -> Self {
        let mut bytes = wire::NBD_MAGIC.to_be_bytes().to_vec();
        bytes.extend(wire::OPTION_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        Self(bytes)
    }

    fn reply(mut self, option: u32, kind: u32, payload: &[u8]) -> Self {
        self.0.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
        for word in [option, kind, payload.len() as u32] {
            self.0.extend(word.to_be_bytes());
        }
        self.0.extend(payload);
        self
    }

    fn info(self, size: u64, flags: u16) -> Self {
        let payload = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
        self.reply(option::GO, reply::INFO, &payload)
    }

    fn blocks(self, min: u32, max: u32) -> Self {
        let mut payload = info::BLOCK_SIZE.to_be_bytes().to_vec();
        [min, 4096, max].iter().for_each(|word| payload.extend(word.to_be_bytes()));
        self.reply(option::GO, reply::INFO, &payload)
    }

    /// Up to an export of 1 MiB with chunks and the context of allocation.
    fn opened() -> Self {
        let context = [&7u32.to_be_bytes()[..], b"base:allocation"].concat();
        Self::greeting(3)
            .reply(option::STRUCTURED_REPLY, reply::ACK, &[])
            .reply(option::SET_META_CONTEXT, reply::META_CONTEXT, &context)
            .reply(option::SET_META_CONTEXT, reply::ACK, &[])
            .info(1 << 20, 1)
            .blocks(1, 1 << 20)
            .reply(option::GO, reply::ACK, &[])
    }

    /// A server that knows neither chunks nor the newer way to open an export.
    fn old() -> Self {
        let mut script = Self::greeting(1).reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, &[]).reply(
            option::GO,
            reply::ERR_UNSUP,
            b"what?",
        );
        // No whole sectors, so that any read is one request.
        script.0.extend(((1u64 << 20) + 1).to_be_bytes());
        script.0.extend(1u16.to_be_bytes());
        script.0.extend([0; 124]);
        script
    }

    fn chunk(mut self, flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Self {
        self.0.extend(wire::CHUNK_MAGIC.to_be_bytes());
        self.0.extend(flags.to_be_bytes());
        self.0.extend(kind.to_be_bytes());
        self.0.extend(cookie.to_be_bytes());
        self.0.extend((payload.len() as u32).to_be_bytes());
        self.0.extend(payload);
        self
    }

    fn simple(mut self, error: u32, cookie: u64, data: &[u8]) -> Self {
        self.0.extend(wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.0.extend(error.to_be_bytes());
        self.0.extend(cookie.to_be_bytes());
        self.0.extend(data);
        self
    }

    /// Plays it to our client.
    fn open(self) -> crate::Result<NbdStorage> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            // The client may have seen enough.
            let _ = theirs.write_all(&self.0);
            let _ = theirs.shutdown(Shutdown::Write);
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        NbdStorage::over(ours, "e", "nbd:script", false)
    }
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

fn failure(code: u32, message: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(message.len() as u16).to_be_bytes(), message].concat()
}

fn extents(context: u32, list: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    list.iter().for_each(|(len, flags)| {
        payload.extend(len.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    });
    payload
}

#[test]
fn servers_that_make_no_sense_are_refused() {
    let long = "x".repeat(5000);
    let go = || Script::greeting(3).reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, &[]);
    let ack = |script: Script| script.reply(option::GO, reply::ACK, &[]);
    for (what, script) in [
        ("nothing", Script(Vec::new())),
        ("another protocol", Script(b"SSH-2.0-OpenSSH".to_vec())),
        ("half a greeting", Script(Script::greeting(3).0[..12].to_vec())),
        (
            "the old protocol",
            Script(
                [&wire::NBD_MAGIC.to_be_bytes()[..], &wire::OLDSTYLE_MAGIC.to_be_bytes(), &[0; 136]].concat(),
            ),
        ),
        ("no answers", Script::greeting(0)),
        ("a reply to another option", Script::greeting(3).reply(option::LIST, reply::ACK, &[])),
        ("no acknowledgement", Script::greeting(3).reply(option::STRUCTURED_REPLY, reply::INFO, &[])),
        (
            "a great reply",
            Script::greeting(3).reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, &[b'x'; 20_000]),
        ),
        ("no size", ack(go())),
        ("a short size", ack(go().reply(option::GO, reply::INFO, &[0, 0, 1]))),
        ("no flags", ack(go().info(1 << 20, 0))),
        ("a size above all", ack(go().info(u64::MAX, 1))),
        ("blocks of nothing", ack(go().info(1 << 20, 1).blocks(3, 512))),
        ("great blocks", ack(go().info(1 << 20, 1).blocks(1 << 20, 1 << 20))),
        ("requests smaller than blocks", ack(go().info(1 << 20, 1).blocks(4096, 512))),
        ("a part of a block", ack(go().info((1 << 20) + 1, 1).blocks(512, 512))),
        ("a refusal", go().reply(option::GO, reply::ERR_POLICY, long.as_bytes())),
        ("no such export", go().reply(option::GO, reply::ERR_UNKNOWN, b"\x1b[2Jno")),
        ("no end", (0..5000).fold(go(), |script, _| script.info(1 << 20, 1))),
        (
            "a wrong context",
            Script::greeting(3).reply(option::STRUCTURED_REPLY, reply::ACK, &[]).reply(
                option::SET_META_CONTEXT,
                reply::META_CONTEXT,
                b"\0\0\0\x01other:one",
            ),
        ),
        (
            "a short context",
            Script::greeting(3).reply(option::STRUCTURED_REPLY, reply::ACK, &[]).reply(
                option::SET_META_CONTEXT,
                reply::META_CONTEXT,
                b"\0",
            ),
        ),
    ] {
        let error = script.open().err().unwrap_or_else(|| panic!("{what} is refused")).to_string();
        assert!(error.len() < 4400 && !error.contains('\x1b'), "{what}: {error}");
    }
}

#[test]
fn an_old_server_is_understood() {
    let storage = Script::old()
        .simple(0, 1, &[5; 1000])
        .simple(errno::EIO, 2, &[])
        .simple(0, 3, &[6; 10])
        .open()
        .unwrap();
    assert_eq!(storage.read_vec(9, 1000).unwrap(), [5; 1000]);
    assert!(storage.read_vec(9, 1000).unwrap_err().to_string().ends_with("Input/output error (os error 5)"));
    assert_eq!(storage.read_vec(0, 10).unwrap(), [6; 10]);
    assert!(storage.run(0, 5).unwrap().data);
}

#[test]
fn replies_in_any_order_are_put_together() {
    let storage = Script::opened()
        .chunk(0, wire::chunk::OFFSET_DATA, 1, &data(180, &[3; 20]))
        .chunk(0, wire::chunk::OFFSET_DATA, 1, &data(100, &[1; 30]))
        .chunk(0, wire::chunk::OFFSET_HOLE, 1, &hole(130, 50))
        .chunk(1, wire::chunk::NONE, 1, &[])
        .chunk(
            1,
            wire::chunk::ERROR_OFFSET,
            2,
            &[failure(errno::ENOSPC, b"full\n"), 5u64.to_be_bytes().to_vec()].concat(),
        )
        .chunk(1, wire::chunk::BLOCK_STATUS, 3, &extents(7, &[(4096, 3), (1 << 30, 0)]))
        .open()
        .unwrap();
    let wanted = [[1; 30].to_vec(), vec![0; 50], vec![3; 20]].concat();
    assert_eq!(storage.read_vec(100, 100).unwrap(), wanted);
    let error = storage.read_vec(0, 5).unwrap_err().to_string();
    assert!(error.ends_with("No space left on device (full)"), "{error}");
    let run = storage.run(0, 1 << 20).unwrap();
    assert!((run.data, run.len) == (false, 4096), "{run:?}");
    // What was said of the rest is remembered, and ends with the disk.
    let run = storage.run(4096, u64::MAX).unwrap();
    assert!((run.data, run.len) == (true, (1 << 20) - 4096), "{run:?}");
}

#[test]
fn replies_that_lie_end_the_connection() {
    let chunk = |flags, kind, payload: &[u8]| Script::opened().chunk(flags, kind, 1, payload);
    let scattered = (0..2000u64).fold(Script::opened(), |script, number| {
        script.chunk(0, wire::chunk::OFFSET_DATA, 1, &data(number * 2, &[0]))
    });
    let errors =
        (0..100).fold(Script::opened(), |script, _| script.chunk(0, wire::chunk::ERROR, 1, &failure(5, b"")));
    for (what, script) in [
        ("nothing", Script::opened()),
        ("another magic number", Script([Script::opened().0, vec![1; 16]].concat())),
        ("another cookie", Script::opened().chunk(1, wire::chunk::NONE, 9, &[])),
        ("a simple reply", Script::opened().simple(0, 1, &[0; 100])),
        ("nothing of it", chunk(1, wire::chunk::NONE, &[])),
        ("a part of it", chunk(1, wire::chunk::OFFSET_DATA, &data(0, &[1; 4095]))),
        ("data before it", chunk(1, wire::chunk::OFFSET_DATA, &data(u64::MAX, &[1; 4096]))),
        ("data behind it", chunk(1, wire::chunk::OFFSET_DATA, &data(0, &[1; 4097]))),
        (
            "data twice",
            chunk(0, wire::chunk::OFFSET_DATA, &data(0, &[1; 4000])).chunk(
                1,
                wire::chunk::OFFSET_DATA,
                1,
                &data(3999, &[1; 97]),
            ),
        ),
        ("a hole behind it", chunk(1, wire::chunk::OFFSET_HOLE, &hole(1, 4096))),
        ("a hole of nothing", chunk(1, wire::chunk::OFFSET_HOLE, &hole(1, 0))),
        ("an endless hole", chunk(1, wire::chunk::OFFSET_HOLE, &hole(u64::MAX, u32::MAX))),
        ("a short hole", chunk(1, wire::chunk::OFFSET_HOLE, &[0; 11])),
        ("no data", chunk(1, wire::chunk::OFFSET_DATA, &[0; 8])),
        ("extents", chunk(1, wire::chunk::BLOCK_STATUS, &extents(7, &[(1, 1)]))),
        ("an unknown chunk", chunk(1, 77, &[])),
        ("a short error", chunk(1, wire::chunk::ERROR, &[0; 5])),
        ("an error of no number", chunk(1, wire::chunk::ERROR, &failure(0, b""))),
        ("an error with more", chunk(1, wire::chunk::ERROR, &[failure(5, b"x"), vec![0]].concat())),
        ("a long error", chunk(1, wire::chunk::ERROR, &failure(5, &[b'x'; 9000]))),
        ("pieces", scattered),
        ("errors", errors),
    ] {
        let storage = script.open().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(storage.read_vec(0, 4096).is_err(), "{what}");
        let error = storage.read_vec(0, 1).unwrap_err().to_string();
        assert!(error.contains("the NBD peer"), "{what}: {error}");
    }
    for (what, payload) in [
        ("another context", extents(8, &[(4096, 0)])),
        ("an extent of nothing", extents(7, &[(4096, 0), (0, 1)])),
        ("no extent", extents(7, &[])),
        ("half an extent", extents(7, &[(4096, 0)])[..8].to_vec()),
    ] {
        let storage = chunk(1, wire::chunk::BLOCK_STATUS, &payload).open().unwrap();
        assert!(storage.run(0, 4096).is_err(), "{what}");
    }
    assert!(chunk(1, wire::chunk::NONE, &[]).open().unwrap().run(0, 4096).is_err());
    // An unknown error is an error, and the connection goes on.
    let known = chunk(1, 0x8055, &[failure(77, b"odd"), vec![1, 2, 3]].concat()).chunk(
        1,
        wire::chunk::OFFSET_DATA,
        2,
        &data(0, &[4]),
    );
    let storage = known.open().unwrap();
    assert!(storage.read_vec(0, 9).unwrap_err().to_string().ends_with("Invalid argument (odd)"));
    assert_eq!(storage.read_vec(0, 1).unwrap(), [4]);
}

#[test]
fn requests_are_no_greater_than_a_server_takes_them() {
    let opened = Script::greeting(3)
        .reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, &[])
        .info(1 << 20, 1)
        .blocks(512, 1000)
        .reply(option::GO, reply::ACK, &[]);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let replies = (1..=4).fold(opened, |script, cookie| script.simple(0, cookie, &[cookie as u8; 512]));
    let replies = replies.simple(0, 5, &[]).simple(0, 6, &[]);
    theirs.write_all(&replies.0).unwrap();
    let storage = NbdStorage::over(ours, "e", "nbd:script", false).unwrap();
    let bytes = storage.read_vec(500, 1048).unwrap();
    let wanted = [vec![1; 12], vec![2; 512], vec![3; 512], vec![4; 12]].concat();
    assert!(bytes == wanted);
    storage.write_at(512, &[9; 1024]).unwrap();
    drop(storage);
    let mut said = Vec::new();
    theirs.read_to_end(&mut said).unwrap();
    // Requests stand at the end: four reads, two writes with their data, the farewell.
    let requests = &said[said.len() - (5 * 28 + 2 * (28 + 512))..];
    let field =
        |at: usize| (requests[at + 7], u32::from_be_bytes(requests[at + 24..at + 28].try_into().unwrap()));
    assert_eq!(
        [0, 28, 56, 84, 112, 652, 1192].map(field),
        [(0, 512), (0, 512), (0, 512), (0, 512), (1, 512), (1, 512), (2, 0)]
    );
}

#[test]
fn a_server_that_falls_silent_is_given_up_when_the_user_wants() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&Script::opened().simple(0, 1, &[]).0).unwrap();
    let storage = NbdStorage::over(ours, "e", "nbd:script", false).unwrap();
    let cancel = umbra_block::Cancel::new();
    storage.give_up_when(cancel.clone()).unwrap();
    storage.write_at(0, &[1]).unwrap();
    std::thread::scope(|scope| {
        let reads = [0, 1].map(|at| {
            let storage = &storage;
            scope.spawn(move || storage.read_vec(at, 5).unwrap_err().to_string())
        });
        // It waits as long as the user does.
        std::thread::sleep(Duration::from_millis(700));
        assert!(reads.iter().all(|read| !read.is_finished()));
        cancel.cancel();
        let began = Instant::now();
        for read in reads {
            let error = read.join().unwrap();
            assert!(error.ends_with("the NBD peer took too long to answer"), "{error}");
        }
        assert!(began.elapsed() < Duration::from_secs(6));
    });
}

#[test]
fn nothing_is_taken_from_before_tls() {
    let folder = crate::test_help::Folder::new();
    crate::test_help::certificates(&folder.0);
    // Somebody in between puts an option behind the one that begins TLS.
    let tls = crate::TlsServer::load(&folder.0, false).unwrap();
    let server = Arc::new(Server::new(vec![export("e", &memory_disk(1 << 20))], Some(tls)).unwrap());
    let (mut stream, thread) = connected(&server);
    let said =
        [3u32.to_be_bytes().to_vec(), option_bytes(option::STARTTLS, &[]), option_bytes(option::LIST, &[])];
    stream.write_all(&said.concat()).unwrap();
    let ended = thread.join().unwrap().unwrap_err();
    assert!(matches!(ended, crate::Error::Tls(_)), "{ended}");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    // The greeting, the acknowledgement, and an alert: no list.
    assert!(answer.len() < 18 + 20 + 20, "{answer:?}");
    // The same from the other side.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let script = Script::greeting(3).reply(option::STARTTLS, reply::ACK, &[]).reply(
        option::STRUCTURED_REPLY,
        reply::ACK,
        &[],
    );
    theirs.write_all(&script.0).unwrap();
    let tls = crate::TlsClient::load(Some(&folder.0), true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let opened = crate::client::connection::Connection::open(
        crate::channel::Channel::plain(ours),
        Some((&tls, Some("localhost"))),
        "e",
        deadline,
    );
    assert!(matches!(opened, Err(crate::Error::Tls(_))), "{:?}", opened.err());
}

fn server() -> Arc<Server> {
    Arc::new(Server::new(vec![export("e", &memory_disk(1 << 20))], None).unwrap())
}

fn option_bytes(option: u32, payload: &[u8]) -> Vec<u8> {
    [
        &wire::OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ]
    .concat()
}

fn request(flags: u16, kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [
        &wire::REQUEST_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &77u64.to_be_bytes(),
    ];
    [&head.concat()[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// The opening of export `e` with simple replies.
fn opening() -> Vec<u8> {
    [&3u32.to_be_bytes()[..], &option_bytes(option::EXPORT_NAME, b"e")].concat()
}

/// Says `bytes` to our server and reads all that it answers. It has to come to an end by itself.
fn say(bytes: &[u8]) -> (Vec<u8>, crate::Result<()>) {
    let (mut stream, thread) = connected(&server());
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let answer = std::thread::scope(|scope| {
        let mut reader = stream.try_clone().unwrap();
        let answer = scope.spawn(move || {
            let mut answer = Vec::new();
            match reader.read_to_end(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("the server does not end it")
                }
                _ => answer,
            }
        });
        // The server may have ended it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        answer.join().unwrap()
    });
    (answer, thread.join().unwrap())
}

#[test]
fn clients_that_make_no_sense_are_let_go() {
    let long = "x".repeat(4097);
    let list = |count: u32| [&1u32.to_be_bytes()[..], b"e", &count.to_be_bytes()].concat();
    for (what, bytes) in [
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("unknown flags", vec![0xff; 4]),
        ("no magic number", [&3u32.to_be_bytes()[..], &[9; 16]].concat()),
        (
            "an endless option",
            [
                &3u32.to_be_bytes()[..],
                &wire::OPTION_MAGIC.to_be_bytes(),
                &[0, 0, 0, 6, 0xff, 0xff, 0xff, 0xff],
            ]
            .concat(),
        ),
        ("another export", [&3u32.to_be_bytes()[..], &option_bytes(option::EXPORT_NAME, b"x")].concat()),
        (
            "a long export",
            [&3u32.to_be_bytes()[..], &option_bytes(option::EXPORT_NAME, long.as_bytes())].concat(),
        ),
        (
            "too many options",
            [&3u32.to_be_bytes()[..], &option_bytes(option::LIST, &[]).repeat(300)].concat(),
        ),
        ("a request without its magic number", [opening(), vec![9; 28]].concat()),
        ("a great write", [opening(), request(0, command::WRITE, 0, u32::MAX)].concat()),
    ] {
        let (_, ended) = say(&bytes);
        assert!(ended.is_err(), "{what}");
    }
    for (what, option, payload) in [
        ("a list of something", option::LIST, b"x".to_vec()),
        ("a name longer than the option", option::GO, vec![0, 0, 0, 9, b'e', 0, 0]),
        ("no requests", option::GO, vec![0, 0, 0, 1, b'e']),
        ("fewer requests than told", option::INFO, vec![0, 0, 0, 1, b'e', 0, 9, 0, 3]),
        ("no text", option::GO, vec![0, 0, 0, 1, 0xff, 0, 0]),
        ("structured replies with something", option::STRUCTURED_REPLY, vec![1]),
        ("contexts before structured replies", option::SET_META_CONTEXT, list(0)),
        ("fewer queries than told", option::LIST_META_CONTEXT, list(u32::MAX)),
        ("TLS with something", option::STARTTLS, vec![1]),
    ] {
        let (answer, ended) = say(&[&3u32.to_be_bytes()[..], &option_bytes(option, &payload)].concat());
        ended.unwrap_or_else(|error| panic!("{what}: {error}"));
        let kind = u32::from_be_bytes(answer[18 + 12..18 + 16].try_into().unwrap());
        assert_eq!(kind, reply::ERR_INVALID, "{what}");
    }
    let (answer, ended) = say(&[&3u32.to_be_bytes()[..], &option_bytes(99, &[1; 70_000])].concat());
    ended.unwrap();
    assert_eq!(answer[30..34], reply::ERR_TOO_BIG.to_be_bytes());
}

#[test]
fn requests_that_cannot_be_carried_out_fail_alone() {
    let end = 1u64 << 20;
    for (what, flags, kind, offset, len, code) in [
        ("behind the end", 0, command::READ, end, 1, errno::EINVAL),
        ("beyond all", 0, command::READ, u64::MAX, u32::MAX, errno::EINVAL),
        ("a great read", 0, command::READ, 0, u32::MAX, errno::EINVAL),
        ("unknown flags", 1 << 9, command::READ, 0, 1, errno::EINVAL),
        ("one piece without chunks", 4, command::READ, 0, 1, errno::EINVAL),
        ("zeroes behind the end", 0, command::WRITE_ZEROES, end - 1, 2, errno::ENOSPC),
        ("a discard behind the end", 0, command::TRIM, end, u32::MAX, errno::ENOSPC),
        ("fast zeroes", 16, command::WRITE_ZEROES, 0, 1, errno::EINVAL),
        ("a status without a context", 0, command::BLOCK_STATUS, 0, 1, errno::EINVAL),
        ("a request that is not known", 0, 99, 0, u32::MAX, errno::EINVAL),
        ("a flush", 0, command::FLUSH, 0, 0, 0),
    ] {
        let read = request(0, command::READ, 0, 5);
        let (answer, ended) = say(&[opening(), request(flags, kind, offset, len), read].concat());
        ended.unwrap_or_else(|error| panic!("{what}: {error}"));
        // The greeting, the export, and replies of 16 bytes in either order.
        let replies = &answer[18 + 10..];
        let failed = Script(Vec::new()).simple(code, 77, &[]).0;
        let done = Script(Vec::new()).simple(0, 77, &[0; 5]).0;
        assert!(
            replies == [&failed[..], &done].concat() || replies == [done, failed].concat(),
            "{what}: {replies:?}"
        );
    }
    // A write behind the end is read to its own end, so that the next request is understood.
    let (answer, ended) = say(&[
        opening(),
        request(0, command::WRITE, end - 1, 3),
        vec![1; 3],
        request(0, command::FLUSH, 0, 0),
    ]
    .concat());
    ended.unwrap();
    assert_eq!(answer.len(), 28 + 32);
}

#[test]
fn a_client_that_takes_no_replies_fills_no_memory() {
    let (mut stream, thread) = connected(&server());
    stream.write_all(&opening()).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let reads = request(0, command::READ, 0, 1 << 20).repeat(1000);
    // It stops taking requests long before that.
    assert!((0..100).any(|_| stream.write_all(&reads).is_err()));
    drop(stream);
    let began = Instant::now();
    let _ = thread.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn damaged_conversations_end() {
    // Bytes of conversations that are right, with some of them changed.
    let mut rng = Rng(1);
    let go = [&1u32.to_be_bytes()[..], b"e", &[0, 1, 0, 3]].concat();
    let context =
        [&1u32.to_be_bytes()[..], b"e", &1u32.to_be_bytes(), &15u32.to_be_bytes(), b"base:allocation"]
            .concat();
    let client = [
        3u32.to_be_bytes().to_vec(),
        option_bytes(option::STRUCTURED_REPLY, &[]),
        option_bytes(option::SET_META_CONTEXT, &context),
        option_bytes(option::GO, &go),
        request(0, command::READ, 0, 70_000),
        request(0, command::BLOCK_STATUS, 0, 1 << 20),
        request(1, command::WRITE, 5, 100),
        vec![3; 100],
        request(2, command::WRITE_ZEROES, 0, 1000),
        request(0, command::DISC, 0, 0),
    ]
    .concat();
    let reply = Script::opened().chunk(0, wire::chunk::OFFSET_DATA, 1, &data(0, &[1; 500]));
    let reply = reply.chunk(1, wire::chunk::OFFSET_HOLE, 1, &hole(500, 500)).chunk(
        1,
        wire::chunk::BLOCK_STATUS,
        2,
        &extents(7, &[(9, 0), (9, 3)]),
    );
    for _ in 0..400 {
        let mut bytes = client.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        drop(say(&bytes));
        let mut bytes = reply.0.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        if let Ok(storage) = Script(bytes).open() {
            let _ = storage.read_vec(0, 1000);
            let _ = storage.run(0, 1000);
        }
    }
}
