//! `_OSC` of the host bridge: what the guest's kernel may control itself (PCI Firmware Specification 3.3, section
//! 4.5.1). The machine has no firmware that would do it instead.

use acpi_tables::aml::{
    And, Arg, CreateDWordField, Else, Equal, If, Local, Method, NotEqual, ONE, Or, Path, Return, Store, Uuid,
    ZERO,
};
use acpi_tables::{Aml, AmlSink};

const UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// PCI Express hot-plug, power management events, error reporting, capability structures; not the hot-plug of
/// conventional PCI.
const GRANTED: u8 = 0b1_1101;
const UNRECOGNIZED_UUID: u8 = 1 << 2;
const UNRECOGNIZED_REVISION: u8 = 1 << 3;
const MASKED: u8 = 1 << 4;

/// The method.
pub(super) struct PciOsc;

impl Aml for PciOsc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // DWord 1 of the buffer is the status, DWord 3 what is asked for and what is granted.
        let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let (revision, buffer, granted) = (Arg(1), Arg(3), Local(0));
        let set_revision = Or::new(&status, &status, &UNRECOGNIZED_REVISION);
        let set_masked = Or::new(&status, &status, &MASKED);
        let set_uuid = Or::new(&status, &status, &UNRECOGNIZED_UUID);
        Method::new(
            Path::new("_OSC"),
            4,
            true,
            vec![
                &CreateDWordField::new(&status, &buffer, &ZERO),
                &If::new(
                    &Equal::new(&Arg(0), &Uuid::new(UUID)),
                    vec![
                        &CreateDWordField::new(&control, &buffer, &8u8),
                        &And::new(&granted, &control, &GRANTED),
                        &If::new(&NotEqual::new(&revision, &ONE), vec![&set_revision]),
                        &If::new(&NotEqual::new(&control, &granted), vec![&set_masked]),
                        &Store::new(&control, &granted),
                    ],
                ),
                &Else::new(vec![&set_uuid]),
                &Return::new(&buffer),
            ],
        )
        .to_aml_bytes(sink);
    }
}
