//! What clients of the control socket may do to a machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use umbra_net::user::Forward;
use umbra_server::{ApiError, Console, Ended, Manage, Port, PortName, Status, VcpuStats, VmInfo, VmState};

use super::{Broker, lock};
use crate::net::{forward_protocol, port_of};
use crate::protocol::{Answer, Order, PortStart, Request};

fn conflict(why: impl Into<String>) -> ApiError {
    ApiError::new(Status::Conflict, why)
}

impl Broker {
    /// Asks the worker and waits for its answer.
    fn ask(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Answer, ApiError> {
        let failed = |why: String| ApiError::new(Status::Internal, why);
        let answers = lock(&self.answers);
        self.link
            .send(&Order::Ask(request), descriptors)
            .map_err(|e| failed(format!("the machine's process does not answer: {e}")))?;
        match answers.recv() {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed("the machine has ended".into())),
        }
    }

    fn save_to(&self, path: &Path) -> Result<(), ApiError> {
        let refused = |what: &str, e: io::Error| {
            ApiError::new(Status::Internal, format!("{what} {}: {e}", path.display()))
        };
        let temporary = Temporary::beside(path).map_err(|e| refused("cannot write", e))?;
        let was_paused = self.paused.swap(true, Ordering::SeqCst);
        let saved = self.ask(Request::Save, &[temporary.file.as_fd()]);
        let saved = saved.and_then(|_| temporary.keep(path).map_err(|e| refused("cannot write", e)));
        if saved.is_err() && !was_paused {
            // A machine that could not be saved goes on.
            self.paused.store(false, Ordering::SeqCst);
            self.ask(Request::Resume, &[])?;
        }
        saved
    }
}

/// A file that becomes another one when it is complete, and goes away if it does not.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        let path = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    fn keep(&self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        // The name is safe only when its folder is.
        File::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After `keep` there is nothing there any more.
        let _ = fs::remove_file(&self.path);
    }
}

impl Manage for Broker {
    fn info(&self) -> Result<VmInfo, ApiError> {
        let ports = lock(&self.ports).clone();
        let spec = lock(&self.spec);
        let spec = spec.as_ref().ok_or_else(|| conflict("the machine is being made"))?;
        let state = if self.paused.load(Ordering::SeqCst) { VmState::Paused } else { VmState::Running };
        Ok(VmInfo {
            name: self.name.clone(),
            engine: self.engine.into(),
            state,
            cpus: spec.cpus,
            memory: spec.memory,
            broker_pid: std::process::id(),
            worker_pid: self.worker_pid,
            started_ms: self.started_ms,
            detached: self.report.is_some(),
            ports,
        })
    }

    fn stats(&self) -> Result<Vec<VcpuStats>, ApiError> {
        match self.ask(Request::Stats, &[])? {
            Answer::Stats(all) => Ok(all.into_iter().map(|one| one.into_iter().collect()).collect()),
            Answer::Done => Err(ApiError::new(Status::Internal, "the machine's process gave another answer")),
        }
    }

    fn pause(&self) -> Result<(), ApiError> {
        self.ask(Request::Pause, &[])?;
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<(), ApiError> {
        self.ask(Request::Resume, &[])?;
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<(), ApiError> {
        self.save_to(path)
    }

    fn power_button(&self) -> Result<(), ApiError> {
        self.ask(Request::PowerButton, &[]).map(drop)
    }

    fn stop(&self) -> Result<(), ApiError> {
        // If it is gone, that is what was asked for; one that does not hear is made to end.
        let _ = self.link.send(&Order::Stop, &[]);
        self.end_worker();
        Ok(())
    }

    fn wait(&self, time: Duration) -> Result<Option<Ended>, ApiError> {
        let deadline = Instant::now() + time;
        let mut ended = lock(&self.ended);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if ended.is_some() || left.is_zero() {
                return Ok(ended.clone());
            }
            ended = self.has_ended.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn ports(&self) -> Result<Vec<Port>, ApiError> {
        Ok(lock(&self.ports).clone())
    }

    fn add_port(&self, port: Port) -> Result<Port, ApiError> {
        // Held until it is open: nobody removes it before.
        let mut ports = lock(&self.ports);
        let Port { protocol, host, guest_port } = port;
        let forward = Forward { protocol: forward_protocol(protocol), host, guest: None, guest_port };
        let listening = forward.listen().map_err(|e| match std::error::Error::source(&e) {
            Some(source) => conflict(format!("{e}: {source}")),
            None => conflict(e.to_string()),
        })?;
        let opened = port_of(&listening.forward());
        let start = PortStart { udp: protocol == umbra_server::Protocol::Udp, host: opened.host, guest_port };
        self.ask(Request::AddPort(start), &[listening.into_socket().as_fd()])?;
        ports.push(opened);
        Ok(opened)
    }

    fn remove_port(&self, port: PortName) -> Result<(), ApiError> {
        let mut ports = lock(&self.ports);
        let is_it = |other: &Port| (other.protocol, other.host) == (port.protocol, port.host);
        let found = ports.iter().position(is_it);
        let index = found.ok_or_else(|| {
            ApiError::new(Status::NotFound, format!("{} leads to nowhere in the guest", port.host))
        })?;
        let PortName { protocol, host } = port;
        self.ask(Request::RemovePort { udp: protocol == umbra_server::Protocol::Udp, host }, &[])?;
        ports.remove(index);
        Ok(())
    }

    fn console(&self) -> Result<Console, ApiError> {
        let client = self.hub.client().ok_or_else(|| {
            conflict("as many are at its console as there is room for, or it is about to end")
        })?;
        let hub = self.hub.clone();
        Ok(Box::new(move |stream| hub.serve(&client, stream)))
    }
}
