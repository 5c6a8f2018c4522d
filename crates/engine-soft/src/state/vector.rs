//! Vector, mask and x87 state as XSAVE components.

use umbra_engine::xcomp;
use umbra_x86::reg::MXCSR_RESET;

use super::Refused;
use crate::cpu::VectorState;
use crate::native;

/// The x87 component: the part of the FXSAVE image.
const X87_LEN: usize = 160;
const MXCSR: std::ops::Range<usize> = 24..28;
const MXCSR_MASK: std::ops::Range<usize> = 28..32;
/// The x87 control word in the initial state of XSAVE (not that at power-on).
const FCW_INITIAL: u16 = 0x37f;

fn x87_initial() -> [u8; X87_LEN] {
    let mut image = [0; X87_LEN];
    image[..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
    image[MXCSR].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    image
}

/// The components that are not in their initial state.
pub(super) fn save(v: &VectorState) -> Vec<(u32, Vec<u8>)> {
    let registers = |which: std::ops::Range<usize>, bytes: std::ops::Range<usize>| -> Vec<u8> {
        v.zmm[which].iter().flat_map(|r| r[bytes.clone()].iter().copied()).collect()
    };
    let mut x87 = v.fx[..X87_LEN].to_vec();
    x87[MXCSR_MASK].fill(0);
    let mut pkru = u64::from(v.pkru).to_le_bytes().to_vec();
    pkru.truncate(8);
    let mut components = vec![
        (xcomp::X87, x87),
        (xcomp::SSE, registers(0..16, 0..16)),
        (xcomp::AVX, registers(0..16, 16..32)),
        (xcomp::OPMASK, v.k.iter().flat_map(|k| k.to_le_bytes()).collect()),
        (xcomp::ZMM_HI256, registers(0..16, 32..64)),
        (xcomp::HI16_ZMM, registers(16..32, 0..64)),
        (xcomp::PKRU, pkru),
    ];
    components.retain(|(number, bytes)| match *number {
        xcomp::X87 => *bytes != x87_initial(),
        _ => bytes.iter().any(|b| *b != 0),
    });
    components
}

/// Replaces all: components that are missing are in their initial state. `offered` has a bit for each that the processor has.
pub(super) fn load(v: &mut VectorState, components: &[(u32, Vec<u8>)], offered: u64) -> Result<(), Refused> {
    *v = VectorState { zmm: [[0; 64]; 32], fx: [0; 512], k: [0; 8], pkru: 0 };
    v.fx[..X87_LEN].copy_from_slice(&x87_initial());
    for (number, bytes) in components {
        if xcomp::size(*number) != Some(bytes.len()) {
            return Err(format!("XSAVE component {number} has {} bytes", bytes.len()));
        }
        if offered >> number & 1 == 0 {
            return Err(format!("XSAVE component {number} is not one that this processor shows"));
        }
        match *number {
            xcomp::X87 => v.fx[..X87_LEN].copy_from_slice(bytes),
            xcomp::SSE => spread(&mut v.zmm[..16], 0..16, bytes),
            xcomp::AVX => spread(&mut v.zmm[..16], 16..32, bytes),
            xcomp::ZMM_HI256 => spread(&mut v.zmm[..16], 32..64, bytes),
            xcomp::HI16_ZMM => spread(&mut v.zmm[16..], 0..64, bytes),
            xcomp::OPMASK => {
                let words = bytes.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(u64::from_le_bytes);
                v.k.iter_mut().zip(words).for_each(|(k, word)| *k = word);
            }
            _ => v.pkru = bytes.iter().take(4).rev().fold(0, |n, b| n << 8 | u32::from(*b)),
        }
    }
    let mxcsr = v.fx[MXCSR].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
    if mxcsr & !native::mxcsr_mask() != 0 {
        return Err(format!("MXCSR {mxcsr:#x} has bits that this host has not"));
    }
    v.fx[MXCSR_MASK].fill(0);
    native::normalize_x87(&mut v.fx);
    Ok(())
}

/// Puts consecutive bytes into a part of each register.
fn spread(registers: &mut [[u8; 64]], part: std::ops::Range<usize>, bytes: &[u8]) {
    let pieces = bytes.chunks_exact(part.len());
    registers.iter_mut().zip(pieces).for_each(|(r, piece)| r[part.clone()].copy_from_slice(piece));
}
