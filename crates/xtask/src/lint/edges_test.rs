//! Planted edges against the architecture are found; those that it allows are not.

use super::edges::{Facts, check};

fn facts(name: &str, dependencies: &[&str]) -> Facts {
    let text: String = dependencies.iter().map(|name| format!("umbra-{name}.workspace = true\n")).collect();
    Facts {
        name: name.to_owned(),
        manifest: format!("crates/{name}/Cargo.toml").into(),
        text: format!("[package]\nname = \"umbra-{name}\"\n[dependencies]\n{text}"),
        dependencies: dependencies.iter().map(|name| ((*name).to_owned(), false)).collect(),
    }
}

fn found(crates: &[Facts]) -> Vec<String> {
    check(crates).iter().map(ToString::to_string).collect()
}

#[test]
fn the_architecture_passes() {
    let crates = [
        facts("x86", &[]),
        facts("apic", &["x86", "thiserror"]),
        facts("engine-kvm", &["engine", "memory", "kvm-ioctls"]),
        facts("pci", &["device"]),
        facts("virtio", &["pci", "block", "memory"]),
        facts("block", &["state"]),
        facts("machine", &["engine-kvm", "engine-soft", "chipset", "boot"]),
        facts("umbra", &["machine", "server"]),
        facts("xtask", &["boot", "umbra", "iced-x86"]),
    ];
    assert_eq!(found(&crates), [""; 0]);
}

#[test]
fn a_later_layer_is_out_of_sight() {
    for (from, to) in [
        ("x86", "apic"),
        ("memory", "engine"),
        ("engine", "engine-kvm"),
        ("chipset", "irqchip"),
        ("pci", "virtio"),
    ] {
        let found = found(&[facts(from, &[to])]);
        assert_eq!(found.len(), 1, "{from} -> {to}: {found:?}");
        assert!(found[0].starts_with(&format!("crates/{from}/Cargo.toml:4: `{from}`")), "{found:?}");
        assert!(found[0].contains(&format!("may not know `{to}`")), "{found:?}");
    }
}

#[test]
fn devices_never_see_an_engine() {
    assert_eq!(found(&[facts("chipset", &["engine"])]).len(), 1);
    assert_eq!(found(&[facts("virtio", &["pci", "engine-kvm"])]).len(), 2, "the edge, and rule 2");
}

#[test]
fn only_machine_names_an_engine_and_a_device() {
    assert_eq!(found(&[facts("machine", &["engine-soft", "pci"])]), [""; 0]);
    let found = found(&[facts("migrate", &["engine-soft", "pci"])]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("names an engine (`engine-soft`) and a device (`pci`)"), "{found:?}");
}

#[test]
fn backends_know_nothing_of_guest_memory_even_by_detour() {
    let direct = found(&[facts("block", &["memory"])]);
    assert!(direct.iter().any(|text| text.contains("reaches `memory` through `memory`")), "{direct:?}");
    let detour = found(&[facts("device", &["vm-memory"]), facts("net", &["device"])]);
    assert_eq!(detour.len(), 1, "{detour:?}");
    assert!(detour[0].contains("`net` reaches `vm-memory` through `device`"), "{detour:?}");
}

#[test]
fn third_party_doors_are_kept() {
    let found = found(&[facts("pci", &["kvm-ioctls"]), facts("machine", &["iced-x86"])]);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn test_helpers_serve_tests_only() {
    let mut crate_with_tests = facts("pci", &["testkit"]);
    assert_eq!(found(std::slice::from_ref(&crate_with_tests)).len(), 1);
    crate_with_tests.dependencies[0].1 = true;
    assert_eq!(found(&[crate_with_tests]), [""; 0]);
}

#[test]
fn a_crate_without_a_room_is_found() {
    let found = found(&[facts("gadget", &[])]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("crate `gadget` has no room"));
}
