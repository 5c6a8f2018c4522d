//! The two 8259A in the machine: three ranges of ports, 16 lines in, one out.

use std::sync::{Arc, Mutex};

use umbra_device::{Device, DeviceError, IrqSink};
use umbra_state::{Record, Saved};

use crate::pic_chip::PicChip;
use crate::{BytePorts, PicV1, lock};

/// The first chip's ports: [`PicRange::Master`], two of them.
pub const MASTER_PORTS: u16 = 0x20;
/// The second chip's ports: [`PicRange::Slave`], two of them.
pub const SLAVE_PORTS: u16 = 0xa0;
/// The edge/level control registers' ports: [`PicRange::Elcr`], two of them.
pub const ELCR_PORTS: u16 = 0x4d0;

const ID: &str = "pic";

/// What hears the level of the interrupt output when it changes. It must not call the PIC.
pub type IntrSink = Arc<dyn Fn(bool) + Send + Sync>;

/// The pair of interrupt controllers. Clones are the same pair.
#[derive(Clone)]
pub struct Pic(Arc<Mutex<Inner>>);

struct Inner {
    chip: PicChip,
    output: bool,
    intr: IntrSink,
}

impl Inner {
    /// After any change of the chips.
    fn settle(&mut self) {
        let output = self.chip.output();
        if output != self.output {
            self.output = output;
            (self.intr)(output);
        }
    }
}

impl Pic {
    /// A pair whose output is `intr`.
    pub fn new(intr: IntrSink) -> Self {
        Self(Arc::new(Mutex::new(Inner { chip: PicChip::new(), output: false, intr })))
    }

    /// The level of the interrupt output.
    pub fn intr(&self) -> bool {
        lock(&self.0).output
    }

    /// The processor acknowledges (INTA): the vector, which is the spurious interrupt's if the output is low by now.
    pub fn acknowledge(&self) -> u8 {
        let mut inner = lock(&self.0);
        let vector = inner.chip.acknowledge();
        inner.settle();
        vector
    }

    /// One of the ranges of ports.
    pub fn ports(&self, range: PicRange) -> PicPorts {
        PicPorts { pic: self.clone(), range }
    }
}

impl IrqSink for Pic {
    fn set_level(&self, pin: u32, high: bool) {
        let mut inner = lock(&self.0);
        inner.chip.set_line(u8::try_from(pin).unwrap_or(u8::MAX), high);
        inner.settle();
    }
}

/// A range of the PIC's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PicRange {
    /// At [`MASTER_PORTS`].
    Master,
    /// At [`SLAVE_PORTS`].
    Slave,
    /// At [`ELCR_PORTS`].
    Elcr,
}

/// One range of a [`Pic`]'s ports.
pub struct PicPorts {
    pic: Pic,
    range: PicRange,
}

impl BytePorts for PicPorts {
    const COUNT: u16 = 2;

    fn read_byte(&mut self, offset: u16) -> u8 {
        let mut inner = lock(&self.pic.0);
        let value = match self.range {
            PicRange::Master => inner.chip.read(0, offset == 1),
            PicRange::Slave => inner.chip.read(1, offset == 1),
            PicRange::Elcr => inner.chip.elcr(offset.into()),
        };
        inner.settle();
        value
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
        let mut inner = lock(&self.pic.0);
        match self.range {
            PicRange::Master => inner.chip.write(0, offset == 1, value),
            PicRange::Slave => inner.chip.write(1, offset == 1, value),
            PicRange::Elcr => inner.chip.set_elcr(offset.into(), value),
        }
        inner.settle();
    }
}

impl Device for Pic {
    fn id(&self) -> &str {
        ID
    }

    fn reset(&mut self) {
        let mut inner = lock(&self.0);
        inner.chip = PicChip::new();
        inner.settle();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(lock(&self.0).chip.save().to_record(ID))
    }

    /// The output is told, as no engine saves it.
    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = PicV1::from_record(record).map_err(DeviceError::state(ID))?;
        let chip = PicChip::load(&state).map_err(|what| DeviceError::Impossible { id: ID.into(), what })?;
        let mut inner = lock(&self.0);
        inner.chip = chip;
        inner.settle();
        Ok(())
    }
}
