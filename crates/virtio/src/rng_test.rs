//! The entropy device by the fake driver.

use crate::driver::Driver;
use crate::rng::Rng;

const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28;

fn rng() -> Box<Rng> {
    Box::new(Rng::new().unwrap())
}

#[test]
fn it_fills_what_it_is_given_with_different_bytes() {
    let mut driver = Driver::new(rng());
    driver.init(FEATURES);
    let (len, first) = driver.request(0, &[], &[40, 24]);
    let (_, second) = driver.request(0, &[], &[64]);
    assert_eq!((len, first.len()), (64, 64));
    assert_ne!(first, second);
    assert_ne!(first, [0xa5; 64]);
}

#[test]
fn it_gives_no_more_than_its_limit_and_nothing_to_who_only_asks() {
    let mut driver = Driver::new(rng());
    driver.init(FEATURES);
    let (len, bytes) = driver.request(0, &[], &[4096, 64]);
    assert_eq!((len, &bytes[4096..]), (4096, &[0xa5; 64][..]));
    assert_eq!(driver.request(0, &[&[1, 2, 3]], &[]).0, 0);
}

#[test]
fn it_goes_on_elsewhere_and_after_resets() {
    let mut driver = Driver::new(rng());
    driver.init(FEATURES);
    driver.request(0, &[], &[64]);
    let mut driver = driver.moved_to(rng());
    assert_eq!(driver.request(0, &[], &[64]).0, 64);
    for _ in 0..20 {
        driver.give(0, &[], &[64]);
        driver.kick(0);
        driver.init(FEATURES);
        assert_eq!(driver.request(0, &[], &[64]).0, 64);
    }
}
