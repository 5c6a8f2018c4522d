use std::io::Read;

use super::*;

#[test]
fn the_option_tells_context_id_and_path() {
    let device = |cid, uds: Option<&str>| VsockOption::Device { cid, uds: uds.map(PathBuf::from) };
    assert_eq!(parse("none"), Ok(VsockOption::None));
    assert_eq!(parse("cid=7,uds=/run/a,,b"), Ok(device(Some(7), Some("/run/a,b"))));
    assert_eq!(parse("uds=x"), Ok(device(None, Some("x"))));
    assert_eq!(parse("cid=3"), Ok(device(Some(3), None)));
    for wrong in ["", "cid=2", "cid=x", "cid=4294967295", "uds=", "cid=3,cid=4", "path=x", "uds=a,uds=b"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn saved_machines_keep_what_they_had() {
    let with = |vsock| MachineSpec { vsock, ..MachineSpec::new("one", 1, 64 << 20) };
    let (yes, no) = (with(Some(VsockSpec { cid: 5 })), with(None));
    let path = |text: &str| VsockOption::Device { cid: None, uds: Some(text.into()) };
    assert_eq!(of_saved(&yes, Some(&path("/x")), "one").unwrap(), Some("/x".into()));
    assert_eq!(of_saved(&no, None, "one").unwrap(), None);
    assert!(of_saved(&no, Some(&path("/x")), "one").is_err());
    assert!(of_saved(&yes, Some(&VsockOption::None), "one").is_err());
    assert!(of_saved(&yes, Some(&parse("cid=5").unwrap()), "one").is_err());
}

#[test]
fn the_worker_gets_connections_to_paths_with_a_port_and_no_others() {
    let path = std::env::temp_dir().join(format!("umbra-vsock-path-{}", std::process::id()));
    let port = path.with_file_name(format!("umbra-vsock-path-{}_1234", std::process::id()));
    let _ = std::fs::remove_file(&port);
    let server = UnixListener::bind(&port).unwrap();
    let (listening, descriptors) = Listening::start(&path).unwrap();
    assert!(Listening::start(&path).is_err(), "there is one already");
    let mut host = make(&mut descriptors.into_iter()).unwrap();
    assert!(host.outside.connect(99).is_err());
    let ours = UnixStream::from(host.outside.connect(1234).unwrap());
    std::io::Write::write_all(&mut &ours, b"hello").unwrap();
    let mut hello = [0; 5];
    server.accept().unwrap().0.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop((listening, host));
    assert!(!path.exists());
    std::fs::remove_file(port).unwrap();
    // What a dead machine left is replaced, and a file of somebody's is not.
    drop(UnixListener::bind(&path).unwrap());
    let known = path.with_extension("known");
    let (listening, _descriptors) = Listening::start(&path).unwrap();
    let listening = listening.known_as(known.clone()).unwrap();
    UnixStream::connect(&known).unwrap();
    drop(listening);
    assert!(std::fs::symlink_metadata(&known).is_err() && !path.exists());
    std::fs::write(&path, "mine").unwrap();
    assert!(Listening::start(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    std::fs::remove_file(path).unwrap();
}
