//! The smallest program that still differs.

use super::{Item, Program};

/// Most tries.
const TRIES_MAX: usize = 400;

/// Drops items, then single instructions, as long as `differs` says so of what is left.
pub fn shrink(program: &Program, mut differs: impl FnMut(&Program) -> bool) -> Program {
    let mut best = program.clone();
    let mut tries = 0;
    let mut size = best.items.len().div_ceil(2);
    while size > 0 {
        let before = best.len();
        let mut at = 0;
        while at < best.items.len() {
            let smaller = without(&best, at, size);
            tries += 1;
            if tries > TRIES_MAX {
                return best;
            }
            if differs(&smaller) {
                best = smaller;
            } else {
                at += size;
            }
        }
        // Once more with single items, as long as that helps.
        size = if size == 1 && best.len() < before { 1 } else { size / 2 };
    }
    single_steps(&mut best, &mut differs);
    calm(&mut best, &mut differs);
    best
}

/// `program` without `count` items from `at` on.
fn without(program: &Program, at: usize, count: usize) -> Program {
    let mut out = program.clone();
    let end = (at + count).min(out.items.len());
    out.items.drain(at..end);
    for step in out.items.iter_mut().flat_map(|i| &mut i.steps) {
        if let Some(label) = &mut step.label {
            *label = if *label >= end { *label - (end - at) } else { (*label).min(at) };
        }
    }
    out
}

fn single_steps(best: &mut Program, differs: &mut impl FnMut(&Program) -> bool) {
    for item in (0..best.items.len()).rev() {
        for step in (0..best.items[item].steps.len()).rev() {
            let mut smaller = best.clone();
            smaller.items[item].steps.remove(step);
            if differs(&smaller) {
                *best = smaller;
            }
        }
    }
    // An item that is empty stays: labels count them.
    debug_assert!(best.items.iter().all(|i: &Item| i.steps.len() <= super::INSTRUCTIONS_MAX));
}

/// Sets what does not matter of the state to zero.
fn calm(best: &mut Program, differs: &mut impl FnMut(&Program) -> bool) {
    let mut keep = |best: &mut Program, change: &dyn Fn(&mut Program)| {
        let mut calmer = best.clone();
        change(&mut calmer);
        if differs(&calmer) {
            *best = calmer;
        }
    };
    keep(best, &|p| p.state.zmm = [[0; 64]; 32]);
    keep(best, &|p| p.state.memory.fill(0));
    keep(best, &|p| p.state.fx = super::super::state::State::empty().fx);
    keep(best, &|p| p.state.k = [0; 8]);
    keep(best, &|p| p.state.rflags = 2);
    for n in 0..16 {
        keep(best, &|p| p.state.gpr[n] = 0);
    }
}
