//! Stopping the world: a moment in which one processor knows that no other executes guest code.
//!
//! It is needed where a fast path of another processor must not be in progress: when a page that it may write directly
//! begins to hold code, when a dirty bit is cleared, and for locked operations across pages.
//!
//! A processor is inside the world while it executes guest code, and outside while it waits, is halted, or calls a device. Whoever stops the
//! world waits until all others are outside; those who want back in wait until it goes on. A processor that asks while
//! another has stopped the world counts as outside, so two that ask at once come one after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use umbra_engine::CpuIo;

use super::{Activity, Shared, attention};
use crate::cpu::Cpu;

/// What processors wait on when one of them stops the world.
#[derive(Default)]
pub struct World {
    /// Somebody has stopped the world, or is about to.
    stopped: AtomicBool,
    /// Held for every change of `stopped`, and to wait.
    gate: Mutex<()>,
    changed: Condvar,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, ()>, condition: impl Fn() -> bool) -> MutexGuard<'a, ()> {
        self.changed.wait_while(guard, |()| condition()).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Says that no write entry of any TLB is good any more, except of processor `except`. The world is stopped, or the caller
    /// can live with writes in progress.
    pub fn forget_writes(&self, except: Option<u32>) {
        for (id, port) in (0..).zip(&self.ports) {
            if Some(id) != except {
                port.attention.fetch_or(attention::FLUSH_WRITES, Ordering::SeqCst);
            }
        }
    }

    fn others(&self, id: u32) -> impl Iterator<Item = &super::Port> {
        (0..).zip(&self.ports).filter(move |(n, _)| *n != id).map(|(_, port)| port)
    }
}

impl Cpu {
    /// Starts to execute guest code: waits while another processor has stopped the world. [`crate::exec::run`] calls it.
    pub fn enter_world(&mut self) {
        if self.fast.stopped_world {
            return;
        }
        let shared = self.shared.clone();
        let Some(port) = shared.ports.get(self.id as usize) else { return };
        loop {
            port.inside.store(true, Ordering::SeqCst);
            if !shared.world.stopped.load(Ordering::SeqCst) {
                break;
            }
            port.inside.store(false, Ordering::SeqCst);
            let guard = shared.world.lock();
            shared.world.changed.notify_all();
            drop(shared.world.wait(guard, || shared.world.stopped.load(Ordering::SeqCst)));
        }
        if port.attention.load(Ordering::SeqCst) & attention::FLUSH_WRITES != 0 {
            port.attention.fetch_and(!attention::FLUSH_WRITES, Ordering::SeqCst);
            self.tlb.forget_writes();
        }
    }

    /// Stops executing guest code: from now on nobody waits for this processor.
    pub fn leave_world(&mut self) {
        if self.fast.stopped_world {
            return;
        }
        let Some(port) = self.shared.ports.get(self.id as usize) else { return };
        port.inside.store(false, Ordering::SeqCst);
        if self.shared.world.stopped.load(Ordering::SeqCst) {
            drop(self.shared.world.lock());
            self.shared.world.changed.notify_all();
        }
    }

    /// Does what reaches guest memory by linear address outside of [`crate::exec::run`]: the delivery of interrupts.
    pub fn in_world<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        self.enter_world();
        let r = f(self);
        self.leave_world();
        r
    }

    /// Whether this processor is inside the world.
    pub fn is_inside(&self) -> bool {
        self.shared.ports.get(self.id as usize).is_some_and(|port| port.inside.load(Ordering::Relaxed))
    }

    /// Calls the rest of the machine, outside of the world.
    pub fn with_io<R>(&mut self, f: impl FnOnce(&dyn CpuIo) -> R) -> R {
        let inside = self.is_inside();
        if inside {
            self.leave_world();
        }
        let before = self.turn_to(Activity::Device);
        let r = f(self.io());
        self.turn_to(before);
        if inside {
            self.enter_world();
        }
        r
    }

    /// Stops the world: returns when no other processor executes guest code. Meanwhile others may have stopped it
    /// before, so what was looked up in memory or TLB earlier must be looked up again. [`Cpu::resume_world`] must follow.
    pub fn stop_world(&mut self) {
        let shared = self.shared.clone();
        let world = &shared.world;
        let inside = self.is_inside();
        if inside {
            self.leave_world();
        }
        let guard = world.lock();
        let guard = world.wait(guard, || world.stopped.load(Ordering::SeqCst));
        world.stopped.store(true, Ordering::SeqCst);
        for port in shared.others(self.id) {
            port.attention.fetch_or(attention::WORLD, Ordering::SeqCst);
        }
        drop(world.wait(guard, || shared.others(self.id).any(|port| port.inside.load(Ordering::SeqCst))));
        self.fast.stopped_world = true;
        self.fast.inside_before = inside;
        if shared
            .ports
            .get(self.id as usize)
            .is_some_and(|p| p.attention.load(Ordering::SeqCst) & attention::FLUSH_WRITES != 0)
        {
            self.tlb.forget_writes();
        }
    }

    /// Lets the world go on.
    pub fn resume_world(&mut self) {
        let shared = self.shared.clone();
        let guard = shared.world.lock();
        for port in shared.others(self.id) {
            port.attention.fetch_and(!attention::WORLD, Ordering::SeqCst);
        }
        self.fast.stopped_world = false;
        if let Some(port) = shared.ports.get(self.id as usize) {
            port.inside.store(self.fast.inside_before, Ordering::SeqCst);
        }
        shared.world.stopped.store(false, Ordering::SeqCst);
        drop(guard);
        shared.world.changed.notify_all();
    }
}
