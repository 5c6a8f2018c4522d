//! Direct branches to other pages.
//!
//! Where one leads depends on the linear page that its code runs at, and on what is mapped at the target's. So what it is linked to holds for
//! the page and the key that were seen when it was linked, and code compares both. Where they are others, the target is looked up, and now and
//! then the link is made anew: what runs most has it most of the time.

use std::mem::offset_of;

use super::Jump;
use super::asm::{A, Asm, at, cond, op, state};
use super::block::Builder;
use super::memory::fast;
use super::site::{Kind, Site};
use crate::exec::Fast;

const PAGE: i32 = 4096;
/// Lookups until a link is made anew.
pub(super) const PATIENCE: i32 = 255;

/// What a branch is linked to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linked {
    /// The page that it is on.
    pub page: u64,
    /// The key, and whether it is `Fast::global_key`.
    pub key: u64,
    pub global: bool,
    /// The translation of its target, in bytes from the start of its own code.
    pub to: i64,
}

/// The code of a branch to `target`, in bytes from the start of its page; as long with a link as without.
pub(super) fn emit(asm: &mut Asm, wide: bool, target: i32, site: u32, linked: Option<Linked>) {
    let start = asm.len();
    let page = state(fast(offset_of!(Fast, page)));
    let lea = |asm: &mut Asm, disp| match wide {
        true => asm.rm(op::LEA, A, at(A, disp)),
        false => asm.rm32(op::LEA, A, at(A, disp)),
    };
    let key = match linked {
        Some(Linked { global: true, .. }) => offset_of!(Fast, global_key),
        _ => offset_of!(Fast, key),
    };
    asm.mov_i64(A, linked.map_or(Jump::NONE.key, |l| l.key));
    asm.rm(op::CMP, A, state(fast(key)));
    let other_key = asm.jcc(cond::NOT_EQUAL);
    asm.mov_i64(A, linked.map_or(0, |l| l.page));
    asm.rm(op::CMP, A, page);
    let other_page = asm.jcc(cond::NOT_EQUAL);
    lea(asm, target & -PAGE);
    asm.rm(op::MOV_STORE, A, page);
    let found = asm.jmp();
    asm.here(other_key);
    asm.here(other_page);
    match linked {
        Some(linked) => asm.fill_far(found, start as i64 + linked.to),
        None => asm.here(found),
    }
    asm.rm(op::MOV, A, page);
    lea(asm, target);
    let or_else = if linked.is_some() { offset_of!(Fast, find) } else { offset_of!(Fast, leave) };
    asm.go_with(site, state(fast(or_else)));
}

impl Builder<'_> {
    /// Goes on at an address off this page. Flags are in the state block.
    pub(super) fn cross(&mut self, target: i32) {
        let at = self.asm.len() as u32;
        let site = self.site(Site { at, ..Site::new(Kind::Cross, self.offset) });
        emit(&mut self.asm, self.wide, target, site, None);
    }
}
