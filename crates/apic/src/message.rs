//! Interrupt messages: what an interrupt command register or a message-signalled interrupt asks for.
//!
//! Intel SDM volume 3, "Interrupt Command Register (ICR)", "Message Signalled Interrupts", "Determining IPI
//! Destination". A broadcast, in any of its encodings, is decoded where it is sent, so that receivers only compare.

/// Which processors a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this APIC ID.
    Physical(u32),
    /// Those that a logical address names; see [`LocalApic::matches_destination`](crate::LocalApic::matches_destination).
    Logical(u32),
    /// All.
    All,
    /// All but the sender.
    AllButSelf,
    /// The sender.
    SelfOnly,
}

/// How a message is to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The vector, to all that the destination names: [`LocalApic::accept`](crate::LocalApic::accept).
    Fixed,
    /// The vector, to one of them: [`arbitrate`].
    LowestPriority,
    /// A system management interrupt.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up at physical address `vector * 4096`.
    Startup,
    /// An interrupt whose vector the PIC gives.
    ExtInt,
}

impl Delivery {
    /// The three-bit code of ICR, LVT, redirection entry and message data; `None` for the reserved one.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// Whether the message brings its vector into an IRR.
    pub fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// One interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// How.
    pub delivery: Delivery,
    /// Which vector; the start page for [`Delivery::Startup`].
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the I/O APIC. Never set in an IPI.
    pub level: bool,
}

impl Message {
    /// Decodes a message-signalled interrupt; `None` for an address or delivery mode that is no interrupt, and for the
    /// de-assertion of a level.
    ///
    /// Address bits 5 to 11 are bits 8 to 14 of the destination, as the KVM feature "MSI extended destination ID"
    /// defines them.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let address = address as u32;
        let level = data & 1 << 15 != 0;
        if level && data & 1 << 14 == 0 {
            return None;
        }
        let id = (address >> 12 & 0xff) | (address >> 5 & 0x7f) << 8;
        let (hint, logical) = (address & 1 << 3 != 0, address & 1 << 2 != 0);
        let delivery = match Delivery::from_bits(data >> 8)? {
            Delivery::Startup => return None,
            Delivery::Fixed if hint && logical => Delivery::LowestPriority,
            other => other,
        };
        let level = level && delivery.has_vector();
        Some(Self { destination: destination(id, logical, 0xff), delivery, vector: data as u8, level })
    }

    /// Decodes an interrupt command; `None` for one that sends nothing: a reserved delivery mode, or the
    /// de-assertion of INIT, which processors since the Pentium 4 ignore.
    pub(crate) fn from_icr(icr: u64, x2apic: bool) -> Option<Self> {
        let low = icr as u32;
        let delivery = match Delivery::from_bits(low >> 8)? {
            Delivery::ExtInt => return None,
            Delivery::Init if low & 1 << 15 != 0 && low & 1 << 14 == 0 => return None,
            other => other,
        };
        let logical = low & 1 << 11 != 0;
        let destination = match low >> 18 & 3 {
            0 if x2apic => destination((icr >> 32) as u32, logical, u32::MAX),
            0 => destination((icr >> 56) as u32, logical, 0xff),
            1 => Destination::SelfOnly,
            2 => Destination::All,
            _ => Destination::AllButSelf,
        };
        Some(Self { destination, delivery, vector: low as u8, level: false })
    }
}

fn destination(id: u32, logical: bool, broadcast: u32) -> Destination {
    match (id, logical) {
        (id, _) if id == broadcast => Destination::All,
        (id, true) => Destination::Logical(id),
        (id, false) => Destination::Physical(id),
    }
}

/// Which of `candidates`, each with its [`arbitration priority`](crate::LocalApic::arbitration_priority), takes a
/// lowest-priority interrupt. Among equals the vector decides, so that different devices land on different
/// processors and one device stays where it is.
pub fn arbitrate<T: Copy>(vector: u8, candidates: &[(T, u8)]) -> Option<T> {
    let lowest = candidates.iter().map(|(_, priority)| *priority).min()?;
    let equals = candidates.iter().filter(|(_, priority)| *priority == lowest);
    let count = equals.clone().count();
    equals.map(|(who, _)| *who).nth(usize::from(vector) % count)
}
