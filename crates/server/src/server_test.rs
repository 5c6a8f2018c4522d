use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use std::time::Duration;

use crate::{
    ApiError, Client, ClientError, Console, Ended, Manage, Port, PortName, Protocol, Server, Status,
    VcpuStats, VmInfo, VmState,
};

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
            started_ms: 3,
            detached: true,
            ports: vec![],
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
    fn wait(&self, time: Duration) -> Result<Option<Ended>, ApiError> {
        if !self.0.lock().unwrap().contains(&"stop".to_owned()) {
            std::thread::sleep(time.min(Duration::from_millis(10)));
            return Ok(None);
        }
        Ok(Some(Ended { exit_code: 3, ending: "panic".into(), message: None }))
    }
    fn ports(&self) -> Result<Vec<Port>, ApiError> {
        Ok(vec![port(8080)])
    }
    fn add_port(&self, port: Port) -> Result<Port, ApiError> {
        self.did(format!("add {}", port.host)).map(|()| port)
    }
    fn remove_port(&self, port: PortName) -> Result<(), ApiError> {
        self.did(format!("remove {}", port.host))
    }
    fn console(&self) -> Result<Console, ApiError> {
        if self.0.lock().unwrap().contains(&"no console".to_owned()) {
            return Err(ApiError::new(Status::Conflict, "too many"));
        }
        Ok(Box::new(|mut stream| {
            stream.write_all(b"login: ").unwrap();
            let mut typed = String::new();
            stream.read_to_string(&mut typed).unwrap();
            stream.write_all(typed.to_uppercase().as_bytes()).unwrap();
        }))
    }
}

fn port(number: u16) -> Port {
    Port { protocol: Protocol::Tcp, host: ([127, 0, 0, 1], number).into(), guest_port: 80 }
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

#[test]
fn a_console_is_a_connection_of_its_own() {
    let path = socket("console");
    let fake = Arc::new(Fake::default());
    let _server = Server::start(&path, fake.clone()).unwrap();
    let client = Client::new(&path);
    let (mut stream, mut shown) = client.console().unwrap();
    stream.write_all(b"root\r").unwrap();
    // Others are answered meanwhile, however many consoles there are.
    let more: Vec<_> = (0..40).map(|_| client.console().unwrap()).collect();
    assert!(client.info().is_ok());
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.read_to_end(&mut shown).unwrap();
    assert_eq!(shown, b"login: ROOT\r");
    drop(more);
    fake.did("no console").unwrap();
    assert!(matches!(client.console(), Err(ClientError::Refused(why)) if why == "too many"));
    assert!(raw(&path, b"GET /v1/vm/console HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 426"));
    assert!(raw(&path, b"GET /v1/vm/console HTTP/1.1\r\nUpgrade: h2c\r\n\r\n").starts_with("HTTP/1.1 426"));
}

#[test]
fn ports_are_added_listed_and_removed() {
    let path = socket("ports");
    let fake = Arc::new(Fake::default());
    let _server = Server::start(&path, fake.clone()).unwrap();
    let client = Client::new(&path);
    assert_eq!(client.ports().unwrap(), [port(8080)]);
    assert_eq!(client.add_port(&port(81)).unwrap(), port(81));
    client.remove_port(&PortName { protocol: Protocol::Udp, host: port(82).host }).unwrap();
    assert_eq!(*fake.0.lock().unwrap(), ["add 127.0.0.1:81", "remove 127.0.0.1:82"]);
    let wrong = b"POST /v1/vm/ports HTTP/1.1\r\nContent-Length: 22\r\n\r\n{\"host\":\"localhost:1\"}";
    assert!(raw(&path, wrong).starts_with("HTTP/1.1 400"));
}

#[test]
fn who_waits_hears_of_the_end() {
    let path = socket("wait");
    let fake = Arc::new(Fake::default());
    let server = Server::start(&path, fake.clone()).unwrap();
    // Those that give up leave room for others.
    for _ in 0..40 {
        let mut gone = UnixStream::connect(&path).unwrap();
        let _ = gone.write_all(b"GET /v1/vm/wait HTTP/1.1\r\n\r\n");
    }
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || {
            // There may be no room yet.
            let once = || Client::new(&path).wait().ok();
            (0..200).find_map(|_| {
                once().or_else(|| {
                    std::thread::sleep(Duration::from_millis(10));
                    None
                })
            })
        }
    });
    std::thread::sleep(Duration::from_millis(100));
    while Client::new(&path).act("stop").is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(waiting.join().unwrap().unwrap().exit_code, 3);
    drop(server);
}
