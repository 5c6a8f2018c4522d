//! Every kind of LUKS that qemu-img creates, made here and read there, and the other way round.

use crate::features_test::{Bench, bench, fill};
use crate::interchange_test::{SECRET, read_all, run};
use crate::test_help::spec;
use crate::{CreateOptions, Disk, FileSpec, NodeSpec, Task, open_secret};

/// Cipher, mode, vectors, hash of the vectors, hash of the passphrase.
const KINDS: [(&str, &str, &str, &str, &str); 12] = [
    ("aes-128", "ecb", "plain", "", "md5"),
    ("aes-256", "ctr", "plain64", "", "ripemd160"),
    ("aes-128", "ctr", "essiv", "sha256", "sha224"),
    ("aes-256", "cbc", "essiv", "md5", "sha384"),
    ("aes-192", "xts", "plain", "", "sm3"),
    ("aes-256", "xts", "essiv", "sm3", "sha512"),
    ("serpent-128", "cbc", "essiv", "md5", "sha1"),
    ("serpent-256", "ctr", "plain", "", "sha256"),
    ("twofish-128", "ecb", "plain64", "", "sha1"),
    ("twofish-192", "xts", "plain64", "", "sha256"),
    ("cast5-128", "cbc", "plain64", "", "sha1"),
    ("cast5-128", "ctr", "plain", "", "sha256"),
];

fn luks(bench: &Bench) -> NodeSpec {
    let mut luks = spec(&bench.path());
    luks.format = Some("luks".to_owned());
    luks.options = [("key-secret", "s")].into_iter().collect();
    luks
}

#[test]
fn every_cipher_is_qemus() {
    let Some(bench) = bench("luks-kinds") else { return };
    let out = bench.folder.path("out");
    let image = format!("driver=luks,key-secret=s,file.filename={}", bench.path());
    for (index, kind) in KINDS.into_iter().enumerate() {
        let (cipher, mode, iv, iv_hash, hash) = kind;
        let mut options = vec![
            ("key-secret", "s"),
            ("iter-time", "10"),
            ("cipher-alg", cipher),
            ("cipher-mode", mode),
            ("ivgen-alg", iv),
            ("hash-alg", hash),
        ];
        if !iv_hash.is_empty() {
            options.push(("ivgen-hash-alg", iv_hash));
        }
        bench.create_as("luks", &options, 1 << 20);
        let disk = Disk::open(&bench.env, &luks(&bench)).unwrap();
        fill(&disk, 3);
        let bytes = read_all(&disk);
        disk.close().unwrap();
        run("qemu-img", &["convert", "--object", SECRET, "--image-opts", &image, "-O", "raw", &out]);
        assert!(std::fs::read(&out).unwrap() == bytes, "{kind:?}");
        if index % 4 != 1 {
            // What it has read it has written alike; it takes its time to make a header.
            continue;
        }
        let words: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let words = words.join(",");
        run(
            "qemu-img",
            &["create", "-q", "-f", "luks", "--object", SECRET, "-o", &words, &bench.path(), "1M"],
        );
        run("qemu-io", &["--object", SECRET, "--image-opts", "-c", "write -P 77 64k 3k", &image]);
        let disk = Disk::open(&bench.env, &luks(&bench)).unwrap();
        let bytes = read_all(&disk);
        assert!(bytes[1 << 16..(1 << 16) + 3072].iter().all(|&byte| byte == 77), "{kind:?} by qemu");
    }
}

#[test]
fn what_does_not_go_together_is_refused_as_qemu_does() {
    let Some(bench) = bench("luks-refused") else { return };
    for (cipher, mode, iv, said) in [
        ("cast5-128", "xts", "plain64", "Unsupported cipher mode xts"),
        ("cast5-128", "cbc", "essiv", "Cipher cast5-128 not supported with essiv"),
        ("3des", "cbc", "plain64", "3des"),
    ] {
        let words =
            format!("key-secret=s,iter-time=10,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={iv}");
        let create = CreateOptions {
            size: 1 << 20,
            options: words.split(',').filter_map(|word| word.split_once('=')).collect(),
            ..CreateOptions::default()
        };
        let storage = bench.env.opener.create(&FileSpec::file(bench.path())).unwrap();
        let driver = bench.env.registry.get("luks").unwrap();
        let refused = driver.create(storage, &bench.path(), &create, &bench.env, &Task::quiet());
        assert!(refused.unwrap_err().to_string().contains(said), "{words}");
    }
}

#[test]
fn a_header_in_a_file_of_its_own_is_qemus() {
    let Some(bench) = bench("luks-detached") else { return };
    let data = bench.folder.path("data");
    std::fs::write(&data, vec![0; 1 << 20]).unwrap();
    bench.create_as("luks", &[("key-secret", "s"), ("iter-time", "10"), ("detached-header", "on")], 1 << 20);
    let mut detached = luks(&bench);
    detached.options.set("header.filename", bench.path());
    detached.file = FileSpec::file(&data);
    let disk = Disk::open(&bench.env, &detached).unwrap();
    assert_eq!(disk.size(), 1 << 20);
    fill(&disk, 8);
    let bytes = read_all(&disk);
    disk.close().unwrap();
    let out = bench.folder.path("out");
    let header = bench.path();
    let image =
        format!("driver=luks,key-secret=s,file.filename={data},header.driver=file,header.filename={header}");
    run("qemu-img", &["convert", "--object", SECRET, "--image-opts", &image, "-O", "raw", &out]);
    assert!(std::fs::read(&out).unwrap() == bytes);
    assert!(Disk::open(&bench.env, &luks(&bench)).is_err(), "a header alone is no disk");
}

#[test]
fn a_secret_opens_another() {
    // openssl enc -aes-256-cbc -K 00..1f -iv 00..0f over "password".
    let key: Vec<u8> = (0..32).collect();
    let vector: Vec<u8> = (0..16).collect();
    let packed: [u8; 16] =
        [0x5a, 0x64, 0xb7, 0x4f, 0x05, 0x76, 0xbb, 0x89, 0x2d, 0x28, 0x0c, 0x48, 0xc7, 0x5a, 0x86, 0x80];
    assert_eq!(*open_secret(&key, &vector, &packed).unwrap(), b"password");
    assert!(open_secret(&key[1..], &vector, &packed).is_err());
    assert!(open_secret(&key, &vector[1..], &packed).is_err());
    assert!(open_secret(&key, &vector, &packed[1..]).is_err());
    assert!(open_secret(&[9; 32], &vector, &packed).is_err());
}
