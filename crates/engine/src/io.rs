//! What a processor may ask of the rest of the machine.

/// The machine as a running processor sees it. Called from every vCPU thread at once; each device has a lock of its own.
///
/// IPIs and the start of other processors never come here: the local APICs are the engine's, all of them.
pub trait CpuIo: Sync {
    /// Reads 1, 2 or 4 bytes from a port; unclaimed ports read all ones.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes to a port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// Reads 1 to 64 bytes at a guest physical address where no memory is, within one page; unclaimed addresses read all ones.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// Writes 1 to 64 bytes at a guest physical address where no memory is (or only ROM), within one page.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// Takes the vector of the interrupt that the PIC asserts (the INTA cycle), if it still does.
    fn external_interrupt(&self) -> Option<u8>;
    /// A local APIC has ended a level-triggered interrupt.
    fn end_of_interrupt(&self, vector: u8);
}
