//! `umbra image serve`, and names of NBD exports in the other commands: with each other, and with QEMU's programs.
//!
//! The reference is QEMU 10.0 (Debian package qemu-utils), unpacked by `cargo xtask deps` or the machine's own. A test that
//! lacks it fails: it would show nothing.

#[path = "image/tools.rs"]
#[allow(dead_code)]
mod tools;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tools::{Tool, pattern, plain};

/// A program of QEMU's.
fn qemu(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_umbra")).ancestors().nth(2).unwrap();
    let cache = std::env::var_os("UMBRA_TEST_CACHE").map_or(target.join("test-cache"), PathBuf::from);
    let places = [cache.join("bin").join(name), Path::new("/usr/bin").join(name)];
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| {
        panic!(
            "{name} is not here, so nothing is compared; `cargo xtask deps` unpacks it (Debian: qemu-utils)"
        )
    })
}

fn theirs(tool: &Tool, words: &[&str]) -> String {
    let output = Command::new(qemu("qemu-img")).args(words).current_dir(&tool.folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// `umbra image serve` in a folder, and what it printed first.
struct Serving {
    child: Child,
    first: String,
}

impl Serving {
    fn start(tool: &Tool, words: &[&str]) -> Serving {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.args(["image", "serve"]).args(words).current_dir(&tool.folder);
        command
            .env("TMPDIR", &tool.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        Serving { child, first }
    }

    /// Waits for its end: exit code and what it complained of.
    fn end(mut self) -> (Option<i32>, String) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut errors = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                return (status.code(), errors);
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it ends");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn interrupt(self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.end()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const FINE: (Option<i32>, String) = (Some(0), String::new());

fn left(tool: &Tool) -> Vec<String> {
    let list = std::fs::read_dir(&tool.folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut list: Vec<String> = list.map(|name| name.to_string_lossy().into_owned()).collect();
    list.retain(|name| name != "qemu-img");
    list.sort();
    list
}

#[test]
fn images_are_served_until_the_last_client_leaves() {
    let tool = Tool::ours();
    tool.write("source", &pattern(5 << 20));
    tool.succeed(&["convert", "-f", "raw", "-O", "qcow2", "source", "image"]);
    let serving = Serving::start(&tool, &["-f", "qcow2", "-k", "s", "-x", "a disk", "image"]);
    let told = "serving image (qcow2, 5 MiB) at nbd+unix:///a%20disk?socket=s\n";
    assert_eq!(serving.first, told);
    assert_eq!(theirs(&tool, &["convert", "-O", "raw", "nbd+unix:///a%20disk?socket=s", "copy"]), "");
    assert_eq!(serving.end(), FINE);
    assert!(std::fs::read(tool.path("copy")).unwrap() == std::fs::read(tool.path("source")).unwrap());
    assert_eq!(left(&tool), ["copy", "image", "source"], "its socket goes");
}

#[test]
fn a_persistent_server_ends_when_it_is_asked_to() {
    let tool = Tool::ours();
    tool.write("source", &pattern(3 << 20));
    tool.write("zero", &[0; 2 << 20]);
    tool.succeed(&["convert", "-f", "raw", "-O", "qcow2", "source", "image"]);
    // A disk that is only guessed to be raw would not become a qcow2 image.
    let raw = "two=json:{'driver':'raw','file.filename':'zero'}";
    let words = ["--json", "-t", "-k", "s", "-p", "0", "one=image", raw];
    let mut serving = Serving::start(&tool, &words);
    assert_eq!(serving.first, "{\n");
    // The rest of the JSON was printed with it.
    serving.first.clear();
    let uri = |name: &str| format!("nbd+unix:///{name}?socket=s");
    let (one, two) = (uri("one"), uri("two"));
    // Both tools tell the same of an export.
    for words in [
        vec!["info", "--output=json", &one],
        vec!["info", &one],
        vec!["map", "--output=json", &one],
        vec!["map", &one],
        vec!["map", "--output=json", "-f", "raw", &two],
    ] {
        let ours = tool.succeed(&words);
        assert_eq!(plain(&ours), plain(&theirs(&tool, &words)), "{words:?}");
    }
    tool.succeed(&["compare", "-f", "raw", "source", &one]);
    // What one tool writes, the other reads; a zeroed disk shows what was written.
    tool.succeed(&["resize", "-q", "-f", "raw", "--shrink", "source", "2M"]);
    tool.succeed(&["convert", "-f", "raw", "-O", "raw", "source", &two]);
    theirs(&tool, &["compare", "-f", "raw", "-F", "raw", "source", &two]);
    tool.write("source", &[0; 2 << 20]);
    tool.succeed(&["convert", "-f", "raw", "-O", "raw", "source", &two]);
    tool.succeed(&["compare", "-f", "raw", "-F", "raw", "source", &two]);
    // A disk in a disk.
    tool.succeed(&["create", "-q", "-f", "qcow2", &two, "1M"]);
    let info = theirs(&tool, &["info", &two]);
    assert!(info.contains("file format: qcow2"), "{info}");
    tool.succeed(&["check", "-f", "qcow2", &two]);
    let options = "driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=s,file.export=two";
    let info = tool.succeed(&["info", "--image-opts", options]);
    assert!(info.starts_with("image: nbd+unix:///two?socket=s\nfile format: qcow2\n"), "{info}");
    // As backing file, by both ways to name it.
    for name in [
        "nbd+unix:///one?socket=s",
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"path\":\"s\",\"export\":\"one\"}}",
    ] {
        tool.succeed(&["create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", "top", "3M"]);
        theirs(&tool, &["compare", "-f", "qcow2", "-F", "raw", "top", &one]);
        tool.succeed(&["compare", "-f", "qcow2", "-F", "raw", "top", &one]);
        let refused = tool.run(&["map", "--no-implicit-backing", "top"]);
        assert_eq!(refused.code, 1, "{refused:?}");
    }
    assert_eq!(serving.interrupt(), FINE);
    let gone = tool.run(&["info", &one]);
    let wanted =
        format!("qemu-img: Could not open '{one}': Failed to connect to 's': No such file or directory\n");
    assert_eq!((gone.code, gone.errors.as_str()), (1, wanted.as_str()));
    tool.succeed(&["check", "image"]);
    assert_eq!(left(&tool), ["image", "source", "top", "zero"]);
}

#[test]
fn a_snapshot_keeps_nothing() {
    let tool = Tool::ours();
    let source = pattern(3 << 20);
    tool.write("source", &source);
    tool.succeed(&["convert", "-f", "raw", "-O", "qcow2", "source", "image"]);
    let before = std::fs::read(tool.path("image")).unwrap();
    let serving = Serving::start(&tool, &["-t", "-s", "-k", "s", "image"]);
    let uri = "nbd+unix://?socket=s";
    theirs(&tool, &["compare", "-f", "raw", "-F", "raw", "source", uri]);
    tool.write("other", &pattern(3 << 20).into_iter().map(|byte| !byte).collect::<Vec<u8>>());
    theirs(&tool, &["convert", "-n", "-f", "raw", "-O", "raw", "other", uri]);
    tool.succeed(&["compare", "-f", "raw", "-F", "raw", "other", uri]);
    assert_eq!(left(&tool), ["image", "other", "s", "source"], "the overlay has no name");
    assert_eq!(serving.interrupt(), FINE);
    assert!(std::fs::read(tool.path("image")).unwrap() == before);
}

#[test]
fn a_read_only_export_stays_as_it_is() {
    let tool = Tool::ours();
    tool.write("image", &[7; 1 << 20]);
    let serving = Serving::start(&tool, &["-r", "-t", "-f", "raw", "-k", "s", "image"]);
    assert!(serving.first.contains("read-only"), "{}", serving.first);
    let uri = "nbd+unix://?socket=s";
    tool.succeed(&["compare", "-f", "raw", "-F", "raw", "image", uri]);
    tool.write("other", &[8; 1 << 20]);
    let refused = tool.run(&["convert", "-n", "-f", "raw", "-O", "raw", "other", uri]);
    assert!(refused.code == 1 && refused.errors.contains("read-only"), "{refused:?}");
    let mut write = Command::new(qemu("qemu-io"));
    write.args(["-f", "raw", "-c", "write 0 512", uri]).current_dir(&tool.folder);
    assert!(!write.output().unwrap().status.success());
    drop(serving);
    assert!(std::fs::read(tool.path("image")).unwrap() == [7; 1 << 20]);
}

/// An authority, and certificates by it.
fn certificates(tool: &Tool) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::create_dir(tool.path("tls")).unwrap();
    tool.write("tls/ca-cert.pem", params.self_signed(&key).unwrap().pem().as_bytes());
    let issuer = Issuer::new(params, key);
    for side in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        tool.write(&format!("tls/{side}-cert.pem"), certificate.pem().as_bytes());
        tool.write(&format!("tls/{side}-key.pem"), key.serialize_pem().as_bytes());
    }
}

#[test]
fn tls_by_folders_and_objects() {
    let tool = Tool::ours();
    certificates(&tool);
    for name in ["image", "same"] {
        tool.write(name, &pattern(2 << 20));
    }
    let serving =
        Serving::start(&tool, &["-t", "-f", "raw", "-p", "0", "-x", "e", "--tls-creds", "tls", "image"]);
    let port = serving.first.trim().rsplit_once(':').and_then(|(_, rest)| rest.strip_suffix("/e"));
    let port = port.unwrap_or_else(|| panic!("{}", serving.first)).to_owned();
    assert!(serving.first.contains("nbds://127.0.0.1:"), "{}", serving.first);
    let object = "tls-creds-x509,id=t,dir=tls,endpoint=client";
    let options = format!("driver=nbd,host=localhost,port={port},export=e,tls-creds=t");
    let image = "driver=raw,file.driver=file,file.filename=same";
    let words = ["compare", "--object", object, "--image-opts", image, &options];
    tool.succeed(&words);
    theirs(&tool, &words);
    tool.succeed(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        "same",
        &format!("nbds://127.0.0.1:{port}/e?tls-certificates=tls"),
    ]);
    for (name, why) in [
        (format!("nbd://127.0.0.1:{port}/e"), "wants TLS"),
        (format!("nbds://127.0.0.1:{port}/e"), "TLS"),
        (format!("nbds://127.0.0.1:{port}/e?tls-certificates=tls&tls-hostname=other"), "certificate"),
    ] {
        let refused = tool.run(&["info", &name]);
        assert!(refused.code == 1 && refused.errors.contains(why), "{name}: {refused:?}");
    }
    let wrong = ["info", "--object", "tls-creds-x509,id=t,dir=tls,endpoint=server", "--image-opts", &options];
    assert!(tool.run(&wrong).errors.contains("client endpoint"));
    let missing = tool.run(&["info", "--image-opts", &options]);
    assert!(missing.errors.contains("No TLS credentials with id 't'"), "{missing:?}");
    let (code, errors) = serving.interrupt();
    assert_eq!(code, Some(0));
    assert!(errors.contains("a client was let go"), "{errors}");
}

#[test]
fn our_tool_with_qemu_nbd() {
    let tool = Tool::ours();
    let source = pattern(4 << 20);
    tool.write("source", &source);
    tool.succeed(&["convert", "-f", "raw", "-O", "qcow2", "source", "image"]);
    let mut command = Command::new(qemu("qemu-nbd"));
    command
        .args(["-t", "-e", "4", "-f", "qcow2", "-x", "e", "-k", &tool.path("s"), "image"])
        .current_dir(&tool.folder);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !Path::new(&tool.path("s")).exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "qemu-nbd listens");
        std::thread::sleep(Duration::from_millis(10));
    }
    let uri = format!("nbd+unix:///e?socket={}", tool.path("s"));
    let outcome = std::panic::catch_unwind(|| {
        for words in [
            vec!["info", "--output=json", &uri],
            vec!["info", "-f", "raw", &uri],
            vec!["map", "--output=json", &uri],
            vec!["measure", "-O", "qcow2", &uri],
        ] {
            assert_eq!(plain(&tool.succeed(&words)), plain(&theirs(&tool, &words)), "{words:?}");
        }
        tool.succeed(&["convert", "-O", "qcow2", &uri, "out.qcow2"]);
        theirs(&tool, &["compare", "source", "out.qcow2"]);
        tool.write("other", &source.iter().map(|byte| !byte).collect::<Vec<u8>>());
        tool.succeed(&["convert", "-n", "-f", "raw", "-O", "raw", "other", &uri]);
        theirs(&tool, &["compare", "-f", "raw", "-F", "raw", "other", &uri]);
        tool.succeed(&["dd", "-f", "raw", "-O", "raw", "bs=64k", "count=3", &format!("if={uri}"), "of=part"]);
        assert!(
            std::fs::read(tool.path("part")).unwrap()
                == std::fs::read(tool.path("other")).unwrap()[..3 << 16]
        );
        for (words, message) in [
            (vec!["info", "nbd://localhost:1/x"], "Failed to connect to 'localhost:1': Connection refused"),
            (vec!["info", "nbd:foo"], "error parsing address 'foo'"),
            (vec!["info", "--image-opts", "driver=nbd,export=x"], "NBD server address missing"),
        ] {
            let (ours, theirs) =
                (tool.run(&words), Command::new(qemu("qemu-img")).args(&words).output().unwrap());
            let theirs = String::from_utf8_lossy(&theirs.stderr).into_owned();
            assert!(ours.errors == theirs && ours.errors.contains(message), "{ours:?}, theirs {theirs}");
        }
    });
    let _ = child.kill();
    let _ = child.wait();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_copy_from_a_server_that_hangs_is_interrupted() {
    let tool = Tool::ours();
    tool.write("image", &pattern(64 << 20));
    let serving = Serving::start(&tool, &["-t", "-r", "-f", "raw", "-k", "s", "image"]);
    let mut copy = Command::new(env!("CARGO_BIN_EXE_umbra"));
    copy.args(["image", "convert", "-f", "raw", "-r", "4M", "-O", "qcow2", "nbd+unix://?socket=s", "copy"]);
    let mut copy = copy.current_dir(&tool.folder).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let server = rustix::process::Pid::from_child(&serving.child);
    rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(copy.try_wait().unwrap().is_none(), "it waits for the server");
    let began = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&copy), rustix::process::Signal::INT)
        .unwrap();
    assert!(!copy.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(8));
    assert_eq!(left(&tool), ["image", "s"], "what is not complete is removed");
    rustix::process::kill_process(server, rustix::process::Signal::CONT).unwrap();
    let (code, _) = serving.interrupt();
    assert_eq!((code, left(&tool)), (Some(0), vec!["image".to_owned()]));
}

#[test]
fn what_was_written_outlives_an_end_by_a_signal() {
    let tool = Tool::ours();
    tool.succeed(&["create", "-q", "-f", "qcow2", "image", "64M"]);
    tool.write("source", &pattern(64 << 20));
    let serving = Serving::start(&tool, &["-t", "-f", "qcow2", "-k", "s", "image"]);
    let mut copy = Command::new(env!("CARGO_BIN_EXE_umbra"));
    copy.args([
        "image",
        "convert",
        "-n",
        "-f",
        "raw",
        "-r",
        "16M",
        "-O",
        "raw",
        "source",
        "nbd+unix://?socket=s",
    ]);
    let copy = copy.current_dir(&tool.folder).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    // In the middle of the copy: what was ordered is carried out, and the client is told.
    let (code, errors) = serving.interrupt();
    assert_eq!(code, Some(0), "{errors}");
    let copied = copy.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&copied.stderr).into_owned();
    assert!(!copied.status.success() && told.contains("has closed the connection"), "{told}");
    tool.succeed(&["check", "image"]);
    theirs(&tool, &["check", "image"]);
    assert_eq!(left(&tool), ["image", "source"]);
}

#[test]
fn wrong_words_are_told() {
    let tool = Tool::ours();
    tool.write("image", &[0; 4096]);
    for (words, message) in [
        ("serve", "Expecting an image file name"),
        ("serve a b", "Several images need names: NAME=FILE"),
        ("serve -x n x=a y=b", "--export-name is for one image"),
        ("serve -k s x=image x=image -r -f raw", "export name 'x' is there twice"),
        ("serve -k s -e 5000 image", "shared"),
        ("serve -p 70000 -f raw image", "Invalid port '70000'"),
        ("serve -k s --tls-any-client -f raw image", "--tls-any-client needs --tls-creds"),
        ("serve -k s --tls-creds nowhere -f raw image", "server-cert.pem"),
        ("serve -k nowhere/s -f raw image", "cannot listen on 'nowhere/s': No such file or directory"),
        ("serve -k s missing", "Could not open 'missing'"),
        ("serve -k s --json --output=bogus -f raw image", "--output"),
        ("serve -k image -f raw image", "cannot listen on 'image': Address already in use"),
    ] {
        let done = tool.run(&words.split(' ').collect::<Vec<_>>());
        assert!(done.code == 1 && done.errors.contains(message), "{words}: {done:?}");
    }
    assert_eq!(left(&tool), ["image"]);
}
