//! Changing a user network while it runs, from any thread.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::User;
use super::forward::{Forward, ForwardProtocol, Listening};
use crate::poller::Wake;
use crate::{Error, Result};

/// Commands that wait; each has somebody waiting for its answer.
const WAITING_MAX: usize = 64;
/// The thread of a link is never busy for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a user network is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStatus {
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
    /// TCP connections.
    pub connections: usize,
    /// Flows of UDP and ICMP echo.
    pub flows: usize,
    /// The host has refused an echo of the guest's: only the gateway answers. On Linux `net.ipv4.ping_group_range` says who may.
    pub ping_refused: bool,
}

enum Command {
    Add(Listening, SyncSender<Result<Forward>>),
    Remove(ForwardProtocol, SocketAddr, SyncSender<bool>),
    Status(SyncSender<UserStatus>),
    Restart(SyncSender<()>),
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// The network is gone.
    closed: bool,
}

/// Changes a user network while it runs.
#[derive(Clone)]
pub struct UserControl {
    queue: Arc<Mutex<Queue>>,
    wake: Wake,
}

impl std::fmt::Debug for UserControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserControl").finish_non_exhaustive()
    }
}

/// The network's end.
pub(super) struct Commands {
    queue: Arc<Mutex<Queue>>,
    wake: Wake,
}

impl std::fmt::Debug for Commands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commands").finish_non_exhaustive()
    }
}

pub(super) fn pair() -> Result<(UserControl, Commands)> {
    let wake = Wake::new().map_err(Error::host("make an event descriptor"))?;
    let queue = Arc::new(Mutex::new(Queue::default()));
    Ok((UserControl { queue: Arc::clone(&queue), wake: wake.clone() }, Commands { queue, wake }))
}

impl UserControl {
    /// Lets a port of the host lead to the guest.
    ///
    /// # Errors
    /// Too many ports, an address that is not the guest's, or the network has ended.
    pub fn add_forward(&self, listening: Listening) -> Result<Forward> {
        self.ask(|answer| Command::Add(listening, answer))?
    }

    /// Closes a port; connections that came through it live on. Whether there was one.
    ///
    /// # Errors
    /// The network has ended.
    pub fn remove_forward(&self, protocol: ForwardProtocol, host: SocketAddr) -> Result<bool> {
        self.ask(|answer| Command::Remove(protocol, host, answer))
    }

    /// How the network is doing.
    ///
    /// # Errors
    /// The network has ended.
    pub fn status(&self) -> Result<UserStatus> {
        self.ask(Command::Status)
    }

    /// Breaks off all connections: the guest has been started anew, and knows none of them.
    ///
    /// # Errors
    /// The network has ended.
    pub fn restart(&self) -> Result<()> {
        self.ask(Command::Restart)
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T> {
        let (answer, answered): (SyncSender<T>, Receiver<T>) = sync_channel(1);
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.closed || queue.commands.len() >= WAITING_MAX {
                return Err(Error::Stopped);
            }
            queue.commands.push_back(command(answer));
        }
        self.wake.wake();
        answered.recv_timeout(PATIENCE).map_err(|_| Error::Stopped)
    }
}

impl Commands {
    pub(super) fn wake(&self) -> &Wake {
        &self.wake
    }

    fn take(&self) -> VecDeque<Command> {
        std::mem::take(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner).commands)
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        queue.commands.clear();
    }
}

impl User {
    /// Carries out what was asked for. Who asked may have gone meanwhile, so that nobody hears the answer.
    pub(super) fn obey(&mut self) {
        for command in self.commands.take() {
            match command {
                Command::Add(listening, answer) => {
                    let forward = listening.forward();
                    let added = self.forwards.add(&self.net, listening).map(|()| forward);
                    let _ = answer.try_send(added);
                }
                Command::Remove(protocol, host, answer) => {
                    let _ = answer.try_send(self.forwards.remove(protocol, host));
                }
                Command::Status(answer) => {
                    let _ = answer.try_send(self.status());
                }
                Command::Restart(answer) => {
                    self.tcp.clear();
                    self.flows.clear();
                    let _ = answer.try_send(());
                }
            }
        }
    }
}
