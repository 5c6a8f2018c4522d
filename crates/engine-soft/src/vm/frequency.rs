//! How fast the host's time-stamp counter is.
//!
//! The processor says it (SDM volume 2, CPUID leaf 0x15), or the hypervisor under the host (leaf 0x4000_0010), or it is measured against
//! the monotonic clock. Leaf 0x16 gives the number of the marketing department, which may be a thousandth off.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::time::{Duration, Instant};

use umbra_engine::EngineError;
use umbra_x86::cpuid::{HYPERVISOR_FREQUENCY, KVM_SIGNATURE};

use super::time::host_tsc;

/// No processor's counter is slower or faster than this.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=20_000_000;
/// How long a measurement takes.
const MEASURE: Duration = Duration::from_millis(20);

/// The frequency of the host's time-stamp counter in kHz.
///
/// # Errors
/// The counter stands, or is absurdly slow or fast.
pub fn host_khz() -> Result<u32, EngineError> {
    let told = from_processor().or_else(from_hypervisor).filter(|khz| PLAUSIBLE_KHZ.contains(khz));
    let khz = told.unwrap_or_else(measure);
    u32::try_from(khz).ok().filter(|_| PLAUSIBLE_KHZ.contains(&khz)).ok_or_else(|| {
        EngineError::Unavailable(format!(
            "the host's time-stamp counter cannot be used: it seems to run at {khz} kHz"
        ))
    })
}

fn from_processor() -> Option<u64> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid_count(0x15, 0);
    let [denominator, numerator, crystal_hz] = [leaf.eax, leaf.ebx, leaf.ecx].map(u64::from);
    if numerator == 0 || crystal_hz == 0 {
        return None;
    }
    (crystal_hz * numerator).checked_div(denominator * 1000)
}

fn from_hypervisor() -> Option<u64> {
    if __cpuid(1).ecx >> 31 == 0 {
        return None;
    }
    let signature = __cpuid(KVM_SIGNATURE);
    let name = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes).concat();
    let is_known = name == b"KVMKVMKVM\0\0\0" || name == b"VMwareVMware";
    (is_known && signature.eax >= HYPERVISOR_FREQUENCY).then(|| __cpuid(HYPERVISOR_FREQUENCY).eax.into())
}

/// A moment by both clocks: of a few tries the one that took least time.
fn moment() -> (Instant, u64) {
    let sample = || {
        let before = host_tsc();
        let at = Instant::now();
        let after = host_tsc();
        (after.wrapping_sub(before), at, before.wrapping_add(after.wrapping_sub(before) / 2))
    };
    let best = (0..8).map(|_| sample()).min_by_key(|s| s.0);
    best.map_or_else(|| (Instant::now(), host_tsc()), |(_, at, tsc)| (at, tsc))
}

fn measure() -> u64 {
    let (began, first) = moment();
    std::thread::sleep(MEASURE);
    let (ended, last) = moment();
    let ns = ended.duration_since(began).as_nanos().max(1);
    u64::try_from((u128::from(last.wrapping_sub(first)) * 1_000_000 + ns / 2) / ns).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_and_what_is_measured_agree() {
        let (khz, measured) = (u64::from(host_khz().unwrap()), measure());
        assert!(khz.abs_diff(measured) < khz / 500, "{khz} kHz, but {measured} kHz measured");
    }
}
