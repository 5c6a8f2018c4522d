//! The control socket from both sides: any bytes as a request, any bytes as an answer.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::Input;
use umbra_server::{
    ApiError, Client, Console, Ended, Manage, Port, PortName, Server, Status, VcpuStats, VmInfo, VmState,
};

struct Fake;

impl Manage for Fake {
    fn info(&self) -> Result<VmInfo, ApiError> {
        Ok(VmInfo {
            name: "web".into(),
            engine: "soft".into(),
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
        Ok(())
    }
    fn resume(&self) -> Result<(), ApiError> {
        Err(ApiError::new(Status::Internal, "no"))
    }
    fn save(&self, path: &Path) -> Result<(), ApiError> {
        assert!(path.is_absolute());
        Ok(())
    }
    fn power_button(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn stop(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn wait(&self, _time: Duration) -> Result<Option<Ended>, ApiError> {
        Ok(Some(Ended { exit_code: 0, ending: "power-off".into(), message: None }))
    }
    fn ports(&self) -> Result<Vec<Port>, ApiError> {
        Ok(Vec::new())
    }
    fn add_port(&self, port: Port) -> Result<Port, ApiError> {
        Ok(port)
    }
    fn remove_port(&self, _port: PortName) -> Result<(), ApiError> {
        Ok(())
    }
    fn console(&self) -> Result<Console, ApiError> {
        Err(ApiError::new(Status::Conflict, "there are enough"))
    }
}

struct Sockets {
    /// Where the server listens.
    server: PathBuf,
    /// Where a server that answers with what it is given listens.
    liar: PathBuf,
    lies: SyncSender<Vec<u8>>,
}

fn sockets() -> &'static Sockets {
    static SOCKETS: OnceLock<Sockets> = OnceLock::new();
    SOCKETS.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("umbra-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for sockets");
        let (server, liar) = (folder.join("server"), folder.join("liar"));
        // It listens as long as the process lives.
        std::mem::forget(Server::start(&server, Arc::new(Fake)).expect("a socket"));
        let listener = UnixListener::bind(&liar).expect("a socket");
        let (lies, taken) = sync_channel::<Vec<u8>>(1);
        std::thread::spawn(move || {
            for bytes in taken {
                let Ok((mut stream, _)) = listener.accept() else { return };
                // The client may have seen enough.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        Sockets { server, liar, lies }
    })
}

/// Sends a request; the answer must be one.
fn request(bytes: &[u8]) {
    // The server closes connections above its limit: threads of requests before may not have ended yet.
    for _ in 0..1000 {
        let mut stream = UnixStream::connect(&sockets().server).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        // It may answer before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset && !answer.is_empty() => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => continue,
            other => drop(other.expect("an answer in time")),
        }
        if answer.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let text = String::from_utf8(answer).expect("an answer is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
        let code = head.strip_prefix("HTTP/1.1 ").and_then(|h| h.get(..3)).expect("an answer has a status");
        let value: serde_json::Value = serde_json::from_str(body).expect("an answer is JSON");
        assert_eq!(code != "200", value["error"].is_string(), "{text}");
        return;
    }
    panic!("the server does not answer");
}

/// Lets a client read any answer.
fn answer(bytes: &[u8]) {
    let sockets = sockets();
    sockets.lies.send(bytes.to_vec()).expect("its thread lives");
    let _ = Client::new(&sockets.liar).info();
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    match input.u8() & 1 {
        0 => request(input.rest()),
        _ => answer(input.rest()),
    }
});
