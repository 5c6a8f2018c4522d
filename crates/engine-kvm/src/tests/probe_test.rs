//! The verdict on this host's KVM.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::guest::{open_kvm, skip};
use crate::probe;

#[test]
fn the_verdict_comes_soon_and_is_the_same_again() {
    let fd = match open_kvm() {
        Ok(fd) => fd,
        Err(why) => return skip("the_verdict_comes_soon_and_is_the_same_again", &why),
    };
    let descriptors = || std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    let begun = Instant::now();
    let verdict = probe(fd.as_fd());
    let took = begun.elapsed();
    match &verdict {
        Ok(report) => eprintln!("usable: {report:?}"),
        Err(why) => {
            eprintln!("not usable ({took:?}): {why}");
            skip("kernels under this KVM", &why.to_string());
        }
    }
    assert!(took < Duration::from_secs(3), "{took:?}");
    let before = descriptors();
    assert_eq!(probe(fd.as_fd()).is_ok(), verdict.is_ok());
    // Other tests open and close descriptors meanwhile; a probe that leaked would leave three each time.
    for _ in 0..10 {
        let _ = probe(fd.as_fd());
    }
    assert!(descriptors() < before + 30, "descriptors are left behind");
}
