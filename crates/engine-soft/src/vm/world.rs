//! Stopping the world: a moment in which one processor knows that no other executes guest code.

use umbra_engine::CpuIo;

use crate::cpu::Cpu;

/// What processors wait on when one of them stops the world.
#[derive(Default)]
pub struct World {}

impl Cpu {
    /// Starts to execute guest code: waits while another processor has stopped the world. [`crate::exec::run`] calls it.
    pub fn enter_world(&mut self) {}

    /// Stops executing guest code: from now on nobody waits for this processor.
    pub fn leave_world(&mut self) {}

    /// Calls the rest of the machine, outside of the world.
    pub fn with_io<R>(&mut self, f: impl FnOnce(&dyn CpuIo) -> R) -> R {
        self.leave_world();
        let r = f(self.io());
        self.enter_world();
        r
    }
}
