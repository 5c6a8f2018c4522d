//! What a machine is to be: one versioned document, the same types in files, on the control socket and behind the
//! command line.

use serde::{Deserialize, Serialize};
use umbra_boot::layout::{CPUS_MAX, MACHINE_TYPE, MIB, PCI_SLOTS_DEVICES};

use umbra_virtio::blk::SERIAL_LEN;
use umbra_virtio::vsock::{CID_MAX, CID_MIN};

use crate::MachineError;

/// The version of this document.
pub const SPEC_VERSION: u32 = 1;

/// Least memory that a machine may have, in MiB: the first MiB and a small kernel.
pub const MEMORY_MIN_MIB: u64 = 16;

/// No kernel takes a longer command line; most take 2,047 bytes.
const CMDLINE_MAX: usize = 16 << 10;

/// The specification of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Version of the document: [`SPEC_VERSION`].
    pub version: u32,
    /// Machine type, `umbra-1`.
    pub machine: String,
    /// The name by which it is managed.
    pub name: String,
    /// What tells it from all others, as SMBIOS shows it: 32 hexadecimal digits.
    pub uuid: String,
    /// Number of processors.
    pub cpus: u32,
    /// What the processors are.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// Memory in bytes; a multiple of 1 MiB.
    pub memory: u64,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// How the kernel is entered.
    #[serde(default)]
    pub entry: KernelEntry,
    /// Disks, in the order of their slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order of their slots, which follow those of the disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkSpec>,
    /// A source of entropy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rng: bool,
    /// Sockets between programs of the guest and of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
}

/// A socket device. Where its connections lead on the host comes to the machine made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context ID: 3 to 4294967294.
    pub cid: u32,
}

impl Default for VsockSpec {
    fn default() -> Self {
        Self { cid: CID_MIN }
    }
}

/// A network card. What is at the other end of its cable comes to the machine made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its address: six pairs of hexadecimal digits with colons between them.
    pub mac: String,
}

impl NetworkSpec {
    /// The address's bytes.
    ///
    /// # Errors
    /// It is not the address of one card.
    pub fn mac_bytes(&self) -> Result<[u8; 6], MachineError> {
        let byte = |text: &str| u8::from_str_radix(text, 16).ok().filter(|_| text.len() == 2);
        let bytes: Option<Vec<u8>> = self.mac.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).ok_or_else(|| {
            MachineError::Spec(format!(
                "`{}` is no address of a network card; give one such as 52:54:00:12:34:56, with an even first byte",
                self.mac.escape_default()
            ))
        })
    }
}

/// A disk. The image comes to the machine open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// What the user calls its image, for messages; it is not opened by this name when the machine is restored.
    pub file: String,
    /// The guest cannot write it.
    #[serde(default)]
    pub read_only: bool,
    /// Its serial number, which Linux shows in /dev/disk/by-id: at most 20 printable characters.
    #[serde(default)]
    pub serial: String,
}

/// What CPUID and MSRs show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// All that engine and host can give. Such a machine resumes only where the same can be given.
    #[default]
    Host,
    /// `portable-1`: the level x86-64-v3, fixed for ever, which both engines give on every supported host.
    #[serde(rename = "portable-1", alias = "portable")]
    Portable1,
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelEntry {
    /// PVH where the kernel has it, else the 64-bit protocol.
    #[default]
    Auto,
    /// PVH.
    Pvh,
    /// Linux' 64-bit protocol.
    Linux64,
}

impl MachineSpec {
    /// A machine of this version and type with a random UUID.
    pub fn new(name: impl Into<String>, cpus: u32, memory: u64) -> Self {
        let mut uuid = [0; 16];
        // Without randomness (a kernel that is just starting) the UUID is all zero, which means that there is none.
        let _ = rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::NONBLOCK);
        // Version 4, variant 1 (RFC 9562).
        (uuid[6], uuid[8]) = (uuid[6] & 0xf | 0x40, uuid[8] & 0x3f | 0x80);
        Self {
            uuid: uuid.iter().map(|b| format!("{b:02x}")).collect(),
            version: SPEC_VERSION,
            machine: MACHINE_TYPE.into(),
            name: name.into(),
            cpus,
            cpu_model: CpuModel::default(),
            memory,
            cmdline: String::new(),
            entry: KernelEntry::default(),
            disks: Vec::new(),
            networks: Vec::new(),
            rng: false,
            vsock: None,
        }
    }

    /// Checks what can be said without looking at the host.
    ///
    /// # Errors
    /// What is wrong with it and what to do.
    pub fn check(&self) -> Result<(), MachineError> {
        let wrong = |what: String| Err(MachineError::Spec(what));
        if self.version != SPEC_VERSION {
            return wrong(format!(
                "the specification has version {}; this version of Umbra reads {SPEC_VERSION}",
                self.version
            ));
        }
        if self.machine != MACHINE_TYPE {
            return wrong(format!(
                "machine type `{}` is unknown; this version of Umbra has `{MACHINE_TYPE}`",
                self.machine
            ));
        }
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return wrong(format!("{} processors: a machine has 1 to {CPUS_MAX}", self.cpus));
        }
        if self.memory < MEMORY_MIN_MIB * MIB {
            return wrong(format!(
                "memory of {} MiB is too small; give at least {MEMORY_MIN_MIB}M",
                self.memory / MIB
            ));
        }
        if !self.memory.is_multiple_of(MIB) {
            return wrong(format!("memory of {} bytes is not a whole number of MiB", self.memory));
        }
        if self.cmdline.len() > CMDLINE_MAX {
            return wrong(format!(
                "the kernel's command line has {} bytes; no kernel takes more than {CMDLINE_MAX}",
                self.cmdline.len()
            ));
        }
        let single = usize::from(self.rng) + usize::from(self.vsock.is_some());
        let devices = self.disks.len() + self.networks.len() + single;
        let slots = PCI_SLOTS_DEVICES.len();
        if devices > slots {
            return wrong(format!("{devices} devices on PCI: a machine has {slots} devices there at most"));
        }
        let odd = |serial: &str| serial.len() > SERIAL_LEN || !serial.bytes().all(|b| b.is_ascii_graphic());
        if let Some(disk) = self.disks.iter().find(|disk| odd(&disk.serial)) {
            return wrong(format!(
                "`{}` is no serial number; it has at most {SERIAL_LEN} printable ASCII characters",
                disk.serial.escape_default()
            ));
        }
        if let Some(VsockSpec { cid }) = self.vsock.filter(|vsock| !(CID_MIN..=CID_MAX).contains(&vsock.cid))
        {
            return wrong(format!("{cid} is no context ID of a guest; give {CID_MIN} to {CID_MAX}"));
        }
        self.networks.iter().try_for_each(|network| network.mac_bytes().map(drop))?;
        self.uuid_bytes().map(drop)
    }

    /// The UUID's bytes.
    ///
    /// # Errors
    /// It is not 32 hexadecimal digits.
    pub fn uuid_bytes(&self) -> Result<[u8; 16], MachineError> {
        let wrong = || MachineError::Spec(format!("the UUID `{}` is not 32 hexadecimal digits", self.uuid));
        let digits = self.uuid.as_bytes();
        let digit = |i: usize| digits.get(i).and_then(|d| (*d as char).to_digit(16)).ok_or_else(wrong);
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (digit(2 * i)? << 4 | digit(2 * i + 1)?) as u8;
        }
        if digits.len() == 32 { Ok(bytes) } else { Err(wrong()) }
    }
}
