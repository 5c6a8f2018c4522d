use super::{DYNAMIC, Dynamic, FIXED, Footer, geometry};

#[test]
fn geometries_are_those_of_the_specification() {
    for (mib, shape) in [(10, (301, 4, 17)), (512, (1040, 16, 63)), (1024, (2080, 16, 63))] {
        assert_eq!(geometry(mib * 2048), shape, "{mib} MiB");
    }
    assert_eq!(geometry(u64::MAX), (65535, 16, 255));
}

#[test]
fn a_disk_is_as_large_as_its_geometry_unless_told() {
    let footer = Footer::new(10 << 20, false, DYNAMIC, [1; 16]).unwrap();
    assert_eq!(footer.size(None), Ok(10_514_432));
    assert_eq!(footer.check(), Ok(()));
    let exact = Footer::new(10 << 20, true, FIXED, [1; 16]).unwrap();
    assert_eq!(exact.size(None), Ok(10 << 20));
    assert!(Footer::new(3 << 40, true, FIXED, [1; 16]).is_err());
    // 127.5 GiB is beyond what a geometry can say.
    let large = Footer::new(200 << 30, false, DYNAMIC, [1; 16]).unwrap();
    assert_eq!(large.size(None), Ok(200 << 30));
}

#[test]
fn what_is_wrong_is_found() {
    let good = Footer::new(10 << 20, false, DYNAMIC, [1; 16]).unwrap();
    let mut bad = good.clone();
    bad.heads = 5;
    assert!(bad.check().unwrap_err().contains("checksum"));
    let header = Dynamic::new(6);
    assert_eq!(header.check(10_514_432, 2560), Ok(()));
    assert!(header.check(13 << 20, 2560).unwrap_err().contains("too short"));
    assert!(header.check(10_514_432, 1550).unwrap_err().contains("beyond"));
}
