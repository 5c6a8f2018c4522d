//! Writes the inputs that the corpora begin with: whole and right saved states, requests, messages and pieces of code, which a
//! fuzzer would not find by itself. `seeds FOLDER` puts them into `FOLDER/TARGET/`.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
// The coverage counters that this program is built with as well want the fuzzer's runtime.
use libfuzzer_sys as _;
use umbra_block::{
    Access, CreateOptions, Disk, Environment, FileSpec, FileStorageSpec, MemoryStorage, Registry,
    SnapshotInfo, Storage, StorageExt, Task,
};
use umbra_fuzz::{Input, disk, guest, input_of, nbd};
use umbra_machine::{CpuModel, Machine, MachineSpec};
use umbra_state::{ChunkKind, ContainerWriter, Field, Record, Saved};

struct Seeds<'a>(&'a Path);

impl Seeds<'_> {
    fn put(&self, target: &str, name: &str, pieces: &[&[u8]]) {
        let folder = self.0.join(target);
        std::fs::create_dir_all(&folder).expect("a folder for the corpus");
        std::fs::write(folder.join(name), pieces.concat()).expect("a file of the corpus");
    }
}

fn states(seeds: &Seeds<'_>) {
    let mut bytes = Vec::new();
    Record { id: "com1".into(), kind: "serial".into(), version: 1, bytes: vec![1, 0, 1, 0, 0, 0, 7] }
        .put(&mut bytes);
    seeds.put("state_codec", "record", &[&[0], &bytes]);
    let mut bytes = Vec::new();
    vec![(1u32, 2u64), (3, 4)].put(&mut bytes);
    seeds.put("state_codec", "pairs", &[&[1], &bytes]);
    let mut bytes = Vec::new();
    ("text".to_owned(), vec![vec![1u8, 2], vec![]]).put(&mut bytes);
    seeds.put("state_codec", "nested", &[&[3], &bytes]);
    let state = guest::power_on(0).to_record("vcpu0");
    seeds.put("engine_cpu_state", "power-on", &[&[1], &state.bytes]);
    seeds.put("engine_cpu_state", "altered", &[&[0, 2, 8, 0, 1, 90, 0, 0xff]]);
}

/// New images of other systems' formats, and as their options have them.
fn foreign_images(seeds: &Seeds<'_>) {
    let mut registry = Registry::empty();
    umbra_block_formats::register(&mut registry);
    let environment = Environment::new(registry.clone());
    let kinds = [
        ("", ""),
        ("subformat", "streamOptimized"),
        ("static", "on"),
        ("force_size", "on"),
        ("zeroed_grain", "on"),
    ];
    for (number, driver) in registry.iter().enumerate() {
        for (index, (name, value)) in kinds.into_iter().enumerate() {
            let mut options = CreateOptions { size: 9 << 20, ..CreateOptions::default() };
            if !name.is_empty() {
                options.options.set(name, value);
            }
            let file = Arc::new(MemoryStorage::new("image"));
            if driver.create(file.clone(), "image", &options, &environment, &Task::quiet()).is_err() {
                continue;
            }
            let len = file.len().expect("memory has a length") as usize;
            let bytes = input_of(&file.read_vec(0, len).expect("memory is read"));
            for choice in 0..4 {
                let head = [(number as u8) << 2 | choice];
                seeds.put("block_formats", &format!("{}-{index}-{choice}", driver.name()), &[&head, &bytes]);
            }
        }
    }
}

fn container(seeds: &Seeds<'_>) {
    let mut file = ContainerWriter::new(Vec::new()).expect("a vector takes everything");
    for (kind, address, payload) in [
        (ChunkKind::Spec, 0, &b"{}"[..]),
        (ChunkKind::Record, 0, b"record"),
        (ChunkKind::Memory, 0x1000, b"memory"),
    ] {
        file.chunk(kind, address, payload).expect("a vector takes everything");
    }
    let file = file.finish().expect("a vector takes everything");
    seeds.put("state_container", "whole", &[&[0], &file]);
    seeds.put("state_container", "repaired", &[&[1], &file]);
}

fn machine(seeds: &Seeds<'_>) {
    let mut spec = MachineSpec::new("fuzz", 1, 16 << 20);
    spec.cpu_model = CpuModel::Portable1;
    spec.uuid = "0".repeat(32);
    let (parts, _events) = guest::parts();
    let machine = Machine::new(spec.clone(), parts).expect("a machine");
    let json = serde_json::to_vec(&spec).expect("it is JSON");
    let file = machine.save(&json, Vec::new()).expect("it can be saved");
    seeds.put("machine_saved", "whole", &[&[0], &file]);
    seeds.put("machine_saved", "repaired", &[&[1], &file]);
    messages(seeds, &spec);
}

fn messages(seeds: &Seeds<'_>, spec: &MachineSpec) {
    let spec = serde_json::to_string(spec).expect("it is JSON");
    let texts = [
        format!("{{\"Created\":{spec}}}"),
        "\"Booted\"".into(),
        "{\"Answer\":{\"Ok\":{\"Stats\":[[[\"exits\",3]]]}}}".into(),
        "{\"Answer\":{\"Err\":\"no\"}}".into(),
        "{\"Ended\":{\"Error\":\"why\"}}".into(),
        format!(
            "{{\"spec\":{spec},\"kvm\":false,\"kernel\":true,\"initrd\":true,\"saved\":false,\"no_reboot\":false,\"paused\":false}}"
        ),
    ];
    for (n, text) in texts.iter().enumerate() {
        let head = [text.len() as u8, (text.len() >> 8) as u8, n as u8];
        seeds.put("broker_messages", &format!("message-{n}"), &[&head, text.as_bytes()]);
    }
}

fn http(seeds: &Seeds<'_>) {
    let requests = [
        ("info", "GET /v1/vm HTTP/1.1\r\nHost: umbra\r\n\r\n"),
        ("stats", "GET /v1/stats HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        ("save", "PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 13\r\n\r\n{\"path\":\"/a\"}"),
        ("pause", "PUT /v1/vm/pause HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"),
        ("unknown", "PUT /v1/none HTTP/1.1\r\n\r\n"),
        ("two-lengths", "PUT /v1/vm HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
    ];
    for (name, text) in requests {
        seeds.put("server_http", &format!("request-{name}"), &[&[0], text.as_bytes()]);
    }
    let info = "{\"name\":\"web\",\"engine\":\"soft\",\"state\":\"paused\",\"cpus\":2,\"memory\":1,\"broker_pid\":1,\"worker_pid\":2}";
    let ok = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{info}", info.len());
    seeds.put("server_http", "answer-ok", &[&[1], ok.as_bytes()]);
    let refused = "HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}";
    seeds.put("server_http", "answer-refused", &[&[1], refused.as_bytes()]);
}

/// Code that a fuzzer would take long to put together, for the modes in which it means something.
const CODE: &[(&str, &[u8])] = &[
    ("integer", &[0x01, 0xd8, 0xf7, 0xf3, 0x0f, 0xaf, 0xc3, 0x0f, 0xa3, 0x07, 0xd3, 0xe0, 0x0f, 0xc1, 0x07]),
    ("strings", &[0xb9, 5, 0, 0, 0, 0xf3, 0xa4, 0xf3, 0xab, 0xf2, 0xae, 0xf3, 0xa6, 0xf3, 0x6c, 0xf3, 0x6e]),
    (
        "vector",
        &[0x66, 0x0f, 0x6f, 0x07, 0xc5, 0xfd, 0x58, 0xc1, 0xc4, 0xe2, 0x7d, 0x98, 0xc1, 0x0f, 0xae, 0x07],
    ),
    (
        "x87",
        &[
            0xdd, 0x07, 0xd9, 0xc0, 0xde, 0xc1, 0xd9, 0xfe, 0xdb, 0x3f, 0x9b, 0xdd, 0x37, 0xdd, 0x27, 0xd9,
            0x37,
        ],
    ),
    (
        "xsave",
        &[
            0xb8, 0xff, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x27, 0x0f, 0xae, 0x2f, 0x0f, 0xc7, 0x27, 0x0f,
            0x01, 0xd0,
        ],
    ),
    (
        "system",
        &[
            0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x0f, 0x01, 0x3f, 0x0f, 0x32, 0x0f, 0x30, 0x0f, 0xa2, 0x0f,
            0x31,
        ],
    ),
    (
        "segments",
        &[0x8e, 0xd8, 0x8e, 0xe3, 0x0f, 0xb4, 0x07, 0x0f, 0x00, 0xd8, 0x0f, 0x02, 0xc3, 0x0f, 0x03, 0xc3],
    ),
    (
        "calls",
        &[0x9a, 0, 0, 1, 0, 0x73, 0, 0xcb, 0xcf, 0xcd, 0x30, 0xcc, 0xf1, 0x0f, 0x05, 0x0f, 0x34, 0x0f, 0x35],
    ),
    ("atomics", &[0xf0, 0x0f, 0xb1, 0x07, 0x48, 0x0f, 0xc7, 0x0f, 0xf0, 0x48, 0x0f, 0xc1, 0x07, 0x87, 0x07]),
    ("ports", &[0xe4, 0x20, 0xe6, 0x20, 0xec, 0xee, 0xef, 0xed, 0xfa, 0xfb, 0xf4]),
    ("itself", &[0xc6, 0x05, 0, 0, 0, 0, 0x90, 0xff, 0x07, 0xeb, 0xf6]),
    (
        "debug",
        &[
            0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xf0, 0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d,
            0x90, 0x90,
        ],
    ),
];

fn code(seeds: &Seeds<'_>) {
    let mut guest = guest::Guest::new();
    for (n, (name, code)) in (0u8..).zip(CODE) {
        for (mode, user) in [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 0), (5, 1)] {
            // Mode, control bits, flags; pointers in all general registers; numbers in the vector registers.
            let control = n << 1 & !0x20 | 1;
            let head = [mode | user << 6, control, 2, 0x32, 0, 0];
            let registers = [15, 2, 4, 20, 17, 14, 15, 16, 1, 18, 19, 20, 21, 22, 14, 15, n + 1, 0];
            let bytes = [&head[..], &registers].concat();
            guest::write_tables(&guest.memory);
            let taken = guest.run(&guest::registers(&mut Input::new(&bytes)), false);
            assert!(taken, "the engine refuses the registers of {name}");
            let name = format!("{name}-{mode}{user}");
            // No interrupt, no patches.
            seeds.put("soft_code", &name, &[&bytes, &[1, 0], code]);
            if (n + mode).is_multiple_of(3) {
                // One byte of the saved state is another.
                seeds.put("soft_state", &name, &[&bytes, &[1, 30, 0, 1, 0], code]);
            }
        }
    }
}

/// Steps of devices are numbers; any will do to begin with.
fn steps(seeds: &Seeds<'_>) {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as u8
    };
    let devices =
        ["chipset_devices", "irqchip_devices", "pci_bus", "virtio_queue", "virtio_rng", "virtio_blk"];
    for target in devices.into_iter().chain(["apic_page", "x86_paging", "virtio_vsock"]) {
        for n in 0..6u8 {
            let bytes: Vec<u8> = (0..160).map(|_| next()).collect();
            seeds.put(target, &format!("steps-{n}"), &[&[n], &bytes]);
        }
    }
    // Page tables that point at themselves, in the three kinds of paging.
    for (name, cr0, cr4, efer) in [
        ("long", 0x8000_0001u32, 0x20u32, 0xd00u16),
        ("pae", 0x8000_0001, 0x20, 0),
        ("legacy", 0x8000_0001, 0x10, 0),
    ] {
        let head = [
            &cr0.to_le_bytes()[..],
            &cr4.to_le_bytes(),
            &efer.to_le_bytes(),
            &0x1000u64.to_le_bytes(),
            &[10, 1],
        ]
        .concat();
        let pdptes = [0x2001u64.to_le_bytes(); 4].concat();
        let linears = [0u64, 0x1234_5678, 0xffff_ffff_ffff_f000, 0x8000_0000].map(u64::to_le_bytes).concat();
        let table = [0x3007u64, 0x8000_0000_0000_4007, 0x20_0087, 0].map(u64::to_le_bytes).concat();
        seeds.put("x86_paging", name, &[&head, &pdptes, &[3], &linears, &table]);
    }
}

/// Small images of each kind, with data, zeroes, compressed clusters, snapshots and a bitmap in them.
fn images(seeds: &Seeds<'_>) {
    let environment = disk::environment(&[]);
    let driver = environment.registry.get("qcow2").expect("it is there").clone();
    for (name, options) in [
        ("plain", &[("cluster_size", "512")][..]),
        ("v2", &[("cluster_size", "512"), ("compat", "0.10")]),
        ("bits", &[("cluster_size", "512"), ("refcount_bits", "1"), ("lazy_refcounts", "on")]),
        ("zstd", &[("cluster_size", "512"), ("compression_type", "zstd"), ("refcount_bits", "64")]),
        ("extended", &[("cluster_size", "16k"), ("extended_l2", "on")]),
    ] {
        let storage = Arc::new(MemoryStorage::new(name));
        let create = CreateOptions {
            size: 40 << 10,
            options: options.iter().copied().collect(),
            ..CreateOptions::default()
        };
        driver.create(storage.clone(), name, &create, &environment, &Task::quiet()).expect("an image");
        let bytes = |storage: &MemoryStorage| storage.read_vec(0, storage.len().expect("memory") as usize);
        let environment = disk::environment(&bytes(&storage).expect("memory"));
        let image = Disk::open(&environment, &disk::spec(false).writable()).expect("it opens");
        let unit = image.geometry().unit;
        image.write(700, &[1; 900]).expect("a write");
        image.write_zeroes(4096, 1024, true).expect("zeroes");
        image.write_compressed(unit, &vec![3; unit as usize]).expect("a compressed write");
        let info = SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() };
        // Refcounts of one bit allow none.
        let _ = image.snapshot_create(&info);
        image.write(0, &[2; 512]).expect("a write");
        let _ = image
            .drained(|node| node.format().bitmaps().map_or(Ok(()), |bitmaps| bitmaps.add("b", 512, true)));
        image.close().expect("closing");
        let file = environment.opener.open(&FileSpec::file("image"), &FileStorageSpec::new(Access::Read));
        let file = file.expect("it is there");
        let bytes = file.read_vec(0, file.len().expect("memory") as usize).expect("memory");
        seeds.put("qcow2_open", name, &[&bytes]);
        let steps: Vec<u8> = (0..24u8).flat_map(|step| [step, 0, step * 8, 0, 0, step]).collect();
        seeds.put("qcow2_rw", name, &[&steps, &bytes]);
    }
}

/// Conversations of both sides that are right, and requests and replies by turns.
fn conversations(seeds: &Seeds<'_>) {
    // The first byte says whether the export is read-only, the next what the rest is.
    for (name, structured) in [("chunks", true), ("simple", false)] {
        seeds.put("nbd_server", name, &[&[0, 0], &nbd::client_opening(structured)]);
        seeds.put("nbd_client", name, &[&[0, 0], &nbd::server_opening(structured)]);
    }
    let list = [b"IHAVEOPT", &[0, 0, 0, 3, 0, 0, 0, 0][..]].concat();
    seeds.put("nbd_server", "list", &[&[0, 0, 0, 0, 0, 3], &list]);
    for turn in 0..8u8 {
        let steps: Vec<u8> =
            (0..200u8).map(|step| step.wrapping_mul(turn | 1).rotate_left(u32::from(turn))).collect();
        seeds.put("nbd_server", &format!("requests-{turn}"), &[&[turn & 1, 3], &steps]);
        seeds.put("nbd_client", &format!("replies-{turn}"), &[&[turn & 1, 3], &steps]);
    }
}

/// Steps of `net_user`: a segment of the guest's with these flags and so much payload, from one of four ports.
fn segment(port: u8, flags: u8, len: u8) -> Vec<u8> {
    vec![15, 1, 1, flags, 0, port, 0, 0xff, 0x7f, len, 0, 1, 1, 0, 0, 1, 1, 0]
}

/// Connections of a guest's from their beginning to each of their ends, and what else it may say.
fn networks(seeds: &Seeds<'_>) {
    let (syn, ack, fin, rst) = (2, 16, 17, 4);
    let (pump, world) = (&[7u8, 7][..], &[5u8, 0, 2, 0xff, 0x03][..]);
    let begin = [&[1][..], &segment(0, syn, 0), pump, &segment(0, ack, 0)].concat();
    let talk = [&begin[..], world, pump, &segment(0, ack, 99), pump, &segment(0, ack, 0), pump].concat();
    let ends = [&segment(0, fin, 0)[..], pump, &[5, 0, 1], pump, &segment(0, ack, 0), pump].concat();
    let breaks = [&segment(0, rst, 0)[..], pump].concat();
    let many: Vec<u8> = (0..8).flat_map(|port| [&segment(port, syn, 0)[..], pump].concat()).collect();
    let late = [&[4, 0xff, 0xff][..], pump, &[4, 0xff, 0xff], pump].concat();
    for (name, pieces) in [
        ("ends", [&talk[..], &ends].as_slice()),
        ("breaks", &[&talk, &breaks]),
        ("late", &[&talk, world, pump, &late, &ends]),
        ("cuts", &[&[1, 3, 0], &begin[1..], world, world, world, pump, &ends]),
        ("many", &[&[1], &many, &late]),
    ] {
        seeds.put("net_user", name, pieces);
    }
    for kind in 0..4u8 {
        let datagram = [1, 0, kind, 40, 9, 9, 9, 9];
        let steps: Vec<u8> = (0..120u8).map(|step| step.wrapping_mul(2 * kind + 1)).collect();
        seeds.put("net_user", &format!("datagrams-{kind}"), &[&[1], &datagram, &steps, pump]);
    }
}

fn main() {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("seeds: give the folder of the corpora");
        std::process::exit(2);
    };
    let seeds = Seeds(folder.as_ref());
    states(&seeds);
    container(&seeds);
    machine(&seeds);
    http(&seeds);
    code(&seeds);
    steps(&seeds);
    images(&seeds);
    foreign_images(&seeds);
    conversations(&seeds);
    networks(&seeds);
}
