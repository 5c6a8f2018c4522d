use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::{ApiError, Client, ClientError, Manage, Server, Status, VcpuStats, VmInfo, VmState};

#[derive(Default)]
struct Fake(Mutex<Vec<String>>);

impl Fake {
    fn did(&self, what: impl Into<String>) -> Result<(), ApiError> {
        self.0.lock().unwrap().push(what.into());
        Ok(())
    }
}

impl Manage for Fake {
    fn info(&self) -> Result<VmInfo, ApiError> {
        let (name, engine) = ("web".into(), "soft".into());
        Ok(VmInfo {
            name,
            engine,
            state: VmState::Paused,
            cpus: 2,
            memory: 1 << 30,
            broker_pid: 1,
            worker_pid: 2,
        })
    }
    fn stats(&self) -> Result<Vec<VcpuStats>, ApiError> {
        Ok(vec![VcpuStats::from([("exits".to_owned(), 3)])])
    }
    fn pause(&self) -> Result<(), ApiError> {
        self.did("pause")
    }
    fn resume(&self) -> Result<(), ApiError> {
        Err(ApiError::new(Status::Conflict, "it runs"))
    }
    fn save(&self, path: &Path) -> Result<(), ApiError> {
        self.did(format!("save {}", path.display()))
    }
    fn power_button(&self) -> Result<(), ApiError> {
        self.did("power")
    }
    fn stop(&self) -> Result<(), ApiError> {
        self.did("stop")
    }
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("umbra-server-test-{}-{name}", std::process::id()))
}

fn raw(path: &Path, request: &[u8]) -> String {
    let mut s = UnixStream::connect(path).unwrap();
    s.write_all(request).unwrap();
    s.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_client_manages_a_machine() {
    let path = socket("manage");
    let fake = Arc::new(Fake::default());
    let server = Server::start(&path, fake.clone()).unwrap();
    let client = Client::new(&path);
    assert_eq!(client.info().unwrap().state, VmState::Paused);
    client.act("pause").unwrap();
    client.save(Path::new("/tmp/x y")).unwrap();
    assert!(matches!(client.act("resume"), Err(ClientError::Refused(why)) if why == "it runs"));
    assert!(matches!(client.save(Path::new("relative")), Err(ClientError::Refused(_))));
    assert!(matches!(client.act("fly"), Err(ClientError::Refused(_))));
    assert_eq!(*fake.0.lock().unwrap(), ["pause", "save /tmp/x y"]);
    drop(server);
    assert!(matches!(client.info(), Err(ClientError::NotRunning(_))));
}

#[test]
fn bad_requests_get_an_answer_and_harm_nobody() {
    let path = socket("bad");
    let _server = Server::start(&path, Arc::new(Fake::default())).unwrap();
    assert!(raw(&path, b"\x00\x01\x02\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(raw(&path, b"GET /v1/vm HTTP/1.1\r\n").starts_with("HTTP/1.1 400"));
    assert!(raw(&path, b"PUT /v1/vm HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(raw(&path, b"GET /etc/passwd HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(
        raw(&path, b"PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
            .starts_with("HTTP/1.1 413")
    );
    assert!(
        raw(&path, b"PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]").starts_with("HTTP/1.1 400")
    );
    assert!(
        raw(&path, b"PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}").starts_with("HTTP/1.1 400")
    );
    assert!(raw(&path, b"GET /v1/stats HTTP/1.1\r\n\r\n").contains("\"exits\":3"));
    let mut flood = vec![b'a'; 100_000];
    flood.extend_from_slice(b"\r\n\r\n");
    let mut s = UnixStream::connect(&path).unwrap();
    // The server stops reading at its limit, so that the rest may not be taken.
    let _ = s.write_all(&flood);
    assert!(raw(&path, b"GET /v1/version HTTP/1.1\r\n\r\n").contains("\"api\":1"));
}

#[test]
fn a_dead_machines_socket_is_replaced_and_a_live_ones_is_not() {
    let path = socket("dead");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let _server = Server::start(&path, Arc::new(Fake::default())).unwrap();
    let again = Server::start(&path, Arc::new(Fake::default()));
    assert_eq!(again.err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));
    assert!(Client::new(&path).info().is_ok(), "the live one still answers");
}
