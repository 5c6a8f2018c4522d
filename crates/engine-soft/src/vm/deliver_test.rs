use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_apic::{LocalApic, Now, reg};

use super::*;
use crate::fixture;

const NOW: Now = Now { ns: 0, tsc: 0 };

/// Processors whose APICs are on, with logical IDs of one bit each.
fn machine(count: u32) -> Arc<Shared> {
    let shared = fixture::shared(1 << 12, count);
    for (id, port) in (0..).zip(&shared.ports) {
        let mut apic = LocalApic::new(id, id == 0, 46);
        let _ = apic.write(reg::SVR, 0x1ff, &NOW);
        let _ = apic.write(reg::LDR, 1 << (24 + id % 8), &NOW);
        *port.apic() = apic;
    }
    shared
}

fn message(destination: Destination, delivery: Delivery, vector: u8) -> Message {
    Message { destination, delivery, vector, level: false }
}

/// The attention words.
fn attention_of(shared: &Shared) -> Vec<u32> {
    shared.ports.iter().map(Port::waiting).collect()
}

#[test]
fn each_destination_reaches_those_it_names() {
    let cases = [
        (Destination::Physical(2), None, [false, false, true, false]),
        (Destination::Physical(9), None, [false; 4]),
        (Destination::Logical(0b1010), None, [false, true, false, true]),
        (Destination::All, None, [true; 4]),
        (Destination::AllButSelf, Some(1), [true, false, true, true]),
    ];
    for (destination, sender, reached) in cases {
        let shared = machine(4);
        shared.deliver(&message(destination, Delivery::Fixed, 0x40), sender);
        let pending: Vec<_> = shared.ports.iter().map(|p| p.apic().pending() == Some(0x40)).collect();
        assert_eq!(pending, reached, "{destination:?}");
        let wanted: Vec<_> = attention_of(&shared).iter().map(|a| *a == attention::APIC).collect();
        assert_eq!(wanted, reached, "{destination:?}");
    }
}

#[test]
fn each_kind_asks_for_its_own_attention() {
    let cases = [
        (Delivery::Nmi, attention::NMI),
        (Delivery::Init, attention::INIT),
        (Delivery::Startup, attention::SIPI),
        (Delivery::ExtInt, attention::EXT_INT),
        (Delivery::Smi, 0),
    ];
    for (delivery, bits) in cases {
        let shared = machine(2);
        shared.deliver(&message(Destination::Physical(1), delivery, 0x9a), Some(0));
        assert_eq!(attention_of(&shared), [0, bits], "{delivery:?}");
        assert!(delivery != Delivery::Startup || shared.ports[1].sipi() == 0x9a);
    }
}

#[test]
fn init_takes_back_an_earlier_start_up() {
    let shared = machine(1);
    let to = Destination::Physical(0);
    shared.deliver(&message(to, Delivery::Startup, 1), None);
    shared.deliver(&message(to, Delivery::Init, 0), None);
    assert_eq!(attention_of(&shared), [attention::INIT]);
    shared.deliver(&message(to, Delivery::Startup, 2), None);
    assert_eq!(attention_of(&shared), [attention::INIT | attention::SIPI]);
}

#[test]
fn lowest_priority_goes_to_one_that_is_least_busy_and_on() {
    let shared = machine(3);
    let _ = shared.ports[0].apic().write(reg::TPR, 0x50, &NOW);
    let _ = shared.ports[1].apic().write(reg::SVR, 0xff, &NOW);
    shared.deliver(&message(Destination::All, Delivery::LowestPriority, 0x61), None);
    assert_eq!(attention_of(&shared), [0, 0, attention::APIC]);
    shared.deliver(&message(Destination::Physical(7), Delivery::LowestPriority, 0x61), None);
}

#[test]
fn the_pics_output_is_lint0_of_the_first_processor() {
    let shared = machine(2);
    shared.set_external(true);
    assert_eq!(attention_of(&shared)[0] & attention::EXTERNAL, attention::EXTERNAL);
    assert_eq!(attention_of(&shared)[1], 0);
    shared.set_external(false);
    // LINT0 as a fixed interrupt: one at each edge.
    let _ = shared.ports[0].apic().write(reg::LVT_LINT0, 0x77, &NOW);
    shared.set_external(true);
    assert_eq!(shared.ports[0].apic().pending(), Some(0x77));
    // LINT0 as NMI.
    shared.set_external(false);
    let _ = shared.ports[0].apic().write(reg::LVT_LINT0, 4 << 8, &NOW);
    shared.set_external(true);
    assert_eq!(attention_of(&shared)[0] & attention::NMI, attention::NMI);
}

#[test]
fn a_sleeper_wakes_for_what_it_waits_for() {
    let shared = machine(1);
    let port = &shared.ports[0];
    port.signal(attention::APIC);
    let began = Instant::now();
    port.sleep(attention::STARTS, Duration::from_millis(30));
    assert!(began.elapsed() >= Duration::from_millis(25), "it waits for SIPI alone");
    port.sleep(attention::WAKES, Duration::from_secs(100));
    assert!(began.elapsed() < Duration::from_secs(50), "it does not sleep over what is there");
    assert_eq!(port.clear(attention::WAKES), attention::APIC);
}

#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u32 = 20_000;
    let shared = machine(2);
    std::thread::scope(|scope| {
        for me in 0..2 {
            let shared = &shared;
            scope.spawn(move || {
                let (own, other) = (&shared.ports[me], &shared.ports[1 - me]);
                for _ in 0..ROUNDS {
                    if me == 0 {
                        other.signal(attention::KICK);
                    }
                    let began = Instant::now();
                    while own.clear(attention::KICK) == 0 {
                        own.sleep(attention::WAKES, Duration::from_secs(20));
                        assert!(began.elapsed() < Duration::from_secs(10), "a wake-up was lost");
                    }
                    if me == 1 {
                        other.signal(attention::KICK);
                    }
                }
            });
        }
    });
}
