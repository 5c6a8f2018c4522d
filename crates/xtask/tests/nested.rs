//! Whole guests under KVM in the nested host, and the proof of the seam: a machine moves between the engines.
//!
//! `cargo xtask test nested` builds the program, prepares the guests and runs these.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::cache::{Scratch, target_folder};
use xtask::disk_guest;
use xtask::guests::Guests;
use xtask::nest::{NestSpec, Outcome, Paging};
use xtask::umbra::{Umbra, last_tick, program};

const BOOT: Duration = Duration::from_secs(150);
const STEP: Duration = Duration::from_secs(60);

/// Runs `script` in a nested host that has umbra and both guests.
fn nested(paging: Paging, script: &str, files: &[(&Path, &str)]) -> Result<Outcome> {
    let guests = Guests::load()?;
    let mut spec = NestSpec::new(&guests, paging, script);
    spec.files.program(&program(), "umbra", &[])?;
    for kernel in guests.kernels() {
        spec.guest(kernel)?;
    }
    for (here, there) in files {
        spec.files.copy(here, there)?;
    }
    spec.timeout = Duration::from_secs(600);
    spec.run(|line| println!("{:8.2} {}", line.at.as_secs_f64(), line.text))
}

/// Boots each (kernel, processors, memory) to user space and power-off under KVM.
fn boots(paging: Paging, cases: &[(&str, &str, &str)]) -> Result<()> {
    let script: String = cases
        .iter()
        .map(|(series, cpus, memory)| {
            format!(
                "echo case {series} {cpus} {memory}\n\
                 timeout 120 umbra run --accel kvm --cpus {cpus} --memory {memory} --no-reboot \
                 --kernel /guest/{series}/vmlinuz --initrd /guest/{series}/initrd \
                 --append 'console=ttyS0 quiet panic=-1 umbra.task=clock umbra.ticks=1'\n\
                 echo case ended with $?\n"
            )
        })
        .collect();
    let outcome = nested(paging, &script, &[])?;
    let text: Vec<&str> = outcome.lines.iter().map(|line| line.text.as_str()).collect();
    for (series, cpus, memory) in cases {
        let head = format!("case {series} {cpus} {memory}");
        let start = text.iter().position(|line| line.contains(&head)).context("the script stopped early")?;
        let rest = &text[start..];
        let end = rest.iter().position(|line| line.contains("case ended with")).context("no end")?;
        let told = rest[..=end].join("\n");
        ensure!(told.contains(&format!("guest: kernel={series}.")), "{told}");
        ensure!(told.contains(&format!(" cpus={cpus} ")) && told.contains("hypervisor=KVM"), "{told}");
        ensure!(rest[end].contains("case ended with 0"), "{told}");
    }
    Ok(())
}

#[test]
#[ignore = "boots a nested host: cargo xtask test nested"]
fn kvm_boots_with_nested_paging() -> Result<()> {
    boots(
        Paging::Nested,
        &[("6.1", "1", "128M"), ("6.12", "2", "1G"), ("6.1", "4", "1G"), ("6.12", "1", "6G")],
    )
}

#[test]
#[ignore = "boots a nested host: cargo xtask test nested"]
fn kvm_boots_with_shadow_paging() -> Result<()> {
    // Only QEMU 7.2 can do this, and its CMPXCHG16B leaves odd flags when the store faults under SVM. Linux 6.12 allocates memory by
    // that instruction and dies of it under any VMM; 6.1 does not.
    boots(Paging::Shadow, &[("6.1", "1", "128M"), ("6.1", "2", "1G")])
}

#[test]
#[ignore = "boots a nested host: cargo xtask test nested"]
fn auto_takes_kvm_where_it_works() -> Result<()> {
    let script = "timeout 120 umbra run --memory 256M --no-reboot --kernel /guest/6.12/vmlinuz \
        --initrd /guest/6.12/initrd --append 'console=ttyS0 quiet panic=-1' 2> /out/said\ncat /out/said\n";
    let outcome = nested(Paging::Nested, script, &[])?;
    ensure!(outcome.code == 0);
    let said = std::fs::read_to_string(outcome.out.join("said"))?;
    ensure!(said.to_lowercase().contains("kvm"), "{said}");
    Ok(())
}

/// A guest under KVM makes a file system on a disk, fills it, and reads it back; the image is in order afterwards.
#[test]
#[ignore = "boots a nested host: cargo xtask test nested"]
fn kvm_runs_disks() -> Result<()> {
    let (guests, scratch) = (Guests::load()?, Scratch::new()?);
    let mut files = Vec::new();
    for (kernel, place) in guests.kernels().into_iter().zip(["disk-0", "disk-1"]) {
        files.push((disk_guest::initrd(&guests, kernel, scratch.path())?, place));
    }
    let files: Vec<(&Path, &str)> = files.iter().map(|(path, place)| (path.as_path(), *place)).collect();
    let case = |number: usize, series: &str, cpus: u32| {
        format!(
            "umbra image create -q -f qcow2 /tmp/{number}.qcow2 128M\n\
             timeout 200 umbra run --accel kvm --cpus {cpus} --memory 256M --no-reboot --rng \
             --disk /tmp/{number}.qcow2,serial=nested --kernel /guest/{series}/vmlinuz --initrd /disk-{number} \
             --append 'console=ttyS0 quiet panic=-1 umbra.task=fill umbra.kib=2048'\n\
             echo case {number} ended with $?\n\
             umbra image check /tmp/{number}.qcow2; echo check {number} ended with $?\n"
        )
    };
    let outcome = nested(Paging::Nested, &(case(0, "6.1", 1) + &case(1, "6.12", 2)), &files)?;
    let told: Vec<&str> = outcome.lines.iter().map(|line| line.text.as_str()).collect();
    let count = |text: &str| told.iter().filter(|line| line.contains(text)).count();
    ensure!(count("guest: sum ") == 2, "{}", told.join("\n"));
    ensure!(count("serial=nested") == 2, "{}", told.join("\n"));
    for number in 0..2 {
        ensure!(count(&format!("case {number} ended with 0")) == 1, "{}", told.join("\n"));
        ensure!(count(&format!("check {number} ended with 0")) == 1, "{}", told.join("\n"));
    }
    Ok(())
}

/// The programs that `cargo test` runs under our own engine, under KVM: one suite, two engines.
#[test]
#[ignore = "boots a nested host: cargo xtask test nested"]
fn the_conformance_suite_passes_under_kvm() -> Result<()> {
    let suite = target_folder().join("debug/conformance");
    ensure!(suite.exists(), "{} is missing; run `cargo xtask test build`", suite.display());
    let mut spec = NestSpec::new(&Guests::load()?, Paging::Nested, "conformance --engine kvm");
    spec.program(&suite)?;
    let outcome = spec.run(|line| println!("{:8.2} {}", line.at.as_secs_f64(), line.text))?;
    ensure!(outcome.code == 0, "the suite ended with {}", outcome.code);
    ensure!(outcome.lines.iter().any(|line| line.text.contains("conformance on kvm")), "it told no result");
    Ok(())
}

/// The seam's proof: a guest that counts and checks its memory is saved under our engine, goes on under KVM, and
/// comes back, and notices nothing but the time.
#[test]
#[ignore = "boots a nested host: cargo xtask test nested"]
fn a_machine_moves_between_the_engines_and_back() -> Result<()> {
    let (guests, umbra, scratch) = (Guests::load()?, Umbra::new()?, Scratch::new()?);
    let first = scratch.path().join("first");
    let options = ["--accel", "soft", "--name", "mover", "--memory", "128M", "--cpu-model", "portable"];
    let mut guest = umbra.boot(guests.kernel("6.12")?, "umbra.task=count umbra.ticks=100000", &options)?;
    guest.expect("guest: tick 3 ", BOOT)?;
    umbra.control(&["save", "mover", &first.to_string_lossy()])?;
    guest.finish_with(0, STEP)?;
    let here = last_tick(&guest.lines).context("no tick here")?;

    let script = "timeout 300 umbra restore /first --accel kvm --name mover > /out/log 2>&1 &\n\
        tries=0\n\
        until [ \"$(grep -c 'guest: tick' /out/log)\" -ge 4 ] || [ $tries = 240 ]; do\n\
          tries=$((tries + 1)); sleep 0.5\n\
        done\n\
        timeout 60 umbra save mover /out/second\n\
        code=$?\n\
        wait\n\
        cat /out/log\n\
        exit $code\n";
    let outcome = nested(Paging::Nested, script, &[(&first, "first")])?;
    ensure!(outcome.code == 0, "umbra save ended with {}", outcome.code);
    let log = std::fs::read_to_string(outcome.out.join("log"))?;
    let mut tick = here;
    for line in log.lines().filter(|line| line.contains("guest: tick")) {
        tick += 1;
        ensure!(line.contains(&format!("guest: tick {tick} memory ok")), "tick {tick} under KVM: {line}");
    }
    ensure!(tick >= here + 4, "too few ticks under KVM: {log}");

    let mut back = umbra.restore(&outcome.out.join("second"), &["--accel", "soft", "--name", "mover"])?;
    for _ in 0..4 {
        tick += 1;
        let line = back.expect("guest: tick", STEP)?.text;
        ensure!(line.contains(&format!("guest: tick {tick} memory ok")), "tick {tick} back here: {line}");
    }
    Ok(())
}
