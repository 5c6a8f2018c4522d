//! How a device whose registers are one byte wide sees a wider access: as byte accesses at successive ports, lowest
//! first, as the ISA bus splits them.

/// Fills `data` from the registers at `offset` and after.
pub(crate) fn read_each(offset: u16, data: &mut [u8], mut read: impl FnMut(u16) -> u8) {
    for (byte, register) in data.iter_mut().zip(offset..=u16::MAX) {
        *byte = read(register);
    }
}

/// Writes `data` to the registers at `offset` and after.
pub(crate) fn write_each(offset: u16, data: &[u8], mut write: impl FnMut(u16, u8)) {
    for (&byte, register) in data.iter().zip(offset..=u16::MAX) {
        write(register, byte);
    }
}

/// What a port that nothing answers on reads as.
pub(crate) const FLOATING: u8 = 0xff;
