//! What the engine can show.

use super::*;

#[test]
fn what_is_shown_hangs_together() {
    let t = host_features();
    let implies = |a: Feature, b: Feature| assert!(!t.has(a) || t.has(b), "{a:?} without {b:?}");
    implies(feature::AVX, feature::XSAVE);
    implies(feature::AVX2, feature::AVX);
    implies(feature::FMA, feature::AVX);
    implies(feature::AVX512F, feature::AVX2);
    implies(feature::AVX512VL, feature::AVX512F);
    implies(feature::VAES, feature::AVX);
    implies(feature::SSE4_2, feature::SSE4_1);
    for f in EMULATED {
        assert!(t.has(*f), "{f:?}");
    }
    for f in [feature::VMX, feature::SVM, feature::MONITOR, feature::PKU, feature::LA57, feature::OSXSAVE] {
        assert!(!t.has(f), "{f:?} is not given");
    }
    assert_eq!(t.get(0x8000_0008, 0).unwrap().eax >> 8 & 0xff, 48);
    assert!(t.get(0x8000_0008, 0).unwrap().eax & 0xff <= 46);
}

#[test]
fn xsave_components_fit_their_area() {
    let t = host_features();
    let Some(main) = t.get(0xd, 0) else { return };
    for n in 2..32 {
        let Some(c) = t.get(0xd, n) else {
            assert_eq!(main.eax >> n & 1, 0);
            continue;
        };
        assert_eq!(main.eax >> n & 1, 1);
        assert!(c.ebx >= 576 && c.ebx + c.eax <= main.ebx);
    }
    assert_eq!(main.eax & !COMPONENTS, 0, "nothing but x87, SSE, AVX and AVX-512");
}

#[test]
fn a_processor_without_a_feature_has_not_its_instructions() {
    let all = host_features();
    let mut t = all.clone();
    t.set_feature(feature::POPCNT, false);
    t.set_feature(feature::SSE4_1, false);
    assert!(!offers(&t, Code::Popcnt_r32_rm32));
    assert!(!offers(&t, Code::Pminsb_xmm_xmmm128));
    // These are something else without the feature.
    t.set_feature(feature::ABM, false);
    t.set_feature(feature::BMI1, false);
    assert!(offers(&t, Code::Lzcnt_r32_rm32) && offers(&t, Code::Tzcnt_r32_rm32));
    for never in
        [Code::Xbegin_rel32, Code::Vmread_rm64_r64, Code::Clzeroq, Code::Enclu, Code::Wrpkru, Code::INVALID]
    {
        assert!(!offers(&all, never), "{never:?}");
    }
    assert!(offers(&all, Code::Endbr64), "a no-operation");
}
