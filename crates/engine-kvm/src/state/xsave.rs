//! x87, SSE, AVX and later register state: XSAVE images in the standard format (SDM volume 1, section 13.4) and components by number.
//!
//! Where a component above SSE stands in an image depends on the host processor; the components' own bytes do not.

use umbra_engine::xcomp;
use umbra_x86::reg::MXCSR_RESET;

use crate::cpuid::XsaveLayout;

/// In the legacy area: MXCSR, its mask, the x87 registers, the XMM registers.
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const XMM: std::ops::Range<usize> = 160..416;
/// XSTATE_BV: which components an image holds.
const XSTATE_BV: usize = 512;
/// The x87 control word in x87's initial configuration.
const FCW_INITIAL: u16 = 0x37f;

/// Bytes of the x87 component; where they stand in the image is where they stand in the component.
const X87_LEN: usize = 160;

fn x87_initial() -> [u8; X87_LEN] {
    let mut x87 = [0; X87_LEN];
    x87[..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
    x87[MXCSR..MXCSR_MASK].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    x87
}

/// The components of `image` that are not in their initial configuration.
pub(crate) fn to_components(image: &[u8], layout: &XsaveLayout) -> Vec<(u32, Vec<u8>)> {
    let part = |at: usize, len: usize| image.get(at..at + len).map_or_else(|| vec![0; len], <[u8]>::to_vec);
    let present = part(XSTATE_BV, 8).iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    // KVM fills the legacy area of components that are absent with their initial values.
    let mut x87 = part(0, X87_LEN);
    x87[MXCSR_MASK..MXCSR_MASK + 4].fill(0);
    let x87 = (xcomp::X87, x87);
    let sse = (xcomp::SSE, part(XMM.start, XMM.len()));
    let rest = layout.components.iter().map(|&(number, at, len)| (number, part(at, len)));
    let mut components: Vec<_> = [x87, sse].into_iter().chain(rest).collect();
    components.retain(|(number, bytes)| match *number {
        xcomp::X87 => *bytes != x87_initial(),
        number => present >> number & 1 != 0 && bytes.iter().any(|b| *b != 0),
    });
    components
}

/// An image of `len` bytes that holds `components`.
///
/// # Errors
/// In words: a component that this host or guest has not, or of a wrong size.
pub(crate) fn from_components(
    components: &[(u32, Vec<u8>)],
    layout: &XsaveLayout,
    len: usize,
) -> Result<Vec<u8>, String> {
    let mut image = vec![0; len];
    image[..X87_LEN].copy_from_slice(&x87_initial());
    let mut present = 0u64;
    for (number, bytes) in components {
        let at = match *number {
            xcomp::X87 => Some(0),
            xcomp::SSE => Some(XMM.start),
            number => layout.offset(number),
        };
        let at = at.ok_or_else(|| format!("this host has no XSAVE component {number}"))?;
        let target =
            image.get_mut(at..at + bytes.len()).filter(|_| xcomp::size(*number) == Some(bytes.len()));
        let target = target.ok_or_else(|| format!("XSAVE component {number} has {} bytes", bytes.len()))?;
        target.copy_from_slice(bytes);
        present |= 1 << number;
    }
    image[MXCSR_MASK..MXCSR_MASK + 4].fill(0);
    if image[MXCSR..MXCSR_MASK] != MXCSR_RESET.to_le_bytes() {
        // MXCSR is taken from an image only together with SSE.
        present |= 1 << xcomp::SSE;
    }
    image[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
    Ok(image)
}
