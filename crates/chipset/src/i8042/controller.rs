//! The keyboard controller as a pure model (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
//! Device Controller").
//!
//! Nothing is plugged into it, and it has one port only (no auxiliary one). Every question is answered at once, so
//! that a driver which looks for devices never waits for a timeout: bytes for the keyboard are answered by the
//! controller's own "no reply" (0xFE with the timeout flag), those for a mouse as by a controller that cannot have one.

use bitflags::bitflags;

use super::I8042V1;

bitflags! {
    /// Status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Status: u8 {
        const OUTPUT_FULL = 1;
        /// The self test has passed since power-on.
        const SYSTEM = 1 << 2;
        /// The last write was a command.
        const COMMAND = 1 << 3;
        /// The keyboard is not locked.
        const UNLOCKED = 1 << 4;
        /// The output buffer's byte is of the auxiliary port.
        const AUX_FULL = 1 << 5;
        const TIMEOUT = 1 << 6;
    }

    /// The command byte, which is the controller's RAM byte 0.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct CommandByte: u8 {
        const KEYBOARD_INTERRUPT = 1;
        const AUX_INTERRUPT = 1 << 1;
        const SYSTEM = 1 << 2;
        const KEYBOARD_DISABLED = 1 << 4;
        const AUX_DISABLED = 1 << 5;
        const TRANSLATE = 1 << 6;
        const _ = !0;
    }

    /// The output port's pins.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct OutputPort: u8 {
        /// Low resets the processor.
        const RUN = 1;
        const A20 = 1 << 1;
        const KEYBOARD_FULL = 1 << 4;
        const AUX_FULL = 1 << 5;
        const _ = !0;
    }
}

/// What a byte written to the data port is for, after one of these commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Awaiting {
    CommandByte = 0x60,
    OutputPort = 0xd1,
    KeyboardOutput = 0xd2,
    AuxOutput = 0xd3,
    Aux = 0xd4,
}

impl Awaiting {
    fn from_command(command: u8) -> Option<Self> {
        [Self::CommandByte, Self::OutputPort, Self::KeyboardOutput, Self::AuxOutput, Self::Aux]
            .into_iter()
            .find(|a| *a as u8 == command)
    }
}

/// The self test's good answer.
const SELF_TEST_OK: u8 = 0x55;
/// The keyboard interface test's good answer.
const INTERFACE_OK: u8 = 0;
/// The auxiliary interface test's answer: the clock line is stuck low, as there is none.
const AUX_CLOCK_LOW: u8 = 1;
/// What the controller gives for the answer of a device that does not answer.
const NO_REPLY: u8 = 0xfe;
/// The input port: the keyboard is not locked.
const INPUT_PORT: u8 = 0x80;

/// The controller's registers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Controller {
    status: Status,
    command_byte: CommandByte,
    output_port: OutputPort,
    awaiting: Option<Awaiting>,
    /// The output buffer; its last byte can be read again.
    output: u8,
}

impl Controller {
    /// As firmware leaves it: tested, translating, the keyboard's interrupt on.
    pub(super) fn new() -> Self {
        Self {
            status: Status::SYSTEM | Status::UNLOCKED | Status::COMMAND,
            command_byte: CommandByte::KEYBOARD_INTERRUPT
                | CommandByte::SYSTEM
                | CommandByte::AUX_DISABLED
                | CommandByte::TRANSLATE,
            output_port: OutputPort::RUN | OutputPort::A20,
            awaiting: None,
            output: 0,
        }
    }

    pub(super) fn status(&self) -> u8 {
        self.status.bits()
    }

    pub(super) fn read_data(&mut self) -> u8 {
        self.status -= Status::OUTPUT_FULL | Status::AUX_FULL | Status::TIMEOUT;
        self.output
    }

    /// The interrupt requests of the keyboard and of the auxiliary port.
    pub(super) fn interrupts(&self) -> (bool, bool) {
        let full = self.status.contains(Status::OUTPUT_FULL);
        let aux = self.status.contains(Status::AUX_FULL);
        (
            full && !aux && self.command_byte.contains(CommandByte::KEYBOARD_INTERRUPT),
            full && aux && self.command_byte.contains(CommandByte::AUX_INTERRUPT),
        )
    }

    /// A write to the data port. Returns whether it resets the machine.
    pub(super) fn write_data(&mut self, value: u8) -> bool {
        self.status -= Status::COMMAND;
        match self.awaiting.take() {
            None => self.put(NO_REPLY, Status::TIMEOUT),
            Some(Awaiting::CommandByte) => {
                self.command_byte = CommandByte::from_bits_retain(value);
                self.status.set(Status::SYSTEM, self.command_byte.contains(CommandByte::SYSTEM));
            }
            Some(Awaiting::OutputPort) => {
                self.output_port = OutputPort::from_bits_retain(value) | OutputPort::RUN;
                return value & OutputPort::RUN.bits() == 0;
            }
            // Without an auxiliary port, what is looped through it comes out as the keyboard's.
            Some(Awaiting::KeyboardOutput | Awaiting::AuxOutput) => self.put(value, Status::empty()),
            Some(Awaiting::Aux) => self.put(NO_REPLY, Status::TIMEOUT | Status::AUX_FULL),
        }
        false
    }

    /// A write to the command port. Returns whether it resets the machine.
    pub(super) fn command(&mut self, command: u8) -> bool {
        self.status |= Status::COMMAND;
        self.awaiting = Awaiting::from_command(command);
        match command {
            0x20 => self.put(self.command_byte.bits(), Status::empty()),
            0xa7 => self.command_byte |= CommandByte::AUX_DISABLED,
            0xa8 => self.command_byte -= CommandByte::AUX_DISABLED,
            0xa9 => self.put(AUX_CLOCK_LOW, Status::empty()),
            0xaa => {
                self.status |= Status::SYSTEM;
                self.command_byte |= CommandByte::SYSTEM;
                self.put(SELF_TEST_OK, Status::empty());
            }
            0xab => self.put(INTERFACE_OK, Status::empty()),
            0xad => self.command_byte |= CommandByte::KEYBOARD_DISABLED,
            0xae => self.command_byte -= CommandByte::KEYBOARD_DISABLED,
            0xc0 => self.put(INPUT_PORT, Status::empty()),
            0xd0 => self.put(self.output_pins(), Status::empty()),
            0xdd => self.output_port -= OutputPort::A20,
            0xdf => self.output_port |= OutputPort::A20,
            // Pulses those of the output port's low four pins whose bit is zero.
            0xf0..=0xff => return command & OutputPort::RUN.bits() == 0,
            _ => {}
        }
        false
    }

    fn output_pins(&self) -> u8 {
        let mut pins = self.output_port;
        let (keyboard, aux) = self.interrupts();
        pins.set(OutputPort::KEYBOARD_FULL, keyboard);
        pins.set(OutputPort::AUX_FULL, aux);
        pins.bits()
    }

    /// Puts a byte into the output buffer, over one that has not been read.
    fn put(&mut self, byte: u8, flags: Status) {
        self.status -= Status::AUX_FULL | Status::TIMEOUT;
        self.status |= Status::OUTPUT_FULL | flags;
        self.output = byte;
    }

    pub(super) fn save(&self) -> I8042V1 {
        let Self { status, command_byte, output_port, awaiting, output } = self;
        I8042V1 {
            status: status.bits(),
            command_byte: command_byte.bits(),
            output_port: output_port.bits(),
            awaiting: awaiting.map(|a| a as u8),
            output: *output,
        }
    }

    /// A model in the saved state; the error says which value is impossible.
    pub(super) fn load(state: I8042V1) -> Result<Self, &'static str> {
        let I8042V1 { status, command_byte, output_port, awaiting, output } = state;
        let awaiting = match awaiting {
            Some(command) => Some(Awaiting::from_command(command).ok_or("pending command")?),
            None => None,
        };
        Ok(Self {
            status: Status::from_bits(status).ok_or("status register")?,
            command_byte: CommandByte::from_bits_retain(command_byte),
            output_port: OutputPort::from_bits_retain(output_port),
            awaiting,
            output,
        })
    }
}
